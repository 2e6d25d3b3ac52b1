"""A discrete-event world on one virtual clock: time jumps from one party's wake-up to the next.

A `Party` (a node, a ground station, an `AirLink`) says when it next has something to do, and is woken early
by whoever gives it work. Of parties due at one time, the first scheduled acts first: a seed repeats a run."""

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

# Far below the time of a bit on any link, far above the rounding error of a clock that has run for years: a
# wake-up that rounding puts at this very moment still moves the clock.
TICK_S = 1e-6
NEVER_S = 1e9  # a virtual board loses no power: checkpoints before its end would only cost real time


def digest_of(*what: object) -> bytes:
    """Hashes its arguments to 32 B: a key, or a seed for what happens in a world."""
    return blake2s(" ".join(map(str, what)).encode()).digest()


class Party(Protocol):
    """A participant of a world. Times are seconds of its clock."""

    def act(self, now: float) -> None:
        """Does everything that is due now."""

    def wakeup(self, now: float) -> float:
        """When `act` next has something to do unless the party is woken; inf for never."""


class World:
    """The clock `now`, and the parties ordered by due time."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._queue: list[tuple[float, int, Party]] = []  # a heap; what is out of date is passed over
        self._due: dict[Party, tuple[float, int]] = {}
        self._scheduled = 0

    def add(self, party: Party) -> None:
        self.schedule(party, self.now)

    def remove(self, party: Party) -> None:
        self._due.pop(party, None)

    def wake(self, party: Party, at: float = -math.inf) -> None:
        """Makes a party due by `at`, by default now; ignores one that takes no part."""
        due = self._due.get(party)
        if due is not None and at < due[0]:
            self.schedule(party, max(at, self.now))

    def schedule(self, party: Party, at: float) -> None:
        """Makes a party due at `at` and not before."""
        self._due[party] = at, self._scheduled
        if at < math.inf:
            heapq.heappush(self._queue, (at, self._scheduled, party))
        self._scheduled += 1

    def advance(self, until: float = math.inf) -> bool:
        """Lets the next party act if it is due by `until`; else moves the clock there and returns False."""
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
    """A serial port whose far side is the air. Like a USB adapter, it cannot tell how much is still unsent:
    the session's pacing must keep that short."""

    paths = None

    def __init__(self, side: Side, link: Link, send: Callable[[bytes], None]) -> None:
        self.url = f"air:{side}"
        self.max_frame_bytes = link.mtu_bytes
        self.rx_bytes = self.tx_bytes = self._no_cobs = 0
        self._send = send
        self._splitter = cobs.Splitter(link.mtu_bytes)
        self._stream: list[bytes] = []
        self.room_bytes = math.inf  # of what nobody has read yet; more is lost

    @property
    def broken(self) -> int:
        return self._no_cobs + self._splitter.overlong

    @property
    def has_unread(self) -> bool:
        return bool(self._stream)

    def hear(self, wire: bytes) -> None:
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

    def write(self, frame: bytes, lead: int = 0) -> None:
        """The channel knows whole frames alone, and no delimiters before them."""
        wire = cobs.encode(frame)
        self.tx_bytes += len(wire)
        self._send(wire)

    def flush(self) -> None: ...

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
    """A channel as a party of its world: it delivers to connected ends, and wakes them."""

    def __init__(self, world: World, channel: Channel) -> None:
        self.channel = channel
        self._world = world
        self._ends: dict[Side, tuple[AirPort, Party]] = {}
        world.add(self)

    def connect(self, side: Side, party: Party) -> AirPort:
        """Opens the port of that end; its owner `party` is woken when bytes arrive."""
        port = AirPort(side, self.channel.link, partial(self.send, side))
        self._ends[side] = port, party
        return port

    def disconnect(self, side: Side) -> None:
        self._ends.pop(side, None)

    def send(self, side: Side, wire: bytes) -> None:
        self.channel.send(side, wire, self._world.now)
        self._world.wake(self, self.channel.next_due())

    @property
    def bytes_sent(self) -> int:
        return sum(self.channel.counters(side).bytes for side in SIDES)

    def act(self, now: float) -> None:
        for side, wire in self.channel.due(now):
            if side in self._ends:
                port, party = self._ends[side]
                port.hear(wire)
                self._world.wake(party)

    def wakeup(self, now: float) -> float:
        return self.channel.next_due()
