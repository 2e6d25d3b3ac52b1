"""Nodes that learn and gossip without a server, in one process on a virtual clock, repeatable from a seed.

Every node is the real gossip agent on its real sessions, and every byte crosses an emulated channel per edge.
A batch takes the time that the board profile says.

An epoch ends when all living nodes have trained it and no exchange is pending. The ring is then switched off,
and every node boots from its disk for the next epoch: the disks alone continue a stopped ring, to the bit.

With a `GroundNode`, some nodes are gateways: during a pass they exchange with the ground station as with any
neighbour. The station is node 0: it holds a model but trains nothing, and carries what one plane learned to
the others. Nobody waits for it."""

from __future__ import annotations

import itertools
import math
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np

from firmware_sim.ring.result import (
    HEADING,
    EpochResult,
    Evaluator,
    RingTotals,
    draw,
    framed_bytes,
    line,
    summary,
)
from firmware_sim.ring.settings import RingSettings
from firmware_sim.runs.folder import RunError
from firmware_sim.runs.live import RunDisplay, RunProgress
from firmware_sim.runs.run import RunConfig, RunFiles, SimulationRun
from firmware_sim.world.channel import Channel, Impairments, Side
from firmware_sim.world.world import NEVER_S, TICK_S, AirLink, AirPort, World, digest_of
from onboard.agents.gossip import GossipPhase, GossipTraining
from onboard.board.budget import Pace
from onboard.codec.layout import Floats
from onboard.config import GROUND, GossipConfig, LinkEnd
from onboard.data.images import Images
from onboard.data.inspection import Shard
from onboard.learn.gossip import topology
from onboard.learn.gossip.descent import Descent
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.runtime.gossip import begin_again, linked, setup_of
from onboard.storage.files import write_durably
from onboard.storage.keys import save_key
from onboard.wire.events import Event
from onboard.wire.medium.contact_gate import Window
from onboard.wire.security.seal import SeqExhausted

FILES = RunFiles("ring.json", "epochs.jsonl", "state-*", EpochResult)
TELL_EVERY = 2000  # events of the world between two reports of progress
TOTALS = "totals.json"


class RingNode:
    """A party of the ring's world, from a boot to the end of an epoch. Raises OSError."""

    def __init__(
        self, config: GossipConfig, training: GossipTraining, settings: RingSettings,
        links: Mapping[int, AirLink], epoch: int, now: float,
    ) -> None:  # fmt: skip
        self.number, self._links, self._epoch = config.id, links, epoch
        self._dies_s = settings.dead.get(config.id, math.inf)
        pace = Pace(settings.board.cpu_share, settings.board.train_flops)
        self._batch_s = pace.next_step_at(0.0, pace.step_cpu_s(0.0, training.flops_a_step))
        self.losses: list[float] = []  # of the batches of this epoch
        self.vector: Floats | None = None  # the model after the last batch of the epoch
        self.is_dead = False
        self._ports: dict[int, AirPort] = {}
        nonce = Random(digest_of("nonce", settings.seed, config.id, epoch)).randbytes
        self.agent, self._ends = linked(
            config, training, now,
            lambda end: replace(end, opener=partial(self._port, end.end.id), nonce=nonce),
        )  # fmt: skip
        for peer, end in self._ends.items():
            if GROUND in (peer, config.id):
                passes = settings.contacts((GROUND, max(peer, config.id)))
                end.session.plan([Window(rise, set_) for rise, set_ in passes], now)
        self.agent.resume(now)
        self._exchanged_before = self.agent.gossip.exchanges
        self._untold: deque[tuple[int, Event]] = deque()
        self._due = dict.fromkeys(self._ends, now)  # when each link is next due
        self._agent_at, self._step_at = now, math.inf

    @property
    def exchanges(self) -> int:
        return self.agent.gossip.exchanges - self._exchanged_before

    @property
    def is_settled(self) -> bool:
        """Whether the epoch is trained and no exchange is pending."""
        return self._has_trained and self.agent.phase is not GossipPhase.EXCHANGING

    def act(self, now: float) -> None:
        if now >= self._dies_s:
            self.is_dead = True
            for peer, link in self._links.items():
                link.disconnect(self._side(peer))
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
        return min(self._agent_at, self._step_at, self._dies_s, *self._due.values())

    def halt(self, now: float) -> None:
        """Switches the node off; the disk of a dead one stays as it is."""
        if not self.is_dead:
            self.agent.close(now)
            for end in self._ends.values():
                end.pump.close(now)

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
            self._step_at = now + self._batch_s

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
        agent.charge(self._batch_s, now)
        agent.tick(now)

    def _port(self, peer: int) -> AirPort:
        port = self._ports[peer] = self._links[peer].connect(self._side(peer), self)
        return port

    def _hears(self, peer: int) -> bool:
        return peer in self._ports and self._ports[peer].has_unread

    def _side(self, peer: int) -> Side:
        return "ground" if self.number < peer else "board"


class Ring:
    """All nodes of a ring and their links. Raises RunError, OSError; DecodeError for no ring's folder.

    shares: each node's images; folder: the nodes' disks, continued after the last epoch that they hold;
    node_images: test images that each node's model is evaluated on."""

    def __init__(
        self, settings: RingSettings, shares: Sequence[Images], test: Images, train: TrainGraph,
        infer: InferGraph, folder: Path, node_images: int = 500,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._evaluator = Evaluator(infer, train.layout, test, node_images)
        if len(shares) != settings.nodes:
            raise RunError(f"{settings.nodes} nodes, {len(shares)} shares of images")
        self._shares, self._graph, self._folder = shares, train, folder
        self._start = train.initial(settings.seed)
        self.totals = RingTotals()
        with suppress(FileNotFoundError):
            self.totals = msgspec.json.decode((folder / TOTALS).read_bytes(), type=RingTotals)
        weights = topology.metropolis(settings.edges())
        self._configs = {
            number: _config(settings, number, weights.get(number, {}), folder / str(number))
            for number in settings.numbers
        }
        self._world = World(self.totals.clock_s)
        self._boot()

    @property
    def models(self) -> dict[int, Floats]:
        """The model of each living node that trains, float32 (P,)."""
        return {node.number: node.agent.descent.vector for node in self._training()}

    def save(self, path: Path) -> None:
        def copy(source: str, target: str) -> None:
            write_durably(Path(target), Path(source).read_bytes())

        shutil.copytree(self._folder, path, copy_function=copy)

    def play(self) -> Iterator[RunProgress | EpochResult]:
        """Runs the remaining epochs. At each result, the folder holds the state after that epoch."""
        while self.totals.epochs < self.settings.epochs:
            if self._epoch <= self.totals.epochs:
                self._boot()
            for happening in itertools.count():
                if all(node.is_settled for node in self._training()):
                    break
                self._world.advance()
                if happening % TELL_EVERY == 0:
                    epochs = (node.agent.descent.epochs for node in self._training())
                    share = min(max(min(epochs, default=self._epoch) - self._epoch + 1, 0.0), 1.0)
                    yield RunProgress(self._epoch, share, self._world.now)
            yield self._end()

    def _boot(self) -> None:
        settings, now = self.settings, self._world.now
        self._epoch = epoch = self.totals.epochs + 1
        self._world = World(now)
        self._links: dict[topology.Edge, AirLink] = {}
        for edge in sorted(settings.edges()):
            seed = int.from_bytes(digest_of("air", settings.seed, *edge, epoch)[:8], "big")
            impairments = Impairments(windows=settings.contacts(edge))
            channel = Channel(settings.link_of(*edge), impairments, seed=seed)
            self._links[edge] = AirLink(self._world, channel)
        self._nodes: dict[int, RingNode] = {}
        for number, config in self._configs.items():
            if now < settings.dead.get(number, math.inf):
                ends = {sum(edge) - number: link for edge, link in self._links.items() if number in edge}
                node = RingNode(config, self._learn(config), settings, ends, epoch, now)
                self._nodes[number] = node
                self._world.add(node)

    def _learn(self, config: GossipConfig) -> GossipTraining:
        """Returns a node's training, starting from the first model."""
        graph, settings = self._graph, self.settings
        x, y = np.empty((0, *graph.input_shape), np.uint8), np.empty(0, np.int64)
        if config.gossip.trains:
            x, y = self._shares[config.id - 1].x, self._shares[config.id - 1].y
        descent = Descent(graph, self._start, x, y, settings.recipe, seed=settings.seed, node=config.id)
        setup = replace(setup_of(config, descent.vector), rate=settings.rate)
        flops_a_step = float(graph.flops_per_image * settings.recipe.batch_size)
        return GossipTraining(descent, flops_a_step, partial(settings.algorithm.make, setup))

    def _end(self) -> EpochResult:
        totals, now = self.totals, self._world.now
        sent = {edge: link.bytes_sent for edge, link in self._links.items()}
        self.totals = RingTotals(
            epochs=totals.epochs + 1,
            clock_s=now,
            bytes_sent=totals.bytes_sent + sum(sent.values()),
            ground_bytes=totals.ground_bytes + sum(sent[edge] for edge in sent if GROUND in edge),
            exchange_ends=totals.exchange_ends + sum(node.exchanges for node in self._nodes.values()),
        )
        for node in self._nodes.values():
            node.halt(now)
        (self._folder / TOTALS).write_bytes(msgspec.json.encode(self.totals))
        training = self._training()
        if not training:
            raise RunError(f"all nodes are dead after {now:g} s")
        vectors = [node.vector for node in training if node.vector is not None]
        losses = [sum(node.losses) / len(node.losses) for node in training]
        ground = self._nodes[GROUND].agent.descent.vector if GROUND in self._nodes else None
        return self._evaluator.result(self.totals, vectors, losses, ground)

    def _training(self) -> list[RingNode]:
        return [node for node in self._nodes.values() if node.number != GROUND and not node.is_dead]


def _config(settings: RingSettings, number: int, weights: Mapping[int, float], folder: Path) -> GossipConfig:
    """Returns what NODE.toml would say of this node, and writes its key files."""
    gossip = settings.section(trains=number != GROUND)
    if settings.algorithm.waits_for_all:
        gossip = msgspec.structs.replace(gossip, patience_s=NEVER_S)
    neighbours = []
    folder.mkdir(parents=True, exist_ok=True)
    for peer, weight in weights.items():
        key_path = folder / f"{peer}.key"
        if not key_path.exists():
            edge = (min(number, peer), max(number, peer))
            save_key(key_path, digest_of("key", settings.seed, edge))
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


@dataclass(frozen=True, kw_only=True)
class RingConfig(RunConfig):
    """The settings of a ring's run with its data and folder. `node_images`: as in `Ring`."""

    settings: RingSettings
    node_images: int = 500

    def as_json(self) -> dict[str, Any]:
        settings = asdict(self.settings)
        settings["recipe"] = msgspec.to_builtins(self.settings.recipe)
        settings["cuts"] = {f"{a}-{b}": times for (a, b), times in self.settings.cuts.items()}
        own = {"data": self.data, "images": self.images, "alpha": self.alpha, "node_images": self.node_images}
        return own | settings

    def display(self, graph: TrainGraph, goes_on: str = "") -> RunDisplay[EpochResult]:
        """Returns how a run is shown that trains this model."""
        settings, metric = self.settings, graph.objective.metric
        whole_bytes = framed_bytes(4 * graph.layout.parameters, settings.link)
        in_line = partial(summary, whole_bytes=whole_bytes, metric=metric)
        title = f"{settings.method}, {settings.shape} of {settings.nodes}, {self.data}"
        picture = partial(draw, title=title, path=self.out / "ring.png", metric=metric)
        stopped = f"stopped after {{}} epochs{goes_on}"
        in_a_line = partial(line, metric=metric)
        return RunDisplay(metric, "epoch", settings.epochs, HEADING, in_a_line, in_line, stopped, picture)


class RingRun(SimulationRun[EpochResult]):
    """A ring's run of at most `images` a node. Raises DataError, GraphError, RunError, OSError."""

    def __init__(self, config: RingConfig) -> None:
        settings = config.settings
        super().__init__(settings.model, config.out, FILES, config.as_json(), settings.epochs)
        self.images = config.images
        self.display = config.display(self.train, "; the same command goes on from there")
        if len(self.results) == settings.epochs:
            return
        shares, test = config.load(self.train, settings.nodes, settings.seed)
        self.images = len(shares[0])
        disks = self.disks / "nodes"
        if self.kept is None:
            disks.mkdir()
        else:
            shutil.copytree(self.kept, disks)
        try:
            self.simulation = Ring(settings, shares, test, self.train, self.infer, disks, config.node_images)
        except msgspec.DecodeError as error:
            raise RunError(
                f"{config.out}: not a ring's state: {error}; choose another folder with --out"
            ) from None
