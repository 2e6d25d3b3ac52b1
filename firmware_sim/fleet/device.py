"""The parties of a fleet's world: devices, each a real agent on a real session, and a shared downlink.

Bytes are counted as on a serial port: sealed frames in COBS. Training is real; its time is the profile's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from firmware_sim.world.channel import SIDES, Channel, Impairments, Side
from firmware_sim.world.world import TICK_S, AirLink, World
from hw_profiles import Link
from onboard.agents.federated import HEALTH_EVERY_S, FederatedAgent
from onboard.agents.federated_state import FederatedState
from onboard.board.budget import CpuShare, Pace, ResourceUsage
from onboard.config import GROUND, NodeConfig
from onboard.data.images import Images
from onboard.learn.graph import TrainGraph
from onboard.mission.health import State
from onboard.mission.objects import MODEL
from onboard.runtime.federated import Drive
from onboard.storage.journal import Journal, count_start
from onboard.trainer.in_process import LocalTrainer
from onboard.wire.broadcast import Broadcast
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Event, GroupAnswer
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import BROADCAST
from onboard.wire.security.seal import Sealer
from onboard.wire.session import Session


@dataclass(frozen=True, slots=True)
class Place:
    """A device's configuration, images and secrets, which outlast its boots."""

    config: NodeConfig  # what NODE.toml would say
    images: Images
    held: Images | None  # out of training
    key: bytes
    group_key: bytes | None  # of the shared downlink
    fates: int  # with a boot's number, the seed of its channel


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """Bytes on the wire and seconds on the air of both transmitters (with framing, repetitions, lost frames
    and keying), and joules of the board while it was awake."""

    bytes_up: int = 0
    bytes_down: int = 0
    airtime_up_s: float = 0.0
    airtime_down_s: float = 0.0
    energy_j: float = 0.0

    def __add__(self, other: DeviceUsage) -> DeviceUsage:
        return DeviceUsage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(DeviceUsage)))

    def __sub__(self, other: DeviceUsage) -> DeviceUsage:
        return DeviceUsage(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(DeviceUsage)))


class Device:
    """An awake board with the ground's end of its link, as one party of the fleet's world.

    It boots when constructed and may `leave` when `resting`; its journal keeps what the next boot needs.
    boot, epoch: count this node's boots and the ground's sessions; gone: no contact opens while it is awake;
    tell: receives the events of the ground's end."""

    def __init__(
        self, place: Place, world: World, graphs: Callable[[str], TrainGraph],
        tell: Callable[[Device, Event], None], *, boot: int, epoch: int, gone: bool,
    ) -> None:  # fmt: skip
        self.gone = gone
        self._world, self._tell = world, tell
        config, now = place.config, world.now
        self.node, link, board = config.id, config.ground.link, config.board
        journal = Journal(config.state, FederatedState)
        known = count_start(journal, [GROUND])
        self.ground = Session(
            Identity(GROUND, self.node, primary=True), Medium(link), Security(place.key),
            SessionState(epoch=epoch), now=now,
        )  # fmt: skip
        self._board = Session(
            Identity(self.node, GROUND, primary=False), Medium(link),
            Security(place.key, group_key=place.group_key),
            SessionState(epoch=known.links[GROUND].epoch), now=now,
        )  # fmt: skip
        ledger = ResourceUsage(board, link, now)
        trainer = LocalTrainer(place.images, graphs, held=place.held)
        self.agent = FederatedAgent(config, self._board, journal, known, ledger, trainer)
        self._drive = Drive(self.agent, CpuShare(Pace(config.cpu_share, board.train_flops), now), now)
        impairments = Impairments(windows=() if gone else None)
        self._air = AirLink(world, Channel(link, impairments, seed=place.fates * 65536 + boot))
        self._ports = {side: self._air.connect(side, self) for side in SIDES}
        self._overheard = DeviceUsage()
        self._health_at = now
        self.agent.resume(now)
        world.add(self)

    def act(self, now: float) -> None:
        told: list[Event] = []
        for frame in self._ports["ground"].read():
            told += self.ground.receive(frame, now)
        for frame in self._ports["board"].read():
            self._handle(self._board.receive(frame, now), now)
        told += self.ground.tick(now)
        self._handle(self._board.tick(now), now)
        if now >= self._health_at:
            self.agent.housekeeping(now)
            self._health_at = now + HEALTH_EVERY_S
        self._drive.turn(now, lambda: now)
        for event in told:
            self._tell(self, event)
        ends: tuple[tuple[Side, Session], ...] = (("ground", self.ground), ("board", self._board))
        for side, session in ends:
            while (spoken := session.transmit(now)) is not None:
                self._ports[side].write(spoken)

    def wakeup(self, now: float) -> float:
        ends = min(self.ground.wakeup(now), self._board.wakeup(now))
        return min(ends, self._drive.wakeup(), self._health_at)

    def leave(self) -> None:
        self._world.remove(self)
        self._world.remove(self._air)

    def overhear(self, wire: bytes) -> None:
        """Puts a broadcast of the ground on this device's air, which is not counted in `spent`."""
        before = self._air.channel.counters("ground")
        self._air.send("ground", wire)
        after = self._air.channel.counters("ground")
        airtime_s = after.airtime_s - before.airtime_s
        self._overheard += DeviceUsage(bytes_down=after.bytes - before.bytes, airtime_down_s=airtime_s)

    def resting(self, now: float) -> bool:
        """Whether neither end has anything left to do for the other."""
        settled = self.agent.work is None and self.agent.known.phase in (State.IDLE, State.FAILED)
        return settled and not any(end.outgoing or end.incoming for end in (self.ground, self._board))

    def spent(self, now: float) -> DeviceUsage:
        """Returns the usage of its own link since its boot."""
        up, down = self._air.channel.counters("board"), self._air.channel.counters("ground")
        energy_j = self.agent.ledger.energy_j(now, self._board.airtime_s)
        return DeviceUsage(up.bytes, down.bytes, up.airtime_s, down.airtime_s, energy_j) - self._overheard

    def progress(self) -> float:
        """Returns the share of the training that is done, 0 to 1."""
        return 0.0 if self.agent.work is None else self.agent.work.progress

    def _handle(self, events: list[Event], now: float) -> None:
        for event in events:
            self.agent.handle(event, now)


class Downlink:
    """The ground's transmitter, heard by all devices of a round: a model is sent and counted once.

    `spread` puts the broadcast frames on every device's air, where each loses its own. A device answers on
    its own link, when it is polled."""

    def __init__(self, world: World, link: Link, group_key: bytes, spread: Callable[[bytes], None]) -> None:
        self.used = DeviceUsage()  # by all broadcasts so far
        self._world, self._link, self._spread = world, link, spread
        self._sealer = Sealer(group_key, source=GROUND, destination=BROADCAST, epoch=1)
        self._broadcast: Broadcast | None = None
        world.add(self)

    def offer(self, model: bytes, listeners: Iterable[int]) -> None:
        """Starts to broadcast a round's model to these nodes, in place of an earlier one."""
        medium, now = Medium(self._link), self._world.now
        self._broadcast = Broadcast(MODEL, model, listeners, sealer=self._sealer, medium=medium, now=now)
        self._world.wake(self)

    def handle(self, node: int, answer: GroupAnswer) -> list[Event]:
        if self._broadcast is None:
            return []
        events = self._broadcast.handle(node, answer, self._world.now)
        self._world.schedule(self, max(self.wakeup(self._world.now), self._world.now + TICK_S))
        return events

    def stop(self) -> None:
        """Cancels the broadcast for those who still lack parts of it."""
        if self._broadcast is not None:
            self._broadcast.cancel(self._world.now)
            self._world.wake(self)

    def act(self, now: float) -> None:
        broadcast = self._broadcast
        if broadcast is None:
            return
        before_s, sent_bytes = broadcast.airtime_s, 0
        broadcast.tick(now)
        while (frame := broadcast.transmit(now)) is not None:
            wire = cobs.encode(frame)
            sent_bytes += len(wire)
            self._spread(wire)
        self.used += DeviceUsage(bytes_down=sent_bytes, airtime_down_s=broadcast.airtime_s - before_s)
        if broadcast.over:
            self._broadcast = None

    def wakeup(self, now: float) -> float:
        return math.inf if self._broadcast is None else self._broadcast.wakeup(now)
