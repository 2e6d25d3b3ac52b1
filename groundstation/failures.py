"""What is told of a database that cannot be written: each reason once and every hour, and when it is over."""

from __future__ import annotations

import logging

from groundstation.store import StoreBusy, StoreError
from onboard.log import say

log = logging.getLogger(__name__)

RETRY_S = 5.0  # after a write that failed, such as on a full disk
BUSY_RETRY_S = 0.5  # while another program holds the database
TELL_AGAIN_S = 3600.0
MOST_REASONS = 4  # told in an hour


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
