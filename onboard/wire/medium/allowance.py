"""The quota of bytes that one end may put on the air: in a contact, and in any 24 hours, whatever restarts.

Objects leave the last sixteenth to answers, questions and messages: an end that may send no more of an object
can still take one, and be commanded.

A record of what was spent counts ahead, and the next one is due before that is used up: an end that starts
with its last record may count too much, by a thirty-second of what is allowed, and never too little. It need
not know for how long it was off: its 24 hours stood still then, and a contact that is open at its start is
taken for the one that it was in.
"""

from __future__ import annotations

import math
from collections import deque

from onboard.wire.events import QuotaUsage
from onboard.wire.medium.contacts import Window

DAY_S = 86_400.0
_BIN_S = DAY_S / 96  # what was sent within a quarter of an hour is forgotten together
_KEPT = 16  # 1/16 of either allowance is not for objects
_AHEAD = 32  # 1/32 of the smaller one is counted ahead; half of that, in 64 writes, is a day's or a contact's


class ByteQuota:
    """What one end may still send. per_contact_bytes, per_day_bytes: on the wire, framing included; inf for
    as many as the link carries. spent: the last record of an earlier run. now: this run's start.

    Times are the session's, contact or not. Raises ValueError for an allowance of nothing.
    """

    def __init__(
        self,
        per_contact_bytes: float,
        per_day_bytes: float,
        spent: QuotaUsage | None = None,
        now: float = 0.0,
    ) -> None:
        if not per_contact_bytes > 0 or not per_day_bytes > 0:
            raise ValueError(f"{per_contact_bytes} B a contact, {per_day_bytes} B a day: must be more than 0")
        spent = spent or QuotaUsage()
        self._per_contact_bytes, self._per_day_bytes = per_contact_bytes, per_day_bytes
        self._contact_bytes = spent.contact_bytes
        self._contact_ends = math.inf
        self._started: float | None = now  # until a contact is known
        # Begin, bytes; of 24 hours, whatever age a record claims: what is in the future would never be over.
        self._bins = deque((now - min(max(0.0, age_s), DAY_S), sent) for age_s, sent in spent.day)
        self._day_bytes = sum(sent for _, sent in self._bins)
        self._most_ahead_bytes = min(per_contact_bytes, per_day_bytes) / _AHEAD
        self._ahead_bytes = 0.0  # that the last record counts and that have not left
        self._recorded_at = now
        self._over_recorded = True  # that the last contact is over

    def contact(self, window: Window) -> None:
        """A contact begins, or it is the first one that is known."""
        if self._started is None or window.rise > self._started:
            self._contact_bytes = 0
        self._started = None
        self._over_recorded = False
        self.ends(window.set)

    def ends(self, at: float) -> None:
        """The contact that is open will be over at `at`; a time that has passed says that none is open."""
        self._contact_ends = at

    def spend(self, count_bytes: int, now: float) -> None:
        """Count bytes that leave."""
        self._contact_bytes += count_bytes
        self._ahead_bytes -= count_bytes
        if self._per_day_bytes == math.inf:
            return
        self._forget(now)
        _add(self._bins, count_bytes, now)
        self._day_bytes += count_bytes

    def left_bytes(self, now: float) -> float:
        """The bytes that may still leave now."""
        of_day = sum(sent for begin, sent in self._bins if begin + _BIN_S + DAY_S > now)
        return max(0.0, min(self._of_contact, self._per_day_bytes - of_day))

    def opens_at(self, now: float, count_bytes: int, *, bulk: bool = False) -> float:
        """The earliest time from `now` on at which so many bytes may leave: `now`, the contact's end, or when
        enough was sent 24 hours ago; inf for never. bulk: they are of an object."""
        contact_bytes = count_bytes + (self._per_contact_bytes / _KEPT if bulk else 0.0)
        day_bytes = count_bytes + (self._per_day_bytes / _KEPT if bulk else 0.0)
        at = now if contact_bytes <= self._of_contact else max(now, self._contact_ends)
        left = self._per_day_bytes - self._day_bytes
        for begin, sent in self._bins:
            if day_bytes <= left:
                return at
            left += sent
            at = max(at, begin + _BIN_S + DAY_S)
        return at if day_bytes <= left else math.inf

    def record(self, now: float) -> QuotaUsage | None:
        """The record to keep for the next start, if one is due: when most of what the last record counted
        ahead has left, when a contact is over, or when another quarter of an hour is. None is due where
        nothing is bounded."""
        if not self._is_due(now):
            return None
        self._forget(now)
        is_over = now >= self._contact_ends
        ahead_bytes = int(min(self._most_ahead_bytes, self.left_bytes(now)))
        bins = deque(self._bins)
        if self._per_day_bytes < math.inf:
            _add(bins, ahead_bytes, now)
        self._ahead_bytes, self._recorded_at, self._over_recorded = ahead_bytes, now, is_over
        contact_bytes = ahead_bytes + (0 if is_over else self._contact_bytes)
        return QuotaUsage(contact_bytes, tuple((now - begin, sent) for begin, sent in bins))

    def _is_due(self, now: float) -> bool:
        if self._most_ahead_bytes == math.inf:
            return False
        if now >= self._contact_ends and not self._over_recorded:
            return True
        if self._bins and now >= self._recorded_at + _BIN_S:
            return True
        least_bytes = self._most_ahead_bytes / 2
        return self._ahead_bytes < least_bytes and self._ahead_bytes + 1 <= self.left_bytes(now)

    def _forget(self, now: float) -> None:
        """Forget the bytes that are older than 24 hours."""
        while self._bins and self._bins[0][0] + _BIN_S + DAY_S <= now:
            self._day_bytes -= self._bins.popleft()[1]

    @property
    def _of_contact(self) -> float:
        return self._per_contact_bytes - self._contact_bytes


def _add(bins: deque[tuple[float, int]], count_bytes: int, now: float) -> None:
    """Add bytes to the youngest bin, or to a new one when a quarter of an hour has passed since that
    began."""
    begin, sent = now, 0
    if bins and now < bins[-1][0] + _BIN_S:
        begin, sent = bins.pop()
    bins.append((begin, sent + count_bytes))
