"""A node of a ring on a virtual clock: the real gossip agent on its real sessions, with its own disk.

A node boots from its disk at the start of every epoch, and is done once it has trained the epoch and settled
its exchanges; so a ring that is continued from its disks equals one that never stopped. A batch takes the
time that the board profile says."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2s
from pathlib import Path

import msgspec
import numpy as np

from firmware_sim.ring.settings import RingSettings
from firmware_sim.world.channel import Side
from firmware_sim.world.world import NEVER_S, TICK_S, AirLink, AirPort
from onboard.agents.gossip import GossipPhase, GossipTraining
from onboard.board.budget import Pace
from onboard.codec.layout import Floats
from onboard.codec.mask import ALL
from onboard.config import GROUND, GossipConfig, GossipSection, LinkEnd
from onboard.data.images import Images
from onboard.data.inspection import Shard
from onboard.learn.gossip import topology
from onboard.learn.gossip.descent import Descent
from onboard.learn.graph import TrainGraph, initial
from onboard.runtime.gossip import begin_again, linked, setup_of
from onboard.storage.keys import save_key
from onboard.wire.events import Event
from onboard.wire.medium.contact_gate import Window
from onboard.wire.security.seal import SeqExhausted


@dataclass(frozen=True)
class RingSeat:
    """A node's configuration, data and fate, which outlast its boots."""

    config: GossipConfig
    learn: Callable[[], GossipTraining]  # makes the training state, starting from the first model
    batch_s: float  # what a batch takes on the node's board
    dies_s: float  # when the node falls silent
    contacts: Mapping[int, Sequence[Window]]  # of neighbours that are not always in sight


class RingNode:
    """A party of the ring's world, from a boot to the end of an epoch. Raises OSError."""

    def __init__(
        self,
        seat: RingSeat,
        links: Mapping[int, AirLink],
        epoch: int,
        nonce: Callable[[int], bytes],
        now: float,
    ) -> None:
        self.seat, self.number = seat, seat.config.id
        self._epoch, self._links = epoch, links
        self.losses: list[float] = []  # of the batches of this epoch
        self.vector: Floats | None = None  # the model after the last batch of the epoch
        self.is_dead = False
        self._ports: dict[int, AirPort] = {}
        self.agent, self._ends = linked(
            seat.config, seat.learn(), now,
            lambda end: replace(end, opener=partial(self._port, end.end.id), nonce=nonce),
        )  # fmt: skip
        for peer, windows in seat.contacts.items():
            self._ends[peer].session.plan(windows, now)
        self.agent.resume(now)
        self._exchanged_before = self.agent.gossip.exchanges
        self._untold: deque[tuple[int, Event]] = deque()
        self._due = dict.fromkeys(self._ends, now)  # when each link is next due
        self._agent_at, self._step_at = now, math.inf

    @property
    def exchanges(self) -> int:
        return self.agent.gossip.exchanges - self._exchanged_before

    @property
    def progress(self) -> float:
        return self.agent.descent.epochs

    @property
    def is_settled(self) -> bool:
        """Whether the epoch is trained and no exchange is pending."""
        return self._has_trained and self.agent.phase is not GossipPhase.EXCHANGING

    def act(self, now: float) -> None:
        if now >= self.seat.dies_s:
            self.is_dead = True
            self.halt(now)
            return
        while True:
            for peer in [peer for peer, due_s in self._due.items() if due_s <= now or self._hears(peer)]:
                try:
                    self._untold += ((peer, event) for event in self._ends[peer].poll(now, now))
                except SeqExhausted:
                    begin_again(self.agent, self._ends[peer], now)
                    self._untold = deque(each for each in self._untold if each[0] != peer)
                self._due[peer] = max(now + TICK_S, self._ends[peer].pump.wakeup(now))
            if not self._untold and now < min(self._agent_at, self._step_at):
                return
            self._decide(now)
            self._due = dict.fromkeys(self._ends, now)  # the agent may have sent on any link

    def wakeup(self, now: float) -> float:
        if self.is_dead:
            return math.inf
        return min(self._agent_at, self._step_at, self.seat.dies_s, *self._due.values())

    def halt(self, now: float) -> None:
        """Switches the node off; the disk of a dead one stays as it is."""
        if not self.is_dead:
            self.agent.close(now)
        for peer, end in self._ends.items():
            if not self.is_dead:
                end.pump.close(now)
            self._links[peer].disconnect(self._side(peer))
        self._due = {}
        self._agent_at = self._step_at = math.inf

    @property
    def _has_trained(self) -> bool:
        descent = self.agent.descent
        return descent.batches >= self._epoch * descent.batches_an_epoch

    def _decide(self, now: float) -> None:
        """Does what a board's runtime does in one turn of its loop."""
        agent = self.agent
        while self._untold:
            agent.handle(*self._untold.popleft(), now)
        agent.tick(now)
        if now >= self._step_at:
            self._step(now)
        self._agent_at = max(now + TICK_S, agent.wakeup(now))
        if not agent.trains or self._has_trained:
            self._step_at = math.inf
        elif not now < self._step_at < math.inf:
            self._step_at = now + self.seat.batch_s

    def _step(self, now: float) -> None:
        agent, self._step_at = self.agent, math.inf
        try:
            agent.advance()
        except ValueError as error:  # a loss that is not finite
            agent.fail(error, now)
            if agent.phase is GossipPhase.FAILED:
                raise
            return
        self.losses.append(agent.status()["loss"])
        if self._has_trained:
            self.vector = agent.descent.vector.copy()
        agent.charge(self.seat.batch_s, now)
        agent.tick(now)

    def _port(self, peer: int) -> AirPort:
        port = self._ports[peer] = self._links[peer].connect(self._side(peer), self)
        return port

    def _hears(self, peer: int) -> bool:
        return peer in self._ports and self._ports[peer].has_unread

    def _side(self, peer: int) -> Side:
        return "ground" if self.number < peer else "board"


def seats(
    settings: RingSettings, shares: Sequence[Images], graph: TrainGraph, folder: Path
) -> Iterator[RingSeat]:
    """Yields all nodes, the ground included, each with a disk in `folder`. Raises OSError."""
    weights = topology.metropolis(settings.edges())
    numbers = range(GROUND if settings.ground is not None else 1, settings.nodes + 1)
    start = initial(graph.shapes, settings.seed)
    pace = Pace(settings.board.cpu_share, settings.board.train_flops)
    flops = float(graph.flops_per_image * settings.recipe.batch_size)
    batch_s = pace.next_step_at(0.0, pace.step_cpu_s(0.0, flops))
    none = np.empty((0, *graph.input_shape), np.uint8), np.empty(0, np.int64)

    def learn(config: GossipConfig) -> GossipTraining:
        x, y = (shares[config.id - 1].x, shares[config.id - 1].y) if config.gossip.trains else none
        descent = Descent(graph, start, x, y, settings.recipe, seed=settings.seed, node=config.id)
        setup = replace(setup_of(config, descent.vector), rate=settings.rate)
        return GossipTraining(descent, flops, partial(settings.algorithm.make, setup))

    for number in numbers:
        config = _config(settings, number, weights.get(number, {}), folder / str(number))
        dies_s, contacts = settings.dead.get(number, math.inf), _contacts(settings, number)
        yield RingSeat(config, partial(learn, config), batch_s, dies_s, contacts)


def section(settings: RingSettings, *, trains: bool) -> GossipSection:
    own = {
        "model": settings.model,
        "seed": settings.seed,
        "sparsity": settings.share / ALL,
        "values": settings.values.name.lower(),
        "every": settings.every,
        "patience_s": settings.patience_s,
        "trains": trains,
        "epochs": settings.epochs,
    }
    return msgspec.convert(msgspec.structs.asdict(settings.recipe) | own, GossipSection)


def _config(settings: RingSettings, number: int, weights: Mapping[int, float], folder: Path) -> GossipConfig:
    """Returns what NODE.toml would say of this node, and writes its key files."""
    gossip = section(settings, trains=number != GROUND)
    if settings.algorithm.waits_for_all:
        gossip = msgspec.structs.replace(gossip, patience_s=NEVER_S)
    neighbours = []
    folder.mkdir(parents=True, exist_ok=True)
    for peer, weight in weights.items():
        key_path = folder / f"{peer}.key"
        if not key_path.exists():
            edge = (min(number, peer), max(number, peer))
            save_key(key_path, blake2s(f"key {settings.seed} {edge}".encode()).digest())
        neighbours.append(
            LinkEnd(
                id=peer, link=settings.link_of(number, peer), port="/dev/air", key_path=key_path,
                weight=weight, wait=peer != GROUND,
            )
        )  # fmt: skip
    board = settings.board
    return GossipConfig(
        path=folder / "node.toml", id=number, name=f"node-{number}", board=board, state=folder / "state",
        shard=Shard(source="", shape=(1, 1, 1)),
        cpu_share=board.cpu_share, memory_bytes=board.agent_memory_bytes, checkpoint_s=NEVER_S,
        gossip=gossip, model=settings.model, neighbours=tuple(neighbours),
    )  # fmt: skip


def _contacts(settings: RingSettings, number: int) -> dict[int, list[Window]]:
    passes = settings.ground.passes if settings.ground is not None else {}
    sights = passes if number == GROUND else {GROUND: passes[number]} if number in passes else {}
    return {peer: [Window(rise, set_) for rise, set_ in windows] for peer, windows in sights.items()}
