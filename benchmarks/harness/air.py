"""Two network namespaces with an emulated link between them: `python -m benchmarks.harness.air SPEC`.

Each namespace has a TUN device with an address; every IP packet that is sent into one leaves the other as
the seeded channel of `firmware_sim` has it: at the link's rate, after its delay, unless it is lost. What
finds the queue full is dropped, as by a modem. Nothing here looks at what a packet carries.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from benchmarks.harness import netns
from firmware_sim.world.channel import SIDES, Channel, Impairments, Side
from hw_profiles import Link
from onboard.console.signals import Stop, stop_signals

ADDRESSES: dict[Side, str] = {"ground": "10.0.0.1", "board": "10.0.0.2"}
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LONGEST_PACKET = 1 << 16


class LinkSpec(msgspec.Struct, kw_only=True):
    """A link and what befalls its packets. `outage_s`: (begin, end), from the board's first packet."""

    link: Link
    mtu_bytes: int
    queue_bytes: int
    loss: float
    seed: int
    outage_s: tuple[float, float] | None = None

    def air(self) -> LinkNamespaces:
        """The link as it is before the first packet."""
        windows = None
        if self.outage_s is not None:
            windows = [(0.0, self.outage_s[0]), (self.outage_s[1], math.inf)]
        channel = Channel(self.link, Impairments(frame_loss=self.loss, windows=windows), seed=self.seed)
        return LinkNamespaces(channel, self.queue_bytes)


class LinkNamespaces:
    """A channel behind a drop-tail queue at either end. Its time begins at `began_s`, or without that with
    the board's first packet: what the ground said before that reached nobody."""

    def __init__(self, channel: Channel, queue_bytes: int, began_s: float | None = None) -> None:
        self.dropped: dict[Side, int] = dict.fromkeys(SIDES, 0)  # packets that found the queue full
        self._channel, self._queue_bytes = channel, queue_bytes
        self._began_s = began_s

    def send(self, side: Side, packet: bytes, now: float) -> None:
        """A packet leaves that side's host."""
        if self._began_s is None:
            if side == "ground":
                return
            self._began_s = now
        at = now - self._began_s
        waits_s = max(0.0, self._channel.busy_until(side) - at)
        room_s = self._channel.airtime_s(side, self._queue_bytes) - self._channel.airtime_s(side, len(packet))
        if waits_s > room_s:
            self.dropped[side] += 1
        else:
            self._channel.send(side, packet, at)

    def due(self, now: float) -> list[tuple[Side, bytes]]:
        """Packets that have arrived by now, oldest first, each with the side that gets it."""
        return [] if self._began_s is None else self._channel.due(now - self._began_s)

    def next_due(self) -> float:
        """When the next one may; inf for never."""
        return math.inf if self._began_s is None else self._began_s + self._channel.next_due()

    def carried(self) -> dict[str, dict[str, Any]]:
        """The counters of both sides; `bytes` are those of all IP packets that went on the air."""
        return {
            side: {**asdict(self._channel.counters(side)), "dropped": self.dropped[side]} for side in SIDES
        }


def main() -> None:
    """Tells where the namespaces are, carries until SIGTERM, and tells what it carried."""
    spec = msgspec.json.decode(sys.argv[1], type=LinkSpec)
    namespaces, tuns = {}, {}
    try:
        for side in SIDES:
            namespaces[side] = netns.path_of(netns.new())
            tuns[side] = open_tun(ADDRESSES[side], spec.mtu_bytes)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"cannot make network namespaces and TUN devices (root can): {error}")
    air = spec.air()
    with stop_signals() as stop:
        print(json.dumps({"event": "Up", "namespaces": namespaces}), flush=True)
        carry([(air, tuns)], stop)
    print(json.dumps({"event": "Carried", **air.carried()}), flush=True)


def open_tun(address: str, mtu_bytes: int, name: str = "air") -> int:
    """A TUN device in this process's namespace, up; the descriptor reads what is sent into it, without
    waiting. Raises OSError, CalledProcessError."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    for words in (
        f"address add {address}/24 dev {name}",
        f"link set {name} mtu {mtu_bytes} multicast off up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return tun


def carry(
    links: Sequence[tuple[LinkNamespaces, dict[Side, int]]],
    stop: Stop,
    report: Callable[[], object] = lambda: None,
    report_every_s: float = math.inf,
) -> None:
    """Carries packets between the TUN devices of each link's sides until it is told to stop; calls `report`
    every so often."""
    ends = {tun: (link, side) for link, tuns in links for side, tun in tuns.items()}
    next_report_s = time.monotonic() + report_every_s
    while not stop.asked:
        due_s = min(next_report_s, *(link.next_due() for link, _ in links)) - time.monotonic()
        # select() and not poll(), whose timeouts are whole milliseconds: a packet at 16 Mbit/s takes 0.7
        timeout_s = None if due_s == math.inf else max(0.0, due_s)
        for tun in select.select([*ends, stop.fd], [], [], timeout_s)[0]:
            if tun == stop.fd:
                continue
            link, side = ends[tun]
            try:
                while True:
                    link.send(side, os.read(tun, _LONGEST_PACKET), time.monotonic())
            except BlockingIOError:
                pass
        for link, tuns in links:
            for side, packet in link.due(time.monotonic()):
                os.write(tuns[side], packet)
        if time.monotonic() >= next_report_s:
            report()
            next_report_s = time.monotonic() + report_every_s


if __name__ == "__main__":
    main()
