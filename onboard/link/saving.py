"""Decides when received data is written to the disk: soon enough to last, seldom enough for an SD card."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onboard.link.share import PeerShare
from onboard.link.spool import Spool
from onboard.wire.session import Session
from onboard.wire.transfer.incoming import Incoming

SAVE_SHARE = 128  # at most this part of an object, in bytes, is lost by a kill: 1 %
SAVE_GAP_S = 0.25  # an fsync on an SD card takes up to this long, so fast links save by time
SAVE_WITHIN_S = 5.0  # and slow links lose at most this much of what they heard
SAVE_AGAIN_S = 5.0  # after the disk was full


@dataclass(frozen=True, slots=True)
class SpoolFull:
    """The spool at `path` cannot be written, most often because the disk is full, with what is held of the
    object. Nothing that was stored is damaged, the link goes on, and the write is tried again; told once
    until one succeeds."""

    path: Path
    digest: bytes
    error: OSError


Tell = Callable[[SpoolFull], object]


class Saving:
    """The incoming objects of one session, and where they lie in its spool. What the spool holds is resumed
    at once. `share` is charged with what is written."""

    def __init__(self, session: Session, spool: Spool, share: PeerShare) -> None:
        self._session, self._spool, self._share = session, spool, share
        self._dirty_since: dict[bytes, float] = {}  # of each object; inf where there is nothing to save
        self._saved_at = -math.inf  # any of them
        self.not_before = -math.inf
        self._full_told = False
        self.failed = 0
        for held in spool.load():
            session.resume(held)
            self._dirty_since[held.digest] = math.inf

    def whole(self, digest: bytes, now: float, tell: Tell) -> None:
        """An object is on the disk before the application hears of it; of a peer that makes this end write
        more than its share, some time later."""
        if self._share.may_hurry(now):
            self.settle(now, tell)  # what gave way to it leaves the room for it
            self._save_one(self._session.incoming[digest], now, tell)

    def corrupt(self, digest: bytes, now: float, tell: Tell) -> None:
        """Drops the object. If the disk keeps some of it all the same, its digest shows the damage again."""
        self._try(digest, partial(self._spool.drop, digest), now, tell)

    def settle(self, now: float, tell: Tell) -> None:
        """Drops the bytes of objects that are no longer incoming, and remembers those that were accepted."""
        ended = self._dirty_since.keys() - self._session.incoming.keys()
        if not ended:
            return
        done = [digest for digest in self._session.done if digest in ended]  # in the order in which they were
        for digest in ended.difference(done):
            held = self._spool.holds(digest)
            if self._try(digest, partial(self._spool.drop, digest), now, tell):  # else again later
                del self._dirty_since[digest]
                self._share.wrote(now, int(held))
        if (
            done
            and now >= self.not_before
            and self._try(done[0], partial(self._spool.finish, *done), now, tell)
        ):
            for digest in done:  # until then a restart may deliver them once more
                del self._dirty_since[digest]
            self._share.wrote(now, len(done))

    def save(self, now: float, tell: Tell) -> None:
        """Writes the objects that are due."""
        if now < self.not_before:
            return
        for incoming in list(self._session.incoming.values()):
            if self._due_at(incoming, now) <= now:
                self._save_one(incoming, now, tell)

    def save_all(self, now: float, tell: Tell) -> None:
        """Writes all incoming objects, as the program ends."""
        self.not_before = -math.inf
        self.settle(now, tell)
        for incoming in list(self._session.incoming.values()):
            self._save_one(incoming, now, tell)

    def wakeup(self, now: float) -> float:
        """Returns when `save` next has something to do."""
        dues = (self._due_at(incoming, now) for incoming in self._session.incoming.values())
        return max(min(dues, default=math.inf), self.not_before)

    def _due_at(self, incoming: Incoming, now: float) -> float:
        """A share of the object at a time, but neither too often, however many objects there are, nor too
        late."""
        if not incoming.dirty:
            self._dirty_since[incoming.digest] = math.inf
            return math.inf
        since = min(self._dirty_since.get(incoming.digest, math.inf), now)
        self._dirty_since[incoming.digest] = since
        dirty_bytes = len(incoming.dirty) * incoming.fragment_bytes
        if dirty_bytes >= max(incoming.fragment_bytes, incoming.size / SAVE_SHARE):
            return self._saved_at + SAVE_GAP_S
        return max(since + SAVE_WITHIN_S, self._saved_at + SAVE_GAP_S)

    def _save_one(self, incoming: Incoming, now: float, tell: Tell) -> None:
        digest = incoming.digest
        self._dirty_since.setdefault(digest, math.inf)
        if incoming.dirty and self._try(digest, partial(self._spool.save, incoming), now, tell):
            self._saved_at, self._dirty_since[digest] = now, math.inf
            self._share.wrote(now)

    def _try(self, digest: bytes, write: Callable[[], None], now: float, tell: Tell) -> bool:
        try:
            write()
        except OSError as error:
            self.not_before = now + SAVE_AGAIN_S
            self.failed += 1
            told, self._full_told = self._full_told, True
            if not told:
                tell(SpoolFull(self._spool.folder, digest, error))
            return False
        self._full_told = False
        return True
