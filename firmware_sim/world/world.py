"""One virtual clock: it jumps from one thing that somebody has to do to the next, and nobody waits.

What takes part is a `Party`: a node, a ground station, an `AirLink` between them. A party says when it next
has something to do, and does it when that time comes; whoever gives another one something to do sooner wakes
it. Of two that are due at the same time, the one that was scheduled first acts first, so that a seed repeats
a run.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from functools import partial
from hashlib import blake2s
from typing import Protocol

from firmware_sim.world.channel import SIDES, Channel, Side
from hw_profiles import Link
from onboard.wire.framing import cobs

# Far less than a bit of any link, far more than the last place of a clock that has run for years: a wake-up
# that rounding puts at this very moment still moves the clock.
TICK_S = 1e-6
NEVER_S = 1e9  # a virtual board loses no power: checkpoints before its end would only cost real time


def digest_of(*what: object) -> bytes:
    """32 B that differ where `what` does: a key, or a seed for what happens in a world."""
    return blake2s(" ".join(map(str, what)).encode()).digest()


class Party(Protocol):
    """Whatever takes part in a world. Times are seconds of its clock."""

    def act(self, now: float) -> None:
        """Does all that is due now."""

    def wakeup(self, now: float) -> float:
        """When `act` next has something to do, if nobody wakes the party before; inf for never."""


class World:
    """The clock, at `now`, and all parties by when they are due."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._queue: list[tuple[float, int, Party]] = []  # a heap; what is out of date is passed over
        self._due: dict[Party, tuple[float, int]] = {}
        self._scheduled = 0

    def add(self, party: Party) -> None:
        """The party takes part from now on."""
        self.schedule(party, self.now)

    def remove(self, party: Party) -> None:
        """The party takes no part any more."""
        self._due.pop(party, None)

    def wake(self, party: Party, at: float = -math.inf) -> None:
        """A party that takes part is due at that time at the latest; by default at once."""
        due = self._due.get(party)
        if due is not None and at < due[0]:
            self.schedule(party, max(at, self.now))

    def schedule(self, party: Party, at: float) -> None:
        """The party is due at that time, and not before."""
        self._due[party] = at, self._scheduled
        if at < math.inf:
            heapq.heappush(self._queue, (at, self._scheduled, party))
        self._scheduled += 1

    def advance(self, until: float = math.inf) -> bool:
        """Goes to the next time at which a party is due, and that party acts. Returns False, with the clock
        at `until`, where none is due by then."""
        while self._queue and self._due.get(self._queue[0][2]) != self._queue[0][:2]:
            heapq.heappop(self._queue)
        if not self._queue or self._queue[0][0] > until:
            self.now = max(self.now, until)
            return False
        at, order, party = heapq.heappop(self._queue)
        self.now = max(self.now, at)
        party.act(self.now)
        if self._due.get(party) == (at, order):  # else somebody has woken it meanwhile, or it has left
            self.schedule(party, max(self.now + TICK_S, party.wakeup(self.now)))
        return True


class AirPort:
    """See `onboard.link.ports.port`: a serial port whose other side is the air, `send`. It cannot tell what
    the device still holds, as a USB adapter cannot: the session's own pace has to keep that short."""

    def __init__(self, side: Side, link: Link, send: Callable[[bytes], None]) -> None:
        self.url = f"air:{side}"
        self.max_frame_bytes = link.mtu_bytes
        self.rx_bytes = self.tx_bytes = self._no_cobs = 0
        self._send = send
        self._splitter = cobs.Splitter(link.mtu_bytes)
        self._stream: list[bytes] = []
        self.room_bytes = math.inf  # of what nobody has read yet; more is lost

    @property
    def paths(self) -> None:
        pass

    @property
    def broken(self) -> int:
        return self._no_cobs + self._splitter.overlong

    @property
    def has_unread(self) -> bool:
        """Whether bytes have come out of the air that nobody has read."""
        return bool(self._stream)

    def hear(self, wire: bytes) -> None:
        """Bytes come out of the air."""
        self.rx_bytes += len(wire)
        if sum(map(len, self._stream)) + len(wire) <= self.room_bytes:
            self._stream.append(wire)

    def read(self) -> list[bytes]:
        frames = []
        for chunk in self._splitter.feed(b"".join(self._stream)):
            try:
                frames.append(cobs.decode(chunk))
            except cobs.BadCobs:
                self._no_cobs += 1
        self._stream.clear()
        return frames

    def write(self, frame: bytes) -> None:
        wire = cobs.encode(frame)
        self.tx_bytes += len(wire)
        self._send(wire)

    def lead(self, count: int) -> None:
        """The channel knows whole frames alone."""

    def flush(self) -> None:
        """Nothing is ever kept: the air takes a frame at once."""

    discard = close = flush

    def kept_bytes(self) -> int:
        return 0

    queued_bytes = kept_bytes

    def distrust(self, frame: bytes) -> None:
        pass

    def fault(self, link: Link) -> None:
        return None

    def fileno(self) -> int:
        return -1


class AirLink:
    """A channel as a party of its world: it brings each end what the other one sent, and wakes it.

    An end that is not connected hears nothing.
    """

    def __init__(self, world: World, channel: Channel) -> None:
        self.channel = channel
        self._world = world
        self._ends: dict[Side, tuple[AirPort, Party]] = {}
        world.add(self)

    def connect(self, side: Side, party: Party) -> AirPort:
        """Opens the port of that end, whose owner is `party`."""
        port = AirPort(side, self.channel.link, partial(self.send, side))
        self._ends[side] = port, party
        return port

    def disconnect(self, side: Side) -> None:
        """Nobody is at that end any more."""
        self._ends.pop(side, None)

    def send(self, side: Side, wire: bytes) -> None:
        """Puts bytes on the air at that end."""
        self.channel.send(side, wire, self._world.now)
        self._world.wake(self, self.channel.next_due())

    @property
    def bytes_sent(self) -> int:
        """On the wire, by both ends, framing included."""
        return sum(self.channel.counters(side).bytes for side in SIDES)

    def act(self, now: float) -> None:
        for side, wire in self.channel.due(now):
            if side in self._ends:
                port, party = self._ends[side]
                port.hear(wire)
                self._world.wake(party)

    def wakeup(self, now: float) -> float:
        return self.channel.next_due()
