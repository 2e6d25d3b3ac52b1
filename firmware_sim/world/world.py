"""One virtual clock: it jumps from one thing that somebody has to do to the next, and nobody waits.

What takes part is a `Party`: a node, a ground station, a link. A party says when it next has something to
do, and does it when that time comes; whoever gives another one something to do sooner wakes it. Of two that
are due at the same time, the one that was scheduled first acts first, so that a seed repeats a run.
"""

from __future__ import annotations

import heapq
import math
from hashlib import blake2s
from typing import Protocol

# Far less than a bit of any link, far more than the last place of a clock that has run for years: a wake-up
# that rounding puts at this very moment still moves the clock.
TICK_S = 1e-6


def digest_of(*what: object) -> bytes:
    """32 B that differ where `what` does: a key, or a seed for what happens in a world."""
    return blake2s(" ".join(map(str, what)).encode()).digest()


class Party(Protocol):
    """Whatever takes part in a world. Times are seconds of its clock."""

    def act(self, now: float) -> None:
        """Does all that is due now."""

    def wakeup(self, now: float) -> float:
        """When `act` next has something to do, if nobody wakes the party before; inf for never."""


class World:
    """The clock, at `now`, and all parties by when they are due."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._queue: list[tuple[float, int, Party]] = []  # a heap; what is out of date is passed over
        self._due: dict[Party, tuple[float, int]] = {}
        self._scheduled = 0

    def add(self, party: Party) -> None:
        """The party takes part from now on."""
        self.schedule(party, self.now)

    def remove(self, party: Party) -> None:
        """The party takes no part any more."""
        self._due.pop(party, None)

    def wake(self, party: Party, at: float = -math.inf) -> None:
        """A party that takes part is due at that time at the latest; by default at once."""
        due = self._due.get(party)
        if due is not None and at < due[0]:
            self.schedule(party, max(at, self.now))

    def schedule(self, party: Party, at: float) -> None:
        """The party is due at that time, and not before."""
        self._due[party] = at, self._scheduled
        if at < math.inf:
            heapq.heappush(self._queue, (at, self._scheduled, party))
        self._scheduled += 1

    def advance(self, until: float = math.inf) -> bool:
        """Goes to the next time at which a party is due, and that party acts. Returns False, with the clock
        at `until`, where none is due by then."""
        while self._queue and self._due.get(self._queue[0][2]) != self._queue[0][:2]:
            heapq.heappop(self._queue)
        if not self._queue or self._queue[0][0] > until:
            self.now = max(self.now, until)
            return False
        at, order, party = heapq.heappop(self._queue)
        self.now = max(self.now, at)
        party.act(self.now)
        if self._due.get(party) == (at, order):  # else somebody has woken it meanwhile, or it has left
            self.schedule(party, max(self.now + TICK_S, party.wakeup(self.now)))
        return True
