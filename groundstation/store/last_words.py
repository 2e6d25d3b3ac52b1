"""What boards said of themselves last, for whoever looks: stored seldom, however often they say it.

A message costs its sender 100 B, and would cost the ground a barrier of the disk. Nothing depends on it: a
kill takes the last seconds of it at most, and they are said again within a minute.
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
    """Of each board the last, until it is stored."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._heard: dict[int, Words] = {}
        self._stored_at = -math.inf

    def hear(self, node: int, words: Words, now: float) -> None:
        """Stores them where nothing was stored for EVERY_S. Raises StoreError; then they wait."""
        self._heard[node] = words
        self.store(now)

    def store(self, now: float, *, at_once: bool = False) -> None:
        """All that wait in one barrier, at once or EVERY_S after the last one. As `hear`."""
        if self._heard and (at_once or now >= self._stored_at + EVERY_S):
            self._stored_at = now
            heard = self._heard.items()
            self._store.hear(*((node, at, asdict(health)) for node, (at, health) in heard))
            self._heard.clear()
