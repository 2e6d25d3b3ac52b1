"""A node's state survives a power cut: killed at any byte, `load` returns the last state that was saved.

Two slots are written in turn, each with a generation number and a checksum, so that a cut in one leaves the
other intact. It needs no clock, rename or database, and works on any file system that promises fsync, FAT
included. `faults` names a slot that is not as this program left it, because the other slot's state may be one
save old. Larger data (a model, an update, a checkpoint) is kept in files beside it.

A start is counted before anything is sent, so that no epoch is used twice: by its epoch the other end tells a
start from a copy of an earlier one. If a slot is lost, the one that is left is one save older, in which an
epoch rises by one at most, or a copy of unknown age: so SKIPPED epochs, three years of one start a day, are
left out. The state is then saved twice, which heals both slots. Salt and replay floor need not outlive a
restart: the salt that both ends draw anew keeps frame numbers from repeating under one key."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from onboard.console.log import say
from onboard.storage import files
from onboard.wire.events import QuotaUsage
from onboard.wire.security.seal import next_epoch

log = logging.getLogger(__name__)

S = TypeVar("S", bound=msgspec.Struct)
J = TypeVar("J", bound="JournalState")

_HEADER = struct.Struct(">4sII16s")  # magic, generation, length, BLAKE2s-128 of generation + payload
_MAGIC = b"SDJ1"
_GENERATIONS = 2**32
_MAX_SLOT_BYTES = 2**24  # a state has some kilobytes; a file of more is none, and is not read into memory
SKIPPED = 1024
MOST_KEPT_BYTES = 2**30  # of one file: a longer one was not written by this program


class JournalError(OSError):
    """The saved state is intact, but of another version of this program. It is left unchanged."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot as it is on the disk; `why` says that it is damaged, missing, unreadable, or an older copy."""

    path: Path
    generation: int = 0
    payload: bytes = b""
    why: str = ""
    is_gone: bool = False
    is_to_be_moved: bool = False  # nothing can be written into it

    @property
    def holds(self) -> bool:
        return not self.why and not self.is_gone


class LinkState(msgspec.Struct, kw_only=True):
    """What one end of a link keeps, in a node's journal or in the ground's database."""

    epoch: int = 0
    """How often this end has started, modulo the epochs that a frame can say."""
    spent: QuotaUsage = QuotaUsage()
    """What was used of this end's quotas, as last recorded."""


class JournalState(msgspec.Struct, kw_only=True):
    """What every node keeps in its journal. `links` is required: one without it is refused by name."""

    links: dict[int, LinkState]
    """By the peer's node number."""


class Journal(Generic[S]):
    """Durable state of one node in one folder, as a Struct of type `kind`.

    `names` are the files that `keep` writes: if one exists, a state was saved before. `faults` is what the
    last `load` found wrong. `load` raises PermissionError, as another user's folder is not damage; `save` and
    `keep` raise OSError (disk full, read-only) and leave everything stored before readable."""

    def __init__(self, folder: Path, kind: type[S], names: Collection[str] = ()) -> None:
        self.folder = folder
        self.faults: tuple[Slot, ...] = ()
        self._to_be_moved = set[Path]()
        self.kind, self._names = kind, names
        folder.mkdir(parents=True, exist_ok=True)
        newest = _newest(self._read())
        self._generation = 0 if newest is None else newest.generation  # so that `save` falls behind no slot

    def load(self) -> S | None:
        """Returns the newest state whose checksum holds, or None. Raises JournalError."""
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
        """Returns once `state` is on the disk; the slot with the state before it is not touched."""
        payload = msgspec.msgpack.encode(state)
        generation = (self._generation + 1) % _GENERATIONS
        header = _HEADER.pack(_MAGIC, generation, len(payload), _digest(generation, payload))
        path = self._slot_path(generation % 2)
        if path in self._to_be_moved:
            path.rename(files.free_name(path))  # with the sectors under it, which are not to be used again
            self._to_be_moved.discard(path)
        new = not path.exists()
        files.write_durably(path, header + payload)
        if new:
            files.sync_folder(self.folder)
        self._generation = generation

    def keep(self, name: str, *content: bytes | memoryview) -> None:
        """Stores `content`, piece after piece, as the file `name`, durably, and completely or not at all."""
        files.replace_durably(self.folder / name, *content)

    def fetch(self, name: str) -> bytes | None:
        """Returns the content stored as `name`, or None. Raises OSError, also for what is no regular file."""
        try:
            return files.read_file(self.folder / name, MOST_KEPT_BYTES)
        except FileNotFoundError:
            return None

    def drop(self, *names: str) -> None:
        """Removes stored files; one that does not exist is no error."""
        for name in names:
            files.remove_file(self.folder / name)

    def _read(self) -> tuple[Slot, Slot]:
        slots = _read_slot(self._slot_path(0)), _read_slot(self._slot_path(1))
        self._to_be_moved = {slot.path for slot in slots if slot.is_to_be_moved}
        return slots

    def _wrong(self, slots: tuple[Slot, Slot]) -> Iterator[Slot]:
        """Yields slots that are not as `save` left them, which writes the odd generations into slot 1."""
        first, second = slots
        yield from (slot for slot in slots if slot.why)
        if first.holds and second.holds:
            older, newer = (first, second) if _newest(slots) is second else (second, first)
            ahead = (newer.generation - older.generation) % _GENERATIONS
            if ahead == 0:
                copy, other = (first, second) if first.generation % 2 else (second, first)
                yield replace(copy, why=f"holds save {copy.generation}: a copy of {other.path.name}")
            elif ahead != 1:
                why = f"holds save {older.generation}, beside {newer.generation}: a copy of another time"
                yield replace(older, why=why)
            elif first.generation % 2:
                yield replace(first, why="has changed places with the other one")
        elif first.is_gone and second.is_gone:
            if left := [name for name in self._names if (self.folder / name).exists()]:
                yield from (replace(slot, why=f"gone, and {left[0]} is there") for slot in slots)
        elif second.is_gone or (first.is_gone and second.holds and second.generation != 1):
            gone, other = (first, second) if first.is_gone else (second, first)
            yield replace(gone, why=f"gone, and {other.path.name} is there")

    def _slot_path(self, slot: int) -> Path:
        return self.folder / f"journal.{slot}"


def _newest(slots: tuple[Slot, Slot]) -> Slot | None:
    first, second = slots
    if not first.holds or not second.holds:
        return first if first.holds else second if second.holds else None
    # As serial numbers are compared (RFC 1982): the generation after the last one is 0.
    return second if (second.generation - first.generation) % _GENERATIONS < _GENERATIONS // 2 else first


def _read_slot(path: Path) -> Slot:
    """Reads a slot; follows no link, waits for no pipe, reads no gigabytes. Raises PermissionError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Slot(path, is_gone=True)
    except PermissionError:
        raise
    except OSError as error:
        return Slot(path, why=error.strerror or str(error), is_to_be_moved=True)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return Slot(path, why="no regular file", is_to_be_moved=True)
        with os.fdopen(handle, "rb", closefd=False) as file:
            raw = file.read(_MAX_SLOT_BYTES)
    except OSError as error:  # the card has a sector that cannot be read
        return Slot(path, why=error.strerror or str(error), is_to_be_moved=True)
    finally:
        os.close(handle)
    if len(raw) < _HEADER.size:
        return Slot(path, why=f"cut off after {len(raw)} B")
    magic, generation, length, digest = _HEADER.unpack_from(raw)
    payload = raw[_HEADER.size : _HEADER.size + length]
    if magic != _MAGIC:
        return Slot(path, why="no journal: it begins with other bytes")
    if len(payload) != length:
        return Slot(path, why=f"cut off after {len(raw)} B of {_HEADER.size + length}")
    if _digest(generation, payload) != digest:
        return Slot(path, why="its checksum is wrong")
    return Slot(path, generation, payload)


def _digest(generation: int, payload: bytes) -> bytes:
    return hashlib.blake2s(generation.to_bytes(4, "big") + payload, digest_size=16).digest()


def was_started(folder: Path) -> bool:
    return any((folder / f"journal.{slot}").exists() for slot in range(2))


def count_start(journal: Journal[J], peers: Iterable[int]) -> J:
    """Counts a start: returns the journal's state, or a new one, with this start's epochs towards `peers`,
    durably. Logs a line for each bad slot. Raises OSError."""
    kept = journal.load()
    known = journal.kind(links={}) if kept is None else kept
    for peer in peers:
        known.links.setdefault(peer, LinkState())
    for fault in journal.faults:
        left = "nothing: it starts as a new one" if kept is None else "the other slot"
        level = logging.ERROR if kept is None else logging.WARNING
        say(log, "journal-damaged", level=level, path=str(fault.path), why=fault.why, left=left)
    for link in known.links.values():
        link.epoch = next_epoch(link.epoch, SKIPPED if journal.faults else 0)
    journal.save(known)
    if journal.faults:
        journal.save(known)
    return known


def count_restart(journal: Journal[J], known: J, peer: int) -> LinkState:
    """Begins a link again in an epoch of its own, durably, while its node runs on."""
    link = known.links[peer]
    link.epoch = next_epoch(link.epoch)
    journal.save(known)
    return link
