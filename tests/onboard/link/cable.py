"""A null-modem cable of two ptys, which the test can pull out and put back, and a way to run pumps on it."""

from __future__ import annotations

import os
import pty
import select
import tty
from collections.abc import Callable
from pathlib import Path

from onboard.link.pump import Pump, PumpEvent


class PtyCable:
    """Two ends, `a` and `b`, as paths that stay the same when the cable comes back (as udev's do)."""

    def __init__(self, folder: Path) -> None:
        self.a, self.b = folder / "tty-a", folder / "tty-b"
        self._masters: list[int] = []
        self.plug()

    def plug(self) -> None:
        """Both devices appear."""
        for path in (self.a, self.b):
            master, slave = pty.openpty()
            tty.setraw(slave)
            path.symlink_to(os.ttyname(slave))
            os.close(slave)
            os.set_blocking(master, False)
            self._masters.append(master)

    def pull(self) -> None:
        """Both devices vanish."""
        for master in self._masters:
            os.close(master)
        self._masters.clear()
        self.a.unlink(missing_ok=True)
        self.b.unlink(missing_ok=True)

    def carry(self) -> int:
        """Moves what was written at either end to the other; returns how many bytes."""
        moved = 0
        for source, sink in zip(self._masters, reversed(self._masters), strict=True):
            try:
                data = os.read(source, 4096)
            except OSError:  # nothing there (EAGAIN), or no program at that end (EIO)
                continue
            moved += len(data)
            while data:  # the pty may be full for a moment
                select.select([], [sink], [], 1.0)
                data = data[os.write(sink, data) :]
        return moved

    def master_of_a(self) -> int:
        """What the far end of `a` would read and write."""
        return self._masters[0]


class Clock:
    """Virtual time for pumps; a pty's own latency is real and passes in `run`'s turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def run(
        self,
        pumps: dict[str, Pump],
        until: Callable[[dict[str, list[PumpEvent]]], bool],
        *,
        step_s: float = 0.005,
        carry: Callable[[], object] = lambda: None,
        act: Callable[[str, PumpEvent], None] = lambda name, event: None,
        limit_s: float = 120.0,
    ) -> dict[str, list[PumpEvent]]:
        """Polls all pumps in turn until `until` holds of what each has told; fails after `limit_s`."""
        told: dict[str, list[PumpEvent]] = {name: [] for name in pumps}
        end = self.now + limit_s
        while not until(told):
            assert self.now < end, f"nothing more in {limit_s} s: {told}"
            for name, pump in pumps.items():
                for event in pump.poll(self.now):
                    told[name].append(event)
                    act(name, event)
                carry()
            ready = [pump.fileno() for pump in pumps.values() if pump.fileno() >= 0]
            select.select(ready, [], [], 0.0005)
            self.now += step_s
        return told
