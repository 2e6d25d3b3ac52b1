"""Nodes that learn and gossip without a server, in one process on a virtual clock, repeatable from a seed.

Every node is the real gossip agent on its real sessions, and every byte crosses an emulated channel per edge.

An epoch ends when all living nodes have trained it and no exchange is pending. The ring is then switched off,
and every node boots from its disk for the next epoch: the disks alone suffice to continue a stopped ring to
the bit.

With a `GroundNode`, some nodes are gateways: during a pass they exchange with the ground station as with any
neighbour. The station is node 0: it holds a model but trains nothing, and carries what one plane learned to
the others. Nobody waits for it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from firmware_sim.ring.node import RingNode, seats
from firmware_sim.ring.result import EpochResult, Evaluator, RingTotals, draw, texts
from firmware_sim.ring.settings import RingSettings
from firmware_sim.runs.folder import RecordNames, RunError, RunRecord
from firmware_sim.runs.live import RunProgress
from firmware_sim.runs.run import RunConfig, SimulationRun
from firmware_sim.world.channel import Channel, Impairments
from firmware_sim.world.world import AirLink, World, digest_of
from onboard.codec.layout import Floats
from onboard.config import GROUND
from onboard.data.images import Images
from onboard.learn.gossip import topology
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.storage.files import write_durably

NAMES = RecordNames(asked="ring.json", results="epochs.jsonl", state="state-*")
TELL_EVERY = 2000  # events of the world between two reports of progress
TOTALS = "totals.json"


class BadTotals(ValueError):  # noqa: N818 - "bad" says error already
    """A folder that no ring left."""


class Ring:
    """All nodes of a ring and their links. Raises RunError, BadTotals, OSError.

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
        self._folder = folder
        self.totals = _load(folder)
        self._seats = {seat.config.id: seat for seat in seats(settings, shares, train, folder)}
        self._world = World(self.totals.clock_s)
        self._links: dict[topology.Edge, AirLink] = {}
        self._nodes: dict[int, RingNode] = {}
        self._boot()

    @property
    def models(self) -> dict[int, Floats]:
        """The model of each living node that trains, float32 (P,)."""
        return {node.number: node.agent.descent.vector for node in self._training()}

    def save(self, path: Path) -> None:
        shutil.copytree(self._folder, path, copy_function=_copy_durably)

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
                    done = min((node.progress for node in self._training()), default=self._epoch)
                    share = min(max(done - self._epoch + 1, 0.0), 1.0)
                    yield RunProgress(self._epoch, share, self._world.now)
            yield self._end()

    # an epoch

    def _boot(self) -> None:
        self._epoch = epoch = self.totals.epochs + 1
        now = self._world.now
        self._world, self._nodes = World(now), {}
        self._links = {edge: self._link(edge, epoch) for edge in sorted(self.settings.edges())}
        for number, seat in sorted(self._seats.items()):
            if now < seat.dies_s:
                ends = {sum(edge) - number: link for edge, link in self._links.items() if number in edge}
                nonce = Random(digest_of("nonce", self.settings.seed, number, epoch)).randbytes
                self._nodes[number] = node = RingNode(seat, ends, epoch, nonce, now)
                self._world.add(node)

    def _link(self, edge: topology.Edge, epoch: int) -> AirLink:
        settings = self.settings
        seed = int.from_bytes(digest_of("air", settings.seed, *edge, epoch)[:8], "big")
        impairments = Impairments(windows=settings.contacts(edge))
        return AirLink(self._world, Channel(settings.link_of(*edge), impairments, seed=seed))

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


def _copy_durably(source: str, target: str) -> None:
    write_durably(Path(target), Path(source).read_bytes())


def _load(folder: Path) -> RingTotals:
    try:
        return msgspec.json.decode((folder / TOTALS).read_bytes(), type=RingTotals)
    except FileNotFoundError:
        return RingTotals()
    except msgspec.DecodeError as error:
        raise BadTotals(f"not a ring's state: {error}") from None


@dataclass(frozen=True, kw_only=True)
class RingConfig(RunConfig):
    """The settings of a ring's run with its data and folder. `node_images`: as in `Ring`."""

    settings: RingSettings
    images: int = 1000
    node_images: int = 500

    def as_json(self) -> dict[str, Any]:
        """Returns everything that changes a result, as JSON."""
        settings = asdict(self.settings)
        settings["recipe"] = msgspec.to_builtins(self.settings.recipe)
        settings["cuts"] = {f"{a}-{b}": times for (a, b), times in self.settings.cuts.items()}
        own = {"data": self.data, "images": self.images, "alpha": self.alpha, "node_images": self.node_images}
        return own | settings

    def record(self) -> RunRecord[EpochResult] | None:
        """Opens the run's record. Raises RunError, OSError."""
        return None if self.out is None else RunRecord(self.out, NAMES, EpochResult, self.as_json())

    def draw(self, results: list[EpochResult]) -> None:
        """Draws the epochs into the run's folder, if it has one."""
        settings = self.settings
        if self.out is not None:
            title = f"{settings.method}, {settings.shape} of {settings.nodes}, {self.data}"
            draw({settings.method: results}, title, self.out / "ring.png")


class RingRun(SimulationRun[EpochResult]):
    """A ring's run of at most `images` a node. Raises DataError, GraphError, RunError, BadTotals, OSError."""

    def __init__(self, config: RingConfig) -> None:
        settings = config.settings
        super().__init__(settings.model, config.record(), settings.epochs)
        self.config, self.images = config, config.images
        goes_on = "; the same command goes on from there"
        self.texts = texts(settings.epochs, self.train.layout.parameters, settings.link, goes_on)
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
        except BadTotals as error:
            raise BadTotals(f"{config.out}: {error}; choose another folder with --out") from None
        if self.record is not None:
            self.record.claim()

    def draw(self) -> None:
        self.config.draw(self.results)
