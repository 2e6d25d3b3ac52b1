"""How many bytes one end may put on the air: of a contact, and of any 24 hours.

Objects leave the last sixteenth to answers, questions and messages: an end that may send no more of an object
can still take one, and be commanded.
"""

from __future__ import annotations

import math
from collections import deque

DAY_S = 86_400.0
_BIN_S = DAY_S / 96  # what was sent within a quarter of an hour is forgotten together
_KEPT = 16  # 1/16 of either allowance is not for objects


class Allowance:
    """per_contact_bytes, per_day_bytes: on the wire, framing included; inf for as many as the link carries.

    Times are the session's, contact or not. Raises ValueError for an allowance of nothing.
    """

    def __init__(self, per_contact_bytes: float, per_day_bytes: float) -> None:
        if not per_contact_bytes > 0 or not per_day_bytes > 0:
            raise ValueError(f"{per_contact_bytes} B a contact, {per_day_bytes} B a day: must be more than 0")
        self._per_contact_bytes, self._per_day_bytes = per_contact_bytes, per_day_bytes
        self._contact_bytes = 0
        self._contact_ends = math.inf
        self._bins: deque[tuple[float, int]] = deque()  # begin, bytes sent; of the last 24 hours
        self._day_bytes = 0

    def contact(self, ends: float) -> None:
        """A new contact begins."""
        self._contact_bytes, self._contact_ends = 0, ends

    def spend(self, count_bytes: int, now: float) -> None:
        """So many bytes leave."""
        self._contact_bytes += count_bytes
        if self._per_day_bytes == math.inf:
            return
        while self._bins and self._bins[0][0] + _BIN_S + DAY_S <= now:
            self._day_bytes -= self._bins.popleft()[1]
        if self._bins and now < self._bins[-1][0] + _BIN_S:
            begin, sent = self._bins.pop()
            self._bins.append((begin, sent + count_bytes))
        else:
            self._bins.append((now, count_bytes))
        self._day_bytes += count_bytes

    def left_bytes(self, now: float) -> float:
        """What may still leave now."""
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

    @property
    def _of_contact(self) -> float:
        return self._per_contact_bytes - self._contact_bytes
