"""A node's state survives a power cut: killed at any byte, `load` returns the last state that was saved.

Two slots are written in turn, each with a generation number and a checksum, so that a cut in the middle of
one leaves the other intact. It needs no clock, no rename and no database, and works on a FAT card or on any
flash file system that promises fsync. A slot that is not as this program left it is never ignored silently:
`faults` names it, because the state in the other slot may be one save old.

Larger data (a received model, an update that waits for its acknowledgement, a training checkpoint) is kept in
files beside it, which are named in the state and replaced atomically.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from onboard.storage.files import (
    NotAFile,
    clear_the_way,
    free_name,
    open_to_hold,
    open_to_write,
    read_file,
    remove_file,
)

S = TypeVar("S", bound=msgspec.Struct)

_HEADER = struct.Struct(">4sII16s")  # magic, generation, length, BLAKE2s-128 of generation + payload
_MAGIC = b"SDJ1"
_GENERATIONS = 2**32
_MAX_SLOT_BYTES = 2**24  # a state has some kilobytes; a file of more is none, and is not read into memory
LOCK = "lock"  # the file in a folder that its user holds
MOST_KEPT_BYTES = 2**30  # of one file: a longer one was not written by this program


class JournalError(OSError):
    """The saved state is intact, but of another version of this program. It is left unchanged."""


@dataclass(frozen=True, slots=True)
class SlotFault:
    """A slot that is not as `save` left it, and why: damaged, missing, unreadable, or an older copy."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class _Slot:
    """One slot as it is on the disk; `why` says why it holds no state, and is empty if it does."""

    path: Path
    generation: int = 0
    payload: bytes = b""
    why: str = ""
    is_gone: bool = False
    is_to_be_moved: bool = False  # nothing can be written into it

    @property
    def holds(self) -> bool:
        """Whether the slot holds a state."""
        return not self.why and not self.is_gone


class Journal(Generic[S]):
    """Durable state of one node in one folder.

    `kind` is the Struct that is kept; `load` returns None if nothing valid was ever saved. `names` are those
    of the files that `keep` writes: if one of them exists, a state was saved before. `faults` is what the
    last `load` found wrong. `load` raises PermissionError, as a folder of another user's is not damage;
    `save` and `keep` raise OSError (disk full, read-only), after which everything stored before is still
    readable.
    """

    def __init__(self, folder: Path, kind: type[S], names: Collection[str] = ()) -> None:
        self.folder = folder
        self.faults: tuple[SlotFault, ...] = ()
        self._to_be_moved = set[Path]()
        self.kind, self._names = kind, names
        folder.mkdir(parents=True, exist_ok=True)
        newest = _newest(self._read())
        self._generation = 0 if newest is None else newest.generation  # so that `save` falls behind no slot

    def load(self) -> S | None:
        """The newest state whose checksum holds. Raises JournalError."""
        slots = self._read()
        self.faults = tuple(self._wrong(slots))
        newest = _newest(slots)
        if newest is None:
            return None
        try:
            return msgspec.msgpack.decode(newest.payload, type=self.kind)
        except msgspec.DecodeError as error:
            raise JournalError(f"state of another version of this program: {error}") from None

    def save(self, state: S) -> None:
        """Saves `state`, and returns once it is on the disk; the slot with the state before it is not
        touched."""
        payload = msgspec.msgpack.encode(state)
        generation = (self._generation + 1) % _GENERATIONS
        header = _HEADER.pack(_MAGIC, generation, len(payload), _digest(generation, payload))
        path = self._slot_path(generation % 2)
        if path in self._to_be_moved:
            path.rename(free_name(path))  # with the sectors under it, which are not to be used again
            self._to_be_moved.discard(path)
        new = not path.exists()
        write_durably(path, header + payload)
        if new:
            sync_folder(self.folder)
        self._generation = generation

    def keep(self, name: str, content: bytes) -> None:
        """Stores `content` as the file `name`, durably, and completely or not at all."""
        replace_durably(self.folder / name, content)

    def fetch(self, name: str) -> bytes | None:
        """The content stored as `name`, or None. Raises OSError, also for anything but a regular file."""
        try:
            return read_file(self.folder / name, MOST_KEPT_BYTES)
        except FileNotFoundError:
            return None

    def drop(self, *names: str) -> None:
        """Removes stored files; one that does not exist is no error."""
        for name in names:
            remove_file(self.folder / name)

    def _read(self) -> tuple[_Slot, _Slot]:
        """Reads both slots. Raises PermissionError."""
        slots = _read_slot(self._slot_path(0)), _read_slot(self._slot_path(1))
        self._to_be_moved = {slot.path for slot in slots if slot.is_to_be_moved}
        return slots

    def _wrong(self, slots: tuple[_Slot, _Slot]) -> Iterator[SlotFault]:
        """The slots that are not as `save` left them: it writes generation 1 into slot 1, 2 into slot 0, and
        so on."""
        first, second = slots
        yield from (SlotFault(slot.path, slot.why) for slot in slots if slot.why)
        if first.holds and second.holds:
            older, newer = (first, second) if _newest(slots) is second else (second, first)
            ahead = (newer.generation - older.generation) % _GENERATIONS
            if ahead == 0:
                copy, other = (first, second) if first.generation % 2 else (second, first)
                yield SlotFault(copy.path, f"holds save {copy.generation}: a copy of {other.path.name}")
            elif ahead != 1:
                why = f"holds save {older.generation}, beside {newer.generation}: a copy of another time"
                yield SlotFault(older.path, why)
            elif first.generation % 2:
                yield SlotFault(first.path, "has changed places with the other one")
        elif first.is_gone and second.is_gone:
            if left := [name for name in self._names if (self.folder / name).exists()]:
                yield from (SlotFault(slot.path, f"gone, and {left[0]} is there") for slot in slots)
        elif second.is_gone or (first.is_gone and second.holds and second.generation != 1):
            gone, other = (first, second) if first.is_gone else (second, first)
            yield SlotFault(gone.path, f"gone, and {other.path.name} is there")

    def _slot_path(self, slot: int) -> Path:
        return self.folder / f"journal.{slot}"


def _newest(slots: tuple[_Slot, _Slot]) -> _Slot | None:
    first, second = slots
    if not first.holds or not second.holds:
        return first if first.holds else second if second.holds else None
    # As serial numbers are compared (RFC 1982): the generation after the last one is 0.
    return second if (second.generation - first.generation) % _GENERATIONS < _GENERATIONS // 2 else first


def _read_slot(path: Path) -> _Slot:
    """Reads a slot. Whatever lies in its place (a link, a pipe, a folder, gigabytes) is not followed, not
    waited for and not held in memory. Raises PermissionError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return _Slot(path, is_gone=True)
    except PermissionError:
        raise
    except OSError as error:
        return _Slot(path, why=error.strerror or str(error), is_to_be_moved=True)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return _Slot(path, why="no regular file", is_to_be_moved=True)
        with os.fdopen(handle, "rb", closefd=False) as file:
            raw = file.read(_MAX_SLOT_BYTES)
    except OSError as error:  # the card has a sector that cannot be read
        return _Slot(path, why=error.strerror or str(error), is_to_be_moved=True)
    finally:
        os.close(handle)
    if len(raw) < _HEADER.size:
        return _Slot(path, why=f"cut off after {len(raw)} B")
    magic, generation, length, digest = _HEADER.unpack_from(raw)
    payload = raw[_HEADER.size : _HEADER.size + length]
    if magic != _MAGIC:
        return _Slot(path, why="no journal: it begins with other bytes")
    if len(payload) != length:
        return _Slot(path, why=f"cut off after {len(raw)} B of {_HEADER.size + length}")
    if _digest(generation, payload) != digest:
        return _Slot(path, why="its checksum is wrong")
    return _Slot(path, generation, payload)


def _digest(generation: int, payload: bytes) -> bytes:
    return hashlib.blake2s(generation.to_bytes(4, "big") + payload, digest_size=16).digest()


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Overwrites the file, and returns once the content is on the disk."""
    with open_to_write(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, content: bytes | memoryview) -> None:
    """Replaces the file at `path`: after a power cut it is the old one or the new one, never a mixture."""
    new = path.with_name(path.name + ".new")
    clear_the_way(path)
    try:
        write_durably(new, content)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a file's creation or renaming durable, which its own fsync need not do (POSIX leaves that
    open)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def was_started(folder: Path) -> bool:
    """Whether a node has saved its state in the folder before."""
    return any((folder / f"journal.{slot}").exists() for slot in range(2))


@contextlib.contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Locks `folder` for this process: two agents with one state would both count from the same epoch.

    Raises BlockingIOError if another process has locked it. The kernel unlocks it when the process dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _lock_of(folder: Path) -> int:
    """Opens the folder's lock file. Anything else in its place is put aside, under a lock of the folder
    itself: otherwise two programs that start at once could each put aside the file that the other has just
    made."""
    path = folder / LOCK
    with contextlib.suppress(NotAFile):
        return open_to_hold(path)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        clear_the_way(path)
        return open_to_hold(path)
    finally:
        os.close(handle)
