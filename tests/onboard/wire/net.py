"""One broadcaster, its listeners, and a seeded channel to each of them, on a virtual clock."""

from __future__ import annotations

from collections.abc import Iterable

from firmware_sim.world.channel import Channel, Impairments
from hw_profiles import Link
from onboard.wire.broadcast import Broadcast
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import Arrived, Event, GroupAnswer
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import BROADCAST
from onboard.wire.security.seal import Sealer, directional_key
from onboard.wire.session import Session
from tests.onboard.wire.pair import COBS_BYTES, advance

GROUND = 0
GROUP_KEY = bytes(range(100, 132))
MODEL = 1
_GROUP_SUBKEY = framing.keyed(directional_key(GROUP_KEY, GROUND, BROADCAST, 0))


def node_key(node: int) -> bytes:
    """The key that this node shares with the ground and with nobody else."""
    return bytes([node]) * 32


def wire_bytes(frame_bytes: int) -> int:
    """As the channels count."""
    return frame_bytes + COBS_BYTES


class NetStation:
    """One listener: its session, the ground's session with it, and the air between."""

    def __init__(self, node: int, link: Link, *, seed: int, limits: Limits, **channel: object) -> None:
        self.node, self.link, self.limits = node, link, limits
        self.channel = Channel(link, Impairments(overhead_bytes=COBS_BYTES, **channel), seed=seed + node)  # type: ignore[arg-type]
        self.objects: dict[bytes, bytes] = {}
        self.events: list[tuple[float, Event]] = []
        self.epoch = 0
        self.accepts = True
        self.board = self.boot(0.0)
        self.ground = Session(
            Identity(GROUND, node, primary=True),
            Medium(link, wire_bytes=wire_bytes),
            Security(node_key(node)),
            SessionState(epoch=1),
        )

    def boot(self, now: float) -> Session:
        """A session of a new epoch, with nothing left of what was half received."""
        self.epoch += 1
        self.board = Session(
            Identity(self.node, GROUND, primary=False),
            Medium(self.link, wire_bytes=wire_bytes),
            Security(node_key(self.node), group_key=GROUP_KEY),
            SessionState(epoch=self.epoch, done=self.objects),
            limits=self.limits,
            now=now,
        )
        return self.board

    def hear(self, frame: bytes, now: float) -> None:
        """The board takes a frame, and makes durable what arrived."""
        self.act(self.board.receive(frame, now), now)

    def act(self, events: list[Event], now: float) -> None:
        """What an agent does with events."""
        for event in events:
            self.events.append((now, event))
            if isinstance(event, Arrived) and self.accepts:
                assert event.digest not in self.objects, "delivered twice"
                self.objects[event.digest] = event.payload
                self.board.accept(event.digest, now)


class Net:
    """A ground with one transmitter, `listeners` with one each."""

    def __init__(
        self,
        link: Link,
        listeners: Iterable[int],
        *,
        seed: int = 1,
        limits: Limits | None = None,
        losses: dict[int, float] | None = None,
        **channel: object,
    ) -> None:
        self.link, self.now = link, 0.0
        losses = losses or {}
        self.stations = {
            node: NetStation(
                node, link, seed=seed, limits=limits or Limits(),
                **channel | ({"frame_loss": losses[node]} if node in losses else {}),
            )
            for node in listeners
        }  # fmt: skip
        self.sealer = Sealer(GROUP_KEY, source=GROUND, destination=BROADCAST, epoch=1)
        self.broadcast: Broadcast | None = None
        self.events: list[tuple[float, int, Event]] = []  # of the broadcast: time, listener (-1: all), event
        self.sent: list[tuple[float, framing.Frame]] = []  # broadcast frames
        self.answers: list[tuple[float, int, GroupAnswer]] = []

    def start(
        self, payload: bytes, to: Iterable[int] | None = None, deadline_s: float | None = None
    ) -> bytes:
        """Begin a broadcast; returns the object's digest."""
        self.broadcast = Broadcast(
            MODEL, payload, self.stations if to is None else to, sealer=self.sealer,
            medium=Medium(self.link, wire_bytes), now=self.now, deadline_s=deadline_s,
        )  # fmt: skip
        return self.broadcast.digest

    def run(self, until: float, *, on: bool = False) -> float:
        """Until that time, or until the broadcast is over unless `on`; returns when."""
        return advance(self, until, lambda: not on and self.broadcast is not None and self.broadcast.over)

    def step(self) -> float:
        """All that is to do now; returns when there is more."""
        wake = min([self._step(station) for station in self.stations.values()] + [self._speak()])
        return min([wake] + [station.channel.next_due() for station in self.stations.values()])

    def _step(self, station: NetStation) -> float:
        now = self.now
        for side, frame in station.channel.due(now):
            if side == "board":
                station.hear(frame, now)
            else:
                for event in station.ground.receive(frame, now):
                    if isinstance(event, GroupAnswer) and self.broadcast is not None:
                        self.answers.append((now, station.node, event))
                        told = self.broadcast.handle(station.node, event, now)
                        self.events += [(now, station.node, each) for each in told]
        station.act(station.board.tick(now), now)
        for session, side in ((station.board, "board"), (station.ground, "ground")):
            while (raw := session.transmit(now)) is not None:
                station.channel.send(side, raw, now)
        return min(station.board.wakeup(now), station.ground.wakeup(now), station.channel.next_due())

    def _speak(self) -> float:
        if self.broadcast is None:
            return float("inf")
        self.events += [(self.now, -1, event) for event in self.broadcast.tick(self.now)]
        while (raw := self.broadcast.transmit(self.now)) is not None:
            self.sent.append((self.now, framing.decode(raw, _GROUP_SUBKEY)))
            for station in self.stations.values():
                station.channel.send("ground", raw, self.now)
        return self.broadcast.wakeup(self.now)

    def bytes_down(self) -> int:
        """Of the broadcast, on the wire."""
        return sum(wire_bytes(framing.OVERHEAD_BYTES + len(frame.payload)) for _, frame in self.sent)
