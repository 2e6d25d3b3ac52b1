"""A downlink that all devices of a round hear: the model goes out once, and is counted once.

The bytes are real broadcast frames (`onboard.wire.broadcast`) under the fleet's group key. Each device hears
them over its own air, with its own losses; it answers on its own link, when it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from hw_profiles import Link
from onboard.config import GROUND
from onboard.mission.objects import MODEL
from onboard.wire.broadcast import Broadcast
from onboard.wire.config import Medium
from onboard.wire.events import Event, GroupAnswer
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import BROADCAST
from onboard.wire.security.seal import Sealer


class Downlink:
    """The ground's transmitter to all devices, with at most one object on its way."""

    def __init__(self, link: Link, group_key: bytes) -> None:
        self.link = link
        self.bytes = 0  # on the wire, of all broadcasts so far
        self.airtime_s = 0.0
        self._sealer = Sealer(group_key, source=GROUND, destination=BROADCAST, epoch=1)
        self._broadcast: Broadcast | None = None

    def offer(self, model: bytes, listeners: Iterable[int], now: float) -> None:
        """Puts a round's model on its way to these nodes, in place of what was on its way before."""
        self._broadcast = Broadcast(
            MODEL, model, listeners, sealer=self._sealer, medium=Medium(self.link), now=now
        )

    def hear(self, node: int, answer: GroupAnswer, now: float) -> list[Event]:
        """A device's answer, which came over its own link."""
        return [] if self._broadcast is None else self._broadcast.handle(node, answer, now)

    def stop(self, now: float) -> None:
        """Whoever still lacks the object need not have it."""
        if self._broadcast is not None:
            self._broadcast.cancel(now)

    def speak(self, now: float) -> list[bytes]:
        """What goes on the air now, as the port carries it."""
        sent: list[bytes] = []
        if self._broadcast is None:
            return sent
        before_s = self._broadcast.airtime_s
        self._broadcast.tick(now)
        while (frame := self._broadcast.transmit(now)) is not None:
            sent.append(cobs.encode(frame))
        self.bytes += sum(map(len, sent))
        self.airtime_s += self._broadcast.airtime_s - before_s
        if self._broadcast.over:
            self._broadcast = None
        return sent

    def wakeup(self, now: float) -> float:
        """When `speak` next has something to do; inf if never."""
        return math.inf if self._broadcast is None else self._broadcast.wakeup(now)
