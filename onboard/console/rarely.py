"""Limits the rate of log lines that somebody else can provoke: a burst, then few, and all are counted."""

from __future__ import annotations

from collections.abc import Hashable

BURST = 20
EVERY_S = 10.0  # one after the burst
_MOST_KINDS = 4096


class Rarely:
    """A leaky bucket for each kind of line."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, tuple[float, float, int]] = {}  # level, when, and how many were not said

    def may(self, kind: Hashable, now: float) -> int | None:
        """None if this line is to be suppressed; else how many of its kind were suppressed since the last
        one."""
        level, at, unsaid = self._kinds.pop(kind, (0.0, now, 0))
        level = max(0.0, level - (now - at) / EVERY_S)
        says = level <= BURST - 1
        self._kinds[kind] = (level + 1, now, 0) if says else (level, now, unsaid + 1)
        if len(self._kinds) > _MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]  # the one that was wanted longest ago
        return unsaid if says else None
