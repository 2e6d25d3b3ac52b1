"""What was received survives a kill or a power cut at any instant, and is never taken for more than it is.

A half-received object is two files: `<digest>.part`, its bytes in place, and `<digest>.map`, which says which
fragments of these are valid. A map is replaced whole, and only after its bytes are on the disk, so a cut
leaves the older map with the bytes that it promised. `finished` remembers the objects that the application
took, so that none is delivered twice.

A damaged file is dropped, told (`unreadable`) and counted in `discarded`: the object comes again. So does
what is beyond the spool's limit, as an earlier version left it (`spool-dropped`)."""

from __future__ import annotations

import errno
import logging
import math
import os
import struct
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from onboard.console.log import say
from onboard.link.peer import PeerShare
from onboard.link.ports.port import PortEvent
from onboard.storage.files import (
    CHECK_BYTES,
    changed_at,
    checked,
    clear_the_way,
    discard_file,
    open_to_read,
    read_file,
    remove_file,
    replace_durably,
    sync_folder,
    unchecked,
)
from onboard.wire.messages import DIGEST_BYTES, MAX_FRAGMENTS, fragments_of
from onboard.wire.session import Session
from onboard.wire.transfer.fragments import indices
from onboard.wire.transfer.incoming import Incoming, Partial

log = logging.getLogger(__name__)

REMEMBERED = 256
"""Digests kept of finished objects: a peer repeats an offer within a few rounds or never."""

SAVE_SHARE = 128  # a kill loses at most 1/128 of an object's bytes, 1 %
SAVE_GAP_S = 0.25  # an fsync on an SD card takes up to this long, so fast links save by time
SAVE_WITHIN_S = 5.0  # and slow links lose at most this much contact
SAVE_AGAIN_S = 5.0  # after the disk was full

_MAP = struct.Struct(">4s16sBIHI")
"""Magic, digest, kind, size, fragment bytes, deadline; then the bitmap, then a checksum."""
_MAP_MAGIC = b"sdm2"
_DONE_MAGIC = b"sdd1"
_MAX_MAP_BYTES = _MAP.size + (MAX_FRAGMENTS + 7) // 8 + CHECK_BYTES


class Spool:
    """The half-received objects of one session in `folder`, at most `limit_bytes` in all. Writing methods may
    raise OSError (also ENOSPC above the limit) and be called again; what was stored is still whole."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Creates the folder. Raises OSError."""
        self.folder, self._name = folder, os.fsencode(folder.name)
        self.discarded = 0
        self.limit_bytes = limit_bytes
        self._sizes: dict[bytes, int] = {}
        clear_the_way(folder, "folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._finished = self._read_finished()

    def load(self) -> list[Partial]:
        """Return what earlier runs received and their maps vouch for, oldest first; call it before any
        `save`. It reads no more than the limit, the newest objects."""
        partials: list[Partial] = []
        left_bytes, displaced = self.limit_bytes, 0
        for path in sorted(self.folder.glob("*.map"), key=changed_at, reverse=True):
            found = _read_map(path)
            if found is not None and found.digest in self._finished:
                remove_file(path)
            elif found is not None and found.size > left_bytes:
                displaced += 1
                remove_file(path)
            elif found is None or (partial := _with_data(found, path)) is None:
                self._discard(path)
            else:
                left_bytes -= partial.size
                self._sizes[partial.digest] = partial.size
                partials.append(partial)
        known = {partial.digest.hex() for partial in partials}
        for path in self.folder.iterdir():  # left by a cut before or after the map
            if path.suffix == ".new" or (path.suffix == ".part" and path.stem not in known):
                remove_file(path)
        if displaced:
            say(
                log, "spool-dropped", level=logging.WARNING, path=str(self.folder), objects=displaced,
                limit_bytes=self.limit_bytes,
            )  # fmt: skip
        return partials[::-1]

    def save(self, incoming: Incoming) -> None:
        """Make durable what `incoming` received since the last save, and clear its `dirty`."""
        partial = incoming.partial()
        others = sum(size for digest, size in self._sizes.items() if digest != partial.digest)
        if others + partial.size > self.limit_bytes:
            raise OSError(errno.ENOSPC, f"spool limit of {self.limit_bytes} B", str(self.folder))
        part = self._path(partial.digest, "part")
        # Bytes may lie there already, also of another fragment length or a corrupt run. They are replaced in
        # place under the old map: of the same object they are the same bytes, else its digest will tell.
        clear_the_way(part)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            for index in indices(incoming.dirty):
                offset, rest = index * partial.fragment_bytes, memoryview(incoming.fragment(index))
                while rest:
                    written = os.pwrite(handle, rest, offset)
                    offset, rest = offset + written, rest[written:]
            os.fsync(handle)
        finally:
            os.close(handle)
        replace_durably(self._path(partial.digest, "map"), _encode_map(partial))
        self._sizes[partial.digest] = partial.size
        incoming.dirty = 0

    def drop(self, digest: bytes) -> None:
        """Forget durably a refused, cancelled or corrupt object: its sender will not name it again."""
        # The map first: bytes without a map are nothing.
        removed = [remove_file(self._path(digest, suffix)) for suffix in ("map", "part")]
        if any(removed):
            sync_folder(self.folder)
        self._sizes.pop(digest, None)

    def holds(self, digest: bytes) -> bool:
        return digest in self._sizes

    def finish(self, *digests: bytes) -> None:
        """Remember durably that the application has these objects, then forget their bytes."""
        if new := [digest for digest in digests if digest not in self._finished]:
            self._keep_finished([*self._finished, *new][-REMEMBERED:])
        for digest in digests:
            self.drop(digest)

    def retain(self, digests: Collection[bytes]) -> None:
        """Keep only these finished objects: the others are to be taken again. Call it before `load`."""
        left = [digest for digest in self._finished if digest in digests]
        if len(left) < len(self._finished):
            self._keep_finished(left)

    def finished(self) -> tuple[bytes, ...]:
        """Digests of the last finished objects, oldest first."""
        return tuple(self._finished)

    def _path(self, digest: bytes, suffix: str) -> Path:
        return self.folder / f"{digest.hex()}.{suffix}"

    def _keep_finished(self, digests: list[bytes]) -> None:
        # Of this spool alone: another link's list names other objects.
        replace_durably(self.folder / "finished", checked(_DONE_MAGIC + b"".join(digests), self._name))
        self._finished = digests

    def _read_finished(self) -> list[bytes]:
        path, longest = self.folder / "finished", len(_DONE_MAGIC) + DIGEST_BYTES * REMEMBERED + CHECK_BYTES
        try:
            # Without the folder's name as earlier versions wrote it.
            body = unchecked(read_file(path, longest), self._name, b"")
        except FileNotFoundError:
            return []
        except (OSError, ValueError):  # flash wears out: a lost list costs only a second delivery
            body = b""
        digests = body[len(_DONE_MAGIC) :]
        if not body.startswith(_DONE_MAGIC) or len(digests) % DIGEST_BYTES:
            self._discard(path)
            return []
        return [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]

    def _discard(self, path: Path) -> None:
        self.discarded += 1
        discard_file(path)


def _with_data(found: Partial, path: Path) -> Partial | None:
    """Return the object with the bytes beside its map; None where these are fewer than the map says."""
    data = bytearray(found.size)
    try:
        with open_to_read(path.with_suffix(".part")) as part:
            read = part.readinto(data)
    except OSError:
        return None
    if read < min(found.held.bit_length() * found.fragment_bytes, found.size):
        return None
    return replace(found, data=data)


def _encode_map(partial: Partial) -> bytes:
    count = fragments_of(partial.size, partial.fragment_bytes)
    head = _MAP.pack(
        _MAP_MAGIC, partial.digest, partial.kind, partial.size, partial.fragment_bytes, partial.deadline_s
    )
    return checked(head + partial.held.to_bytes((count + 7) // 8, "little"))


def _read_map(path: Path) -> Partial | None:
    """Return what the map says, without data; None for anything that `_encode_map` did not write there."""
    try:
        body = unchecked(read_file(path, _MAX_MAP_BYTES))
        magic, digest, kind, size, fragment_bytes, deadline_s = _MAP.unpack_from(body)
    except (OSError, ValueError, struct.error):
        return None
    held = int.from_bytes(body[_MAP.size :], "little")
    if magic != _MAP_MAGIC or fragment_bytes < 1 or digest.hex() != path.stem:
        return None
    count = fragments_of(size, fragment_bytes)
    if count > MAX_FRAGMENTS or held >> count:
        return None
    return Partial(digest, kind, size, fragment_bytes, held, b"", deadline_s)


class Saving:
    """Moves the incoming objects of one session to its spool, and resumes those that it holds at once.
    `share` is charged with the writes. `tell` takes one event for all writes that the disk refuses until one
    succeeds: nothing stored is damaged, the link goes on, and they are tried again."""

    def __init__(
        self, session: Session, spool: Spool, share: PeerShare, tell: Callable[[PortEvent], None]
    ) -> None:
        self._session, self._spool, self._share, self._tell = session, spool, share, tell
        self._dirty_since: dict[bytes, float] = {}  # of each object; inf where there is nothing to save
        self._saved_at = -math.inf  # any of them
        self.not_before = -math.inf
        self._full_told = False
        self.failed = 0
        for held in spool.load():
            session.resume(held)
            self._dirty_since[held.digest] = math.inf

    def whole(self, digest: bytes, now: float) -> None:
        """Save an object before the application hears of it, or later if its peer writes above its share."""
        if self._share.may_hurry(now):
            self.settle(now)  # evicted objects make room for it
            self._save_one(self._session.incoming[digest], now)

    def corrupt(self, digest: bytes, now: float) -> None:
        """Drop the object. If the disk keeps some of it all the same, its digest shows the damage again."""
        self._try(digest, partial(self._spool.drop, digest), now)

    def settle(self, now: float) -> None:
        """Drop the bytes of objects that are no longer incoming, and remember those that were accepted."""
        ended = self._dirty_since.keys() - self._session.incoming.keys()
        if not ended:
            return
        done = [digest for digest in self._session.done if digest in ended]  # in order
        for digest in ended.difference(done):
            held = self._spool.holds(digest)
            if self._try(digest, partial(self._spool.drop, digest), now):  # else again later
                del self._dirty_since[digest]
                self._share.wrote(now, int(held))
        may_finish = done and now >= self.not_before
        if may_finish and self._try(done[0], partial(self._spool.finish, *done), now):
            for digest in done:  # until then a restart may deliver them once more
                del self._dirty_since[digest]
            self._share.wrote(now, len(done))

    def save(self, now: float) -> None:
        if now < self.not_before:
            return
        for incoming in list(self._session.incoming.values()):
            if self._due_at(incoming, now) <= now:
                self._save_one(incoming, now)

    def save_all(self, now: float) -> None:
        self.not_before = -math.inf
        self.settle(now)
        for incoming in list(self._session.incoming.values()):
            self._save_one(incoming, now)

    def wakeup(self, now: float) -> float:
        dues = (self._due_at(incoming, now) for incoming in self._session.incoming.values())
        return max(min(dues, default=math.inf), self.not_before)

    def _due_at(self, incoming: Incoming, now: float) -> float:
        """An object is saved by shares of its size, neither too often, over all objects, nor too late."""
        if not incoming.dirty:
            self._dirty_since[incoming.digest] = math.inf
            return math.inf
        since = min(self._dirty_since.get(incoming.digest, math.inf), now)
        self._dirty_since[incoming.digest] = since
        dirty_bytes = incoming.dirty.bit_count() * incoming.fragment_bytes
        if dirty_bytes >= max(incoming.fragment_bytes, incoming.size / SAVE_SHARE):
            return self._saved_at + SAVE_GAP_S
        return max(since + SAVE_WITHIN_S, self._saved_at + SAVE_GAP_S)

    def _save_one(self, incoming: Incoming, now: float) -> None:
        digest = incoming.digest
        self._dirty_since.setdefault(digest, math.inf)
        if incoming.dirty and self._try(digest, partial(self._spool.save, incoming), now):
            self._saved_at, self._dirty_since[digest] = now, math.inf
            self._share.wrote(now)

    def _try(self, digest: bytes, write: Callable[[], None], now: float) -> bool:
        try:
            write()
        except OSError as error:
            self.not_before = now + SAVE_AGAIN_S
            self.failed += 1
            told, self._full_told = self._full_told, True
            if not told:
                refused = {"object": digest.hex(), "path": str(self._spool.folder), "why": str(error)}
                self._tell(PortEvent("disk-full", refused, logging.ERROR))
            return False
        self._full_told = False
        return True
