"""Whether a link is up, and how many bytes one end may still send on it, across restarts.

A link with a contact plan has a clock that stops between contacts, and a session lives on it: deadlines and
all waiting times count seconds of contact. Without a plan the clock is the session's.

A quota bounds the bytes of one contact, and of any 24 hours. Objects leave the last sixteenth of it to
answers, questions and messages, so that an end at its limit can still receive an object and commands."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from onboard.wire.events import QuotaUsage

if TYPE_CHECKING:  # `config`, from which it is made, names Window
    from onboard.wire.medium.medium_access import MediumAccess

DAY_S = 86_400.0
_LATE_S = 1e-6  # a time converted to the link's clock and back is not exact; waking this late costs nothing
_BIN_S = DAY_S / 96  # the bytes of a quarter of an hour are forgotten together
_KEPT = 16  # 1/16 of either quota is kept from objects
_AHEAD = 32  # 1/32 of the smaller quota is counted ahead; a record at half of that makes 64 writes of a quota


@dataclass(frozen=True, slots=True)
class Window:
    """One contact (s, on the session's clock). `rate_bps`: of the line, both ways; None for the link's."""

    rise: float
    set: float
    rate_bps: float | None = None

    def __post_init__(self) -> None:
        if not -math.inf < self.rise < self.set < math.inf:
            raise ValueError(f"a contact from {self.rise} s to {self.set} s")
        if self.rate_bps is not None and not 0 < self.rate_bps < math.inf:
            raise ValueError(f"a contact at {self.rate_bps} bit/s")


class Contacts:
    """The windows of one link in order, or None for a link that is always up. `up_s`: what the link's clock
    says at `now`. Raises ValueError for windows that overlap."""

    def __init__(self, windows: Iterable[Window] | None, now: float = 0.0, up_s: float = 0.0) -> None:
        self._windows = sorted(windows or (), key=lambda window: window.rise)
        self._always = windows is None
        for one, after in pairwise(self._windows):
            if after.rise < one.set:
                raise ValueError(f"the contact from {after.rise} s begins before the one to {one.set} s ends")
        self._sets = [window.set for window in self._windows]
        # The link's clock at each rise, and at the end.
        self._up_s = [0.0, *accumulate(window.set - window.rise for window in self._windows)]
        offset_s = up_s - self.up_s(now)
        self._up_s = [offset_s + before for before in self._up_s]

    def _next(self, now: float) -> tuple[int, Window | None]:
        """Return the number of the open window, or else the next one, and the window."""
        nth = bisect_right(self._sets, now)
        return nth, self._windows[nth] if nth < len(self._windows) else None

    def window(self, now: float) -> Window | None:
        """Return the open window; None between contacts, and on a link that is always up."""
        _, window = self._next(now)
        return window if window is not None and window.rise <= now else None

    def is_up(self, now: float) -> bool:
        return self._always or self.window(now) is not None

    def rises_at(self, now: float) -> float:
        """Return when the link is up: `now` in contact, else the next window's start; inf for never."""
        if self._always:
            return now
        _, window = self._next(now)
        return math.inf if window is None else max(now, window.rise)

    def closes_at(self, now: float) -> float:
        """Return when the open contact ends; inf if none is open, or without a plan."""
        window = self.window(now)
        return math.inf if window is None else window.set

    def up_s(self, now: float) -> float:
        """Return the time on the link's clock."""
        if self._always:
            return self._up_s[0] + now
        nth, window = self._next(now)
        return self._up_s[nth] + (0.0 if window is None else max(0.0, now - window.rise))

    def closes_up_s(self, now: float) -> float:
        """Return the link's clock at the open window's end; between contacts, at present."""
        return math.inf if self._always else self._up_s[self._next(now)[0] + self.is_up(now)]

    def at(self, up_s: float) -> float:
        """Return when the link's clock passes `up_s`; inf for never."""
        if self._always or math.isinf(up_s):
            return up_s - self._up_s[0]
        nth = max(bisect_right(self._up_s, up_s) - 1, 0)
        if nth == len(self._windows):
            return math.inf
        return self._windows[nth].rise + max(up_s - self._up_s[nth], 0.0) + _LATE_S

    def after(self, since: float, contact_s: float) -> float:
        """Return when `contact_s` of contact have passed since then; inf where the plan ends before."""
        return self.at(self.up_s(since) + contact_s)

    def when(self, now: float, contact_s: float) -> tuple[float, int | None]:
        """Return the seconds until `contact_s` more of contact have passed, and the number of windows, an
        open one included; None where the plan ends before."""
        if contact_s == 0:
            return 0.0, None
        up_s = self.up_s(now) + contact_s
        last = bisect_left(self._up_s, up_s)
        is_beyond = self._always or last == len(self._up_s)
        return self.at(up_s) - now, None if is_beyond else max(last - self._next(now)[0], 0)


class ByteQuota:
    """What one end may still send. `per_contact_bytes`, `per_day_bytes`: on the wire, inf for no limit.
    `spent`: the last record of an earlier run. `now`: this run's start.

    A record counts ahead, and the next is due before that is used up, so an end that starts from its last
    record counts up to 1/32 of the quota too much, and never too little. While it was off its 24 hours stood
    still, and a contact open at its start is the one that it was in. Times are the session's, contact or not.
    `contact_ends`: the end of the open or the last contact. Raises ValueError for a quota of nothing."""

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
        self.contact_ends = math.inf
        self._started: float | None = now  # until a contact is known
        # Begin, bytes; of 24 hours, whatever age a record claims: what is in the future would never be over.
        self._bins = deque((now - min(max(0.0, age_s), DAY_S), sent) for age_s, sent in spent.day)
        self._day_bytes = sum(sent for _, sent in self._bins)
        self._most_ahead_bytes = min(per_contact_bytes, per_day_bytes) / _AHEAD
        self._ahead_bytes = 0.0  # that the last record counts and that have not left
        self._recorded_at = now
        self._over_recorded = True  # that the last contact is over

    def contact(self, window: Window) -> None:
        """Note that a contact begins, or is the first one known."""
        if self._started is None or window.rise > self._started:
            self._contact_bytes = 0
        self._started = None
        self._over_recorded = False
        self.contact_ends = window.set

    def spend(self, count_bytes: int, now: float) -> None:
        self._contact_bytes += count_bytes
        self._ahead_bytes -= count_bytes
        if self._per_day_bytes == math.inf:
            return
        self._forget(now)
        _add(self._bins, count_bytes, now)
        self._day_bytes += count_bytes

    def left_bytes(self, now: float) -> float:
        of_day = sum(sent for begin, sent in self._bins if begin + _BIN_S + DAY_S > now)
        return max(0.0, min(self._per_contact_bytes - self._contact_bytes, self._per_day_bytes - of_day))

    def opens_at(self, now: float, count_bytes: int, *, bulk: bool = False) -> float:
        """Return when `count_bytes` may leave, from `now` on: `now`, the contact's end, or 24 hours after
        enough was sent; inf for never. `bulk`: they belong to an object."""
        contact_bytes = count_bytes + (self._per_contact_bytes / _KEPT if bulk else 0.0)
        day_bytes = count_bytes + (self._per_day_bytes / _KEPT if bulk else 0.0)
        is_enough = contact_bytes <= self._per_contact_bytes - self._contact_bytes
        at = now if is_enough else max(now, self.contact_ends)
        left = self._per_day_bytes - self._day_bytes
        for begin, sent in self._bins:
            if day_bytes <= left:
                return at
            left += sent
            at = max(at, begin + _BIN_S + DAY_S)
        return at if day_bytes <= left else math.inf

    def record(self, now: float) -> QuotaUsage | None:
        """Return the record to keep for the next start, if one is due: when most of what the last one counted
        ahead has left, when a contact is over, and each quarter of an hour. None without limits."""
        if not self._is_due(now):
            return None
        self._forget(now)
        is_over = now >= self.contact_ends
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
        if now >= self.contact_ends and not self._over_recorded:
            return True
        if self._bins and now >= self._recorded_at + _BIN_S:
            return True
        least_bytes = self._most_ahead_bytes / 2
        return self._ahead_bytes < least_bytes and self._ahead_bytes + 1 <= self.left_bytes(now)

    def _forget(self, now: float) -> None:
        while self._bins and self._bins[0][0] + _BIN_S + DAY_S <= now:
            self._day_bytes -= self._bins.popleft()[1]


def _add(bins: deque[tuple[float, int]], count_bytes: int, now: float) -> None:
    """Add bytes to the youngest bin, or to a new one a quarter of an hour after that began."""
    begin, sent = now, 0
    if bins and now < bins[-1][0] + _BIN_S:
        begin, sent = bins.pop()
    bins.append((begin, sent + count_bytes))


class ContactGate:
    """Lets one end send only in `contacts` and within its `quota`, and tells `air` each contact's rate and
    end. `bulk_at`: when, on the link's clock, the quota lets bulk leave; -inf for at once."""

    def __init__(
        self, air: MediumAccess, windows: Iterable[Window] | None, quota: ByteQuota, now: float
    ) -> None:
        self._air, self._started = air, now
        self.contacts, self.quota = Contacts(windows, now, now), quota
        self._window: Window | None = None
        self.bulk_at = -math.inf

    def plan(self, windows: Iterable[Window] | None, now: float) -> None:
        """Replace the plan; a contact open before and after is the same. Raises ValueError as Contacts."""
        up_s = self.link_s(now)
        was_up = self.contacts.is_up(now)
        self.contacts = Contacts(windows, now, up_s)
        window = self.contacts.window(now)
        if was_up and window is not None and self._window is not None:
            self._window = window
            self._air.timing.run_at(window.rate_bps)
            self.quota.contact_ends = window.set
        elif window is None:
            self._air.timing.run_at(None)

    def is_open(self, now: float) -> bool:
        """Return whether this end may send a frame."""
        frame_bytes = self._air.timing.frame_bytes
        return self.contacts.is_up(now) and self.quota.opens_at(now, frame_bytes) <= now

    def link_s(self, now: float) -> float:
        """Return the time on the link's clock, having taken in a contact that began meanwhile."""
        window = self.contacts.window(now)
        if window is not None and window is not self._window:
            self._window = window
            self._air.timing.run_at(window.rate_bps)
            self.quota.contact(window)
            if window.rise > self._started:
                self._air.contact_begins()
        elif not self.contacts.is_up(now):
            self.quota.contact_ends = now
        self._air.closes_at = self.contacts.closes_up_s(now)
        bulk_at = self.quota.opens_at(now, self._air.timing.frame_bytes, bulk=True)
        self.bulk_at = -math.inf if bulk_at <= now else self.contacts.up_s(bulk_at)
        return self.contacts.up_s(now)

    def wakes_at(self, leaves: float, ticks: float, now: float) -> float:
        """Return when the link's clock passes `ticks`, or passes `leaves` and this end may send."""
        at = max(now, self.contacts.at(leaves))
        if not math.isinf(at):
            at = self.contacts.rises_at(self.quota.opens_at(at, self._air.timing.frame_bytes))
        return min(at, max(now, self.contacts.at(ticks)))
