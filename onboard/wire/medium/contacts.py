"""Contact windows, and the link's clock: it runs in contact and stands still between.

A session lives on that clock, so deadlines, silence and every other waiting time count seconds of contact,
and a transfer goes on in the next window as if there had been nothing between. Without a plan the link is
always up, and its clock is the session's.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

_LATE_S = 1e-6  # a time that went to the link's clock and back is not exact; waking late by this is no loss


@dataclass(frozen=True, slots=True)
class Window:
    """One contact, from `rise` to `set` (s, on the session's clock). rate_bps: line rate of both directions
    in it, None for the link's own."""

    rise: float
    set: float
    rate_bps: float | None = None

    def __post_init__(self) -> None:
        if not -math.inf < self.rise < self.set < math.inf:
            raise ValueError(f"a contact from {self.rise} s to {self.set} s")
        if self.rate_bps is not None and not 0 < self.rate_bps < math.inf:
            raise ValueError(f"a contact at {self.rate_bps} bit/s")


class Contacts:
    """The windows of one link in order, or None for a link that is always up.

    now, up_s: what the link's clock says at that time. Raises ValueError for windows that overlap.
    """

    def __init__(self, windows: Iterable[Window] | None, now: float = 0.0, up_s: float = 0.0) -> None:
        self._windows = sorted(windows or (), key=lambda window: window.rise)
        self._always = windows is None
        for one, after in pairwise(self._windows):
            if after.rise < one.set:
                raise ValueError(f"the contact from {after.rise} s begins before the one to {one.set} s ends")
        self._sets = [window.set for window in self._windows]
        self._up_s = [0.0, *accumulate(window.set - window.rise for window in self._windows)]
        offset_s = up_s - self.up_s(now)
        self._up_s = [
            offset_s + before for before in self._up_s
        ]  # the link's clock at each rise, and the end

    def window(self, now: float) -> Window | None:
        """The window that is open; None between contacts, and on a link that is always up."""
        nth = bisect_right(self._sets, now)
        return self._windows[nth] if nth < len(self._windows) and self._windows[nth].rise <= now else None

    def is_up(self, now: float) -> bool:
        """Whether the link carries anything."""
        return self._always or self.window(now) is not None

    def rises_at(self, now: float) -> float:
        """The time from which the link is up: `now` in contact, else the start of the next one; inf for
        never."""
        nth = bisect_right(self._sets, now)
        if self._always:
            return now
        return max(now, self._windows[nth].rise) if nth < len(self._windows) else math.inf

    def up_s(self, now: float) -> float:
        """The time on the link's clock."""
        if self._always:
            return self._up_s[0] + now
        nth = bisect_right(self._sets, now)
        return self._up_s[nth] + (
            max(0.0, now - self._windows[nth].rise) if nth < len(self._windows) else 0.0
        )

    def closes_up_s(self, now: float) -> float:
        """The time on the link's clock at which the open window closes; between contacts, the present one."""
        return math.inf if self._always else self._up_s[bisect_right(self._sets, now) + self.is_up(now)]

    def at(self, up_s: float) -> float:
        """When the link's clock goes on from `up_s`; inf for never."""
        if self._always or math.isinf(up_s):
            return up_s - self._up_s[0]
        nth = max(bisect_right(self._up_s, up_s) - 1, 0)
        if nth == len(self._windows):
            return math.inf
        return self._windows[nth].rise + max(up_s - self._up_s[nth], 0.0) + _LATE_S

    def passes(self, now: float, up_s: float) -> int | None:
        """The number of windows, an open one included, until the link's clock gets to `up_s`; None where the
        plan does not reach so far, or there is none."""
        last = bisect_left(self._up_s, up_s)
        if self._always or last == len(self._up_s):
            return None
        return max(last - bisect_right(self._sets, now), 0)

    def when(self, now: float, contact_s: float) -> tuple[float, int | None]:
        """The seconds until `contact_s` more of contact have passed, and the number of windows; see `at` and
        `passes`."""
        if contact_s == 0:
            return 0.0, None
        up_s = self.up_s(now) + contact_s
        return self.at(up_s) - now, self.passes(now, up_s)
