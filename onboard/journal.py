"""What a node knows after a power cut: killed at any byte, `load` gives the last state that was saved.

Two slots are written in turn, each with a generation number and a checksum: a cut in the middle of one
leaves the other whole. No clock, no rename, no database: it works on a FAT card and on raw flash with a
file system that only promises fsync. Larger things (a received model, an update that waits for its
acknowledgement, a training checkpoint) are files beside it, named in the state, replaced atomically.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

_HEADER = struct.Struct(">4sII16s")  # magic, generation, length, BLAKE2s-128 of generation + payload
_MAGIC = b"SDJ1"
_GENERATIONS = 2**32
LOCK = "lock"  # the file in a folder that its user holds


class JournalError(OSError):
    """What was saved is whole but not what this program keeps: another version's. It is left as it is."""


class Journal(Generic[S]):
    """Durable state of one node in one folder.

    `kind` is the Struct that is kept; `load` returns None where nothing valid was ever saved.
    Raises OSError (disk full, read-only) from `save` and `keep`; what was stored before stays readable.
    """

    def __init__(self, folder: Path, kind: type[S]) -> None:
        self.folder = folder
        self._kind = kind
        folder.mkdir(parents=True, exist_ok=True)
        newest = self._newest()
        self._generation = 0 if newest is None else newest[0]  # so that `save` never falls behind a slot

    def load(self) -> S | None:
        """The newest state whose checksum holds. Raises JournalError."""
        newest = self._newest()
        if newest is None:
            return None
        try:
            return msgspec.msgpack.decode(newest[1], type=self._kind)
        except msgspec.DecodeError as error:
            raise JournalError(f"state of another version of this program: {error}") from None

    def save(self, state: S) -> None:
        """Returns once `state` is on the disk; the slot of the state before it is left untouched."""
        payload = msgspec.msgpack.encode(state)
        generation = (self._generation + 1) % _GENERATIONS
        header = _HEADER.pack(_MAGIC, generation, len(payload), _digest(generation, payload))
        path = self._slot_path(generation % 2)
        new = not path.exists()
        write_durably(path, header + payload)
        if new:
            sync_folder(self.folder)
        self._generation = generation

    def keep(self, name: str, content: bytes) -> None:
        """Stores `content` as the file `name`, durable and whole or not at all."""
        replace_durably(self.folder / name, content)

    def fetch(self, name: str) -> bytes | None:
        """The content kept as `name`, or None."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def drop(self, *names: str) -> None:
        """Removes kept files; those that are not there are no error."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _newest(self) -> tuple[int, bytes] | None:
        first, second = self._read_slot(0), self._read_slot(1)
        if first is None or second is None:
            return first or second
        # As serial numbers are compared (RFC 1982): the generation after the last one is 0.
        return second if (second[0] - first[0]) % _GENERATIONS < _GENERATIONS // 2 else first

    def _slot_path(self, slot: int) -> Path:
        return self.folder / f"journal.{slot}"

    def _read_slot(self, slot: int) -> tuple[int, bytes] | None:
        try:
            raw = self._slot_path(slot).read_bytes()
        except FileNotFoundError:
            return None
        if len(raw) < _HEADER.size:
            return None
        magic, generation, length, digest = _HEADER.unpack_from(raw)
        payload = raw[_HEADER.size : _HEADER.size + length]
        if magic != _MAGIC or len(payload) != length or _digest(generation, payload) != digest:
            return None
        return generation, payload


def _digest(generation: int, payload: bytes) -> bytes:
    return hashlib.blake2s(generation.to_bytes(4, "big") + payload, digest_size=16).digest()


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Writes in place and returns once the content is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, content: bytes | memoryview) -> None:
    """Replaces `path` by `content`: after a power cut there is the old file or the new one, never a mix."""
    new = path.with_name(path.name + ".new")
    try:
        write_durably(new, content)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a created or renamed name durable; the file's own fsync does not (POSIX leaves that open)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process: two agents on one state would both count from the same epoch.

    Raises BlockingIOError if another process holds it. The kernel lets go when the process dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
