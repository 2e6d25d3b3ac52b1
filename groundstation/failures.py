"""Failures of a database or a mission: each reason is logged once, and again every hour."""

from __future__ import annotations

import logging
from typing import Any

from onboard.console.errors import where
from onboard.console.log import say

log = logging.getLogger(__name__)

TELL_AGAIN_S = 3600.0
MOST_REASONS = 4  # told in an hour
FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 300.0  # after an unforeseen error of the mission or of a link
LASTING = 3  # this many in one round are a lasting failure


class ReasonLog:
    """The failures since the last success."""

    def __init__(self) -> None:
        self._reasons = set[str]()
        self._told_s = 0.0
        self._times = 0

    def count(self, why: str, now: float) -> int:
        """Counts a failure; returns how many there were since the last log line, or 0 if this needs none."""
        self._times += 1
        if self._reasons and now - self._told_s >= TELL_AGAIN_S:
            self._reasons.clear()
        if why in self._reasons or len(self._reasons) >= MOST_REASONS:
            return 0
        self._reasons.add(why)
        times, self._told_s, self._times = self._times, now, 0
        return times

    def over(self) -> int | None:
        """Notes a success; returns how many failures were not logged, or None if there was no failure."""
        failed = self._times if self._reasons else None
        self._reasons.clear()
        self._times = 0
        return failed


class Setbacks:
    """Unforeseen errors in the open round, each followed by a longer pause."""

    def __init__(self) -> None:
        self.again_at = 0.0  # nothing is tried before
        self._failures = ReasonLog()
        self._pause_s, self._lasts = FIRST_PAUSE_S, 0

    def happened(self, error: Exception, now: float, **fields: Any) -> None:
        """Logs a new error, and postpones the next attempt."""
        why, pause_s = where(error), self._pause_s
        if times := self._failures.count(why, now):
            told = {"why": why, "again_in_s": pause_s, "times": times, **fields}
            say(log, "round-failed", level=logging.ERROR, **told)
        self.again_at, self._pause_s = now + pause_s, min(2 * pause_s, LAST_PAUSE_S)
        # A lack of memory or disk is no fault of what is stored.
        self._lasts = 0 if isinstance(error, MemoryError | OSError) else self._lasts + 1

    @property
    def is_lasting(self) -> bool:
        """Whether the error keeps recurring, for a reason that may be stored."""
        return self._lasts > 0 and self._lasts % LASTING == 0

    def over(self) -> None:
        self._failures.over()
        self._pause_s, self._lasts = FIRST_PAUSE_S, 0
