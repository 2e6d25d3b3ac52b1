"""A cable that does to bytes what bad lines do, on the clock of the test, and the programs' ends of it."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path
from random import Random

from hw_profiles import Link
from onboard.link.ports.schemes import facts_of, opener
from onboard.link.pump import Pump
from onboard.link.spool import Spool
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.session import Session
from tests.onboard.link.cable import Clock, PtyCable
from tests.onboard.wire.examples import KEY

Damage = Callable[[bytes, bool], bytes]
"""What becomes of some bytes; whether they are the first after a pause."""


class BadCable(PtyCable):
    """`damage` is what happens to all bytes; `back`: what comes back to whoever sent them. `carried` counts
    what entered at each end."""

    def __init__(
        self, folder: Path, link: Link, clock: Clock, damage: Damage, back: Damage | None = None
    ) -> None:
        super().__init__(folder)
        self._byte_s = link.bits_per_byte / link.rate_up_bps
        self._clock, self._damage, self._back = clock, damage, back
        self._busy_until = [-1.0, -1.0]
        self.carried = [0, 0]
        self.stalled_until = -1.0

    def carry(self) -> int:
        """As of a good cable, one byte after the other."""
        if self._clock.now < self.stalled_until:
            return 0
        moved = 0
        for side in (0, 1):
            try:
                data = os.read(self._masters[side], 4096)
            except OSError:  # nothing there, or no program at that end
                continue
            moved += len(data)
            self.carried[side] += len(data)
            starts = self._clock.now > self._busy_until[side] + 0.006
            self._busy_until[side] = max(self._clock.now, self._busy_until[side]) + len(data) * self._byte_s
            self._put(1 - side, self._damage(data, starts))
            if self._back is not None:
                self._put(side, self._back(data, starts))
        return moved

    def _put(self, side: int, data: bytes) -> None:
        sink = self._masters[side]
        while data:  # the pty may be full for a moment
            select.select([], [sink], [], 1.0)
            data = data[os.write(sink, data) :]


def ends(cable: PtyCable, folder: Path, link: Link, *, encrypted: bool = False) -> dict[str, Pump]:
    """Ground and board as the programs build them, at their first start; `clock.run` moves them."""
    pumps = {}
    for name, path in (("ground", cable.a), ("board", cable.b)):
        url, master, seeded = str(path), name == "ground", Random(name)
        session = Session(
            Identity(0 if master else 3, 3 if master else 0, primary=master),
            Medium(link, wire_bytes=facts_of(url).wire_bytes),
            Security(KEY, nonce=seeded.randbytes, encrypted=encrypted),
            SessionState(epoch=1),
            limits=facts_of(url).limits,
        )
        pumps[name] = Pump(opener(url, link), session, Spool(folder / name, 1 << 20))
    return pumps
