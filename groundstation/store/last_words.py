"""The boards' latest health reports, for whoever looks: stored seldom, however often they arrive.

A report costs its sender 100 B, and would cost the ground a disk barrier. Nothing depends on it: a kill loses
the last seconds of reports at most, and boards repeat them within a minute.
"""

from __future__ import annotations

import math
from dataclasses import asdict

from groundstation.store.store import Store
from onboard.mission.health import Health

EVERY_S = 5.0
Words = tuple[float, Health]
"""The time of day, and the node's health then."""


class LastWords:
    """The latest report of each board, until it is stored."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._heard: dict[int, Words] = {}
        self._stored_at = -math.inf

    def hear(self, node: int, words: Words, now: float) -> None:
        """Takes a report, and stores all that wait unless EVERY_S has not passed yet. Raises StoreError,
        after which they still wait."""
        self._heard[node] = words
        self.store(now)

    def store(self, now: float, *, at_once: bool = False) -> None:
        """Stores all reports that wait, in one transaction, `at_once` or EVERY_S after the last time. Raises
        StoreError."""
        if self._heard and (at_once or now >= self._stored_at + EVERY_S):
            self._stored_at = now
            heard = self._heard.items()
            self._store.hear(*((node, at, asdict(health)) for node, (at, health) in heard))
            self._heard.clear()
