"""The gate of a contact plan and a quota of bytes, and the clock that runs in contact alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

from onboard.wire.events import QuotaUsage
from onboard.wire.medium.air import MediumAccess
from onboard.wire.medium.allowance import ByteQuota
from onboard.wire.medium.contacts import Contacts, Window
from onboard.wire.medium.timing import Timing


class ContactGate:
    """The gate of one end that `started` then. It tells `timing` the rate of each contact, and `air` its end.

    `bulk_at`: when on the link's clock the next frame of an object may leave, as far as the allowance goes;
    -inf for whenever the link carries it.
    """

    def __init__(
        self, timing: Timing, air: MediumAccess, contacts: Contacts, allowance: ByteQuota, started: float
    ) -> None:
        self._timing, self._air, self._started = timing, air, started
        self._contacts, self._allowance = contacts, allowance
        self._window: Window | None = None
        self.bulk_at = -math.inf

    def plan(self, windows: Iterable[Window] | None, now: float) -> None:
        """Other contacts hold from now on; a contact that is open before and after is the same one."""
        up_s = self.link_s(now)
        was_up = self.is_up(now)
        self._contacts = Contacts(windows, now, up_s)
        window = self._contacts.window(now)
        if was_up and window is not None and self._window is not None:
            self._window = window
            self._timing.run_at(window.rate_bps)
            self._allowance.ends(window.set)
        elif window is None:
            self._timing.run_at(None)

    def is_up(self, now: float) -> bool:
        """Whether the link carries anything."""
        return self._contacts.is_up(now)

    def closes_at(self, now: float) -> float:
        """When a contact that is open will be over; inf for none."""
        window = self._contacts.window(now)
        return math.inf if window is None else window.set

    def is_open(self, now: float) -> bool:
        """Whether this end may send a frame on it."""
        return self.is_up(now) and self._allowance.opens_at(now, self._timing.frame_bytes) <= now

    def link_s(self, now: float) -> float:
        """The time on the link's clock. A contact that has begun meanwhile brings its rate and its quota."""
        window = self._contacts.window(now)
        if window is not None and window is not self._window:
            self._window = window
            self._timing.run_at(window.rate_bps)
            self._allowance.contact(window)
            if window.rise > self._started:
                self._air.contact_begins()
        elif not self.is_up(now):
            self._allowance.ends(now)
        self._air.closes_at = self._contacts.closes_up_s(now)
        bulk_at = self._allowance.opens_at(now, self._timing.frame_bytes, bulk=True)
        self.bulk_at = -math.inf if bulk_at <= now else self._contacts.up_s(bulk_at)
        return self._contacts.up_s(now)

    def wakes_at(self, up_s: float, now: float) -> float:
        """When, from `now` on, the link's clock gets to `up_s` and this end may send."""
        at = max(now, self._contacts.at(up_s))
        if math.isinf(at):
            return at
        return self._contacts.rises_at(self._allowance.opens_at(at, self._timing.frame_bytes))

    def ticks_at(self, up_s: float, now: float) -> float:
        """When, from `now` on, the link's clock gets to `up_s`."""
        return max(now, self._contacts.at(up_s))

    def after(self, since: float, contact_s: float) -> float:
        """When the link's clock will have run for `contact_s` since then; inf for never."""
        return self._contacts.at(self._contacts.up_s(since) + contact_s)

    def left_s(self, up_s: float) -> float | None:
        """How long the contact lasts from `up_s` on, None where nobody knows."""
        return None if math.isinf(self._air.closes_at) else self._air.closes_at - up_s

    def when(self, now: float, contact_s: float) -> tuple[float, int | None]:
        """The time and the passes until then, see Contacts.when."""
        return self._contacts.when(now, contact_s)

    def spend(self, count_bytes: int, now: float) -> None:
        """Count a frame that leaves, by its bytes on the wire."""
        self._allowance.spend(count_bytes, now)

    def record(self, now: float) -> QuotaUsage | None:
        """The record that is due, see ByteQuota.record."""
        return self._allowance.record(now)
