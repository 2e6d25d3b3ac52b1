"""What lies between two ends of a virtual link: a serial port at either end, and the channel between them.

Bytes are what a real serial port would carry: sealed frames in COBS, whole or not as the channel leaves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from firmware_sim.world.channel import SIDES, Channel, Side
from firmware_sim.world.world import Party, World
from hw_profiles import Link
from onboard.wire.framing import cobs


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
        pass

    def discard(self) -> None:
        pass

    def kept_bytes(self) -> int:
        return 0

    def queued_bytes(self) -> int:
        return 0

    def distrust(self, frame: bytes) -> None:
        pass

    def fault(self, link: Link) -> None:
        return None

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


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
