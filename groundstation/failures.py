"""What is told of a database that cannot be written, and of a mission that cannot go on: each reason once and
every hour, and when it is over."""

from __future__ import annotations

import logging
from typing import Any

from groundstation.store.store import StoreBusy, StoreError
from onboard.console.errors import where
from onboard.console.log import say

log = logging.getLogger(__name__)

RETRY_S = 5.0  # after a write that failed, such as on a full disk
BUSY_RETRY_S = 0.5  # while another program holds the database
TELL_AGAIN_S = 3600.0
MOST_REASONS = 4  # told in an hour
FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 300.0  # of a mission that met an error which nobody foresaw
LASTING = 3  # times in one round: it will not go away by itself


class StoreFailures:
    """The failures since the last write that succeeded."""

    def __init__(self) -> None:
        self._reasons = set[str]()
        self._told_s = 0.0
        self._times = 0

    def failed(self, error: StoreError, now: float) -> float:
        """Tells of a failure what is new; returns when to try again."""
        retry_s = BUSY_RETRY_S if isinstance(error, StoreBusy) else RETRY_S
        why = str(error)
        self._times += 1
        if self._reasons and now - self._told_s >= TELL_AGAIN_S:
            self._reasons.clear()
        if why not in self._reasons and len(self._reasons) < MOST_REASONS:
            say(log, "store-failed", level=logging.ERROR, why=why, retry_s=retry_s, times=self._times)
            self._reasons.add(why)
            self._told_s, self._times = now, 0
        return now + retry_s

    def over(self) -> None:
        """Everything that waited is stored."""
        if self._reasons:
            say(log, "store-works", failed=self._times)
            self._reasons.clear()
            self._times = 0


class Setbacks:
    """Errors that nobody foresaw, in the round that is open: each is followed by a pause, ever longer."""

    def __init__(self) -> None:
        self.again_at = 0.0  # nothing is tried before
        self._reasons = set[str]()
        self._pause_s, self._told_s, self._times = FIRST_PAUSE_S, 0.0, 0
        self._lasts = 0

    def happened(self, error: Exception, now: float, **fields: Any) -> None:
        """Tells of one that is new, and puts off the next try."""
        why, pause_s = where(error), self._pause_s
        self.again_at, self._pause_s = now + pause_s, min(2 * pause_s, LAST_PAUSE_S)
        self._times += 1
        # What the machine lacks is no fault of what is stored.
        self._lasts = 0 if isinstance(error, MemoryError | OSError) else self._lasts + 1
        if self._reasons and now - self._told_s >= TELL_AGAIN_S:
            self._reasons.clear()
        if why not in self._reasons and len(self._reasons) < MOST_REASONS:
            say(
                log, "round-failed", level=logging.ERROR, why=why, again_in_s=pause_s, times=self._times,
                **fields,
            )  # fmt: skip
            self._reasons.add(why)
            self._told_s, self._times = now, 0

    @property
    def is_lasting(self) -> bool:
        """Whether it happens again and again, for a reason that may be stored."""
        return self._lasts > 0 and self._lasts % LASTING == 0

    def over(self) -> None:
        """A round was closed."""
        self._reasons.clear()
        self._pause_s, self._times, self._lasts = FIRST_PAUSE_S, 0, 0
