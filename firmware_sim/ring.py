"""Nodes that learn and gossip without a server: one process, a virtual clock, repeatable from a seed.

Every node is the programs' own gossip and descent (`onboard.learn`). A message's bytes are the real ones; of
its way only the time is emulated: each edge is a link of its own in each direction, and a message takes what
its frames take at the link's rate, with as many sent again as the link loses, and the delay. What sessions do
besides (offers, reports, their losses) is in `--processes` and in the tests of the agent.

The clock jumps from one thing to do to the next: nodes need not be in step, and nobody waits longer than
`patience_s` for a neighbour.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from firmware_sim.ring_baselines import Choco, Talker, TopK
from hw_profiles import Board, Link
from onboard.budget import Pace
from onboard.codec.layout import Floats, Layout
from onboard.codec.mask import ALL, share_of
from onboard.codec.values import Form
from onboard.data import Images
from onboard.learn import topology
from onboard.learn.descent import Descent, Recipe, consensus_distance, mean_of
from onboard.learn.gossip import Gossip, Message
from onboard.learn.graph import InferGraph, TrainGraph, evaluate, initial
from onboard.learn.vectors import flat, views
from onboard.wire import cobs
from onboard.wire.frame import OVERHEAD_BYTES

Method = Literal["rd-psgd", "d-psgd", "topk", "choco"]
Shape = Literal["ring", "torus", "star", "complete"]
Seconds = float
TELL_EVERY = 50  # happenings between two looks at the progress


class RingError(ValueError):
    """The ring cannot be as asked for; one line."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a ring is told. `every`: batches between two exchanges; `rate`: of the mixing, for topk and choco;
    `dead`: nodes that fall silent, and when; `cuts`: edges that carry nothing from one time until another.

    Raises RingError for what cannot be.
    """

    nodes: int = 8
    method: Method = "rd-psgd"
    sparsity: float = 0.1
    values: Form = Form.FP32
    shape: Shape = "ring"
    columns: int = 4
    every: int = 1
    patience_s: Seconds = 60.0
    rate: float = 0.4
    model: str = "lenet5"
    recipe: Recipe = field(default_factory=Recipe)
    epochs: int = 5
    seed: int = 0
    board: Board
    link: Link
    dead: Mapping[int, Seconds] = field(default_factory=dict)
    cuts: Mapping[topology.Edge, tuple[Seconds, Seconds]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 2 <= self.nodes <= 254:
            raise RingError(f"{self.nodes} nodes: must be 2 to 254")
        if not self.board.train_flops:
            raise RingError(f"{self.board.name}: {self.board.title} cannot train")
        if (self.dead or self.cuts) and self.method in ("topk", "choco"):
            raise RingError(f"{self.method} waits for all its neighbours: no faults with it")
        known, edges = set(range(1, self.nodes + 1)), self.edges()
        if not self.dead.keys() <= known or not self.cuts.keys() <= edges:
            raise RingError(f"faults of {sorted(self.dead)} and {sorted(self.cuts)}: no such nodes or edges")

    @property
    def share(self) -> int:
        """p in 65536ths."""
        return ALL if self.method == "d-psgd" else share_of(self.sparsity)

    def edges(self) -> frozenset[topology.Edge]:
        """Who talks to whom; nodes count from 1. Raises RingError."""
        nodes = range(1, self.nodes + 1)
        try:
            return {
                "ring": lambda: topology.ring(nodes),
                "torus": lambda: topology.torus(nodes, self.columns),
                "star": lambda: topology.star(nodes),
                "complete": lambda: topology.complete(nodes),
            }[self.shape]()
        except ValueError as error:
            raise RingError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """All nodes that live have done `epoch`. `loss`: mean over their training batches of it; `accuracy`,
    `test_loss`: of the mean model on all test images; `node_accuracies`: of each living node's model, on as
    many as `Ring` was told; `distance`: see `consensus_distance`; `bytes_sent`: on all links so far, framing
    included; `exchanges`: completed by both ends so far."""

    epoch: int
    loss: float
    accuracy: float
    test_loss: float
    node_accuracies: tuple[float, ...]
    distance: float
    bytes_sent: int
    exchanges: int
    clock_s: Seconds


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands: share of the epoch that is done, 0 to 1."""

    epoch: int
    done: float
    clock_s: Seconds


@dataclass(frozen=True)
class Judge:
    """Tries models on test images: the mean one on all, those of nodes on the first `node_images`."""

    infer: InferGraph
    layout: Layout
    test: Images
    node_images: int = 500

    def result(
        self, epoch: int, vectors: list[Floats], losses: list[float], *, bytes_sent: int, exchanges: int,
        clock_s: Seconds,
    ) -> EpochResult:  # fmt: skip
        """vectors: of the nodes that live, float32 (P,); losses: of their training."""
        few = self.test.x[: self.node_images], self.test.y[: self.node_images]
        accuracy, test_loss = self._score(mean_of(vectors), self.test.x, self.test.y)
        return EpochResult(
            epoch=epoch,
            loss=sum(losses) / len(losses),
            accuracy=accuracy,
            test_loss=test_loss,
            node_accuracies=tuple(self._score(vector, *few)[0] for vector in vectors),
            distance=consensus_distance(vectors),
            bytes_sent=bytes_sent,
            exchanges=exchanges,
            clock_s=clock_s,
        )

    def _score(self, vector: Floats, x: object, y: object) -> tuple[float, float]:
        *_, score = evaluate(self.infer, views(self.layout, vector), x, y)  # type: ignore[arg-type]
        return score.accuracy, score.loss


@dataclass
class _Node:
    """One node. `waiting_since`: at an exchange; None while it trains."""

    number: int
    descent: Descent
    talker: Talker
    dies_s: Seconds
    waiting_since: Seconds | None = None
    losses: list[float] = field(default_factory=list)  # of the present epoch
    epoch_losses: list[float] = field(default_factory=list)
    done: bool = False


class Ring:
    """`shares`: the images of each node. node_images: how many test images each node's model is tried on.

    Raises RingError, ValueError.
    """

    def __init__(
        self, settings: Settings, shares: Sequence[Images], test: Images, train: TrainGraph,
        infer: InferGraph, node_images: int = 500,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._judge = Judge(infer, train.layout, test, node_images)
        start = initial(train.shapes, settings.seed)
        weights = topology.metropolis(settings.edges())
        vector = flat(train.layout, start)
        self._nodes = {
            number: _Node(
                number,
                Descent(train, start, images.x, images.y, settings.recipe, seed=settings.seed, node=number),
                self._talker(number, weights[number], vector),
                settings.dead.get(number, math.inf),
            )
            for number, images in enumerate(shares, start=1)
        }
        if len(self._nodes) != settings.nodes:
            raise RingError(f"{settings.nodes} nodes, {len(self._nodes)} shares of images")
        pace = Pace(settings.board.cpu_share, settings.board.train_flops)
        flops = train.flops_per_image * settings.recipe.batch_size
        self._batch_s = pace.next_step_at(0.0, pace.step_cpu_s(0.0, flops))
        self._free_s: dict[tuple[int, int], Seconds] = {}  # when an edge's transmitter is free again
        self._events: list[tuple[Seconds, int, str, tuple[object, ...]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self.bytes_sent = self.exchanges = 0

    @property
    def models(self) -> dict[int, Floats]:
        """Of each node that lives, float32 (P,)."""
        return {node.number: node.descent.vector for node in self._living()}

    def play(self) -> Iterator[Moment | EpochResult]:
        """Runs all epochs."""
        for node in self._nodes.values():
            self._later(self._batch_s, "train", node)
        for epoch in range(1, self.settings.epochs + 1):
            for happening in itertools.count():
                if min(len(node.epoch_losses) for node in self._living()) >= epoch:
                    break
                self._advance()
                if happening % TELL_EVERY == 0:
                    done = min(node.descent.epochs for node in self._living())
                    yield Moment(epoch, min(max(done - epoch + 1, 0.0), 1.0), self._now)
            yield self._result(epoch)

    # what happens

    def _advance(self) -> None:
        self._now, _, what, about = heapq.heappop(self._events)
        getattr(self, f"_{what}")(*about)

    def _later(self, after_s: Seconds, what: str, *about: object) -> None:
        heapq.heappush(self._events, (self._now + after_s, next(self._order), what, about))

    def _train(self, node: _Node) -> None:
        """A batch is done."""
        if self._now >= node.dies_s:
            return
        descent = node.descent
        node.losses.append(descent.step())
        if descent.batches % descent.batches_an_epoch == 0:
            node.epoch_losses.append(sum(node.losses) / len(node.losses))
            node.losses.clear()
            node.done = len(node.epoch_losses) == self.settings.epochs
        if descent.batches % self.settings.every:
            self._go_on(node)
            return
        for peer, message in node.talker.open(descent.vector).items():
            self._send(node, self._nodes[peer], message)
        node.waiting_since = self._now
        self._later(self.settings.patience_s, "out_of_patience", node, self._now)
        self._mix(node)

    def _out_of_patience(self, node: _Node, since: Seconds) -> None:
        if node.waiting_since == since:
            node.talker.out_of_patience()
            self._mix(node)

    def _go_on(self, node: _Node) -> None:
        node.waiting_since = None
        if not node.done:
            self._later(self._batch_s, "train", node)

    def _mix(self, node: _Node) -> None:
        """Mixes what is complete; a node that waited for it trains on."""
        self.exchanges += len(node.talker.mix(node.descent.vector))
        if node.waiting_since is not None and not node.talker.waits_for:
            self._go_on(node)

    def _arrive(self, sender: _Node, receiver: _Node, message: Message) -> None:
        if self._now >= receiver.dies_s:
            return
        receiver.talker.take(sender.number, message)
        self._later(self.settings.link.delay_s, "acknowledge", sender, receiver)
        self._mix(receiver)

    def _acknowledge(self, sender: _Node, receiver: _Node) -> None:
        if self._now < sender.dies_s:
            sender.talker.delivered(receiver.number)
            self._mix(sender)

    # the links

    def _send(self, sender: _Node, receiver: _Node, message: Message) -> None:
        link = self.settings.link
        wire_bytes = math.ceil(framed_bytes(len(message), link) / (1 - link.frame_loss))
        way = sender.number, receiver.number
        begins_s = max(self._now, self._free_s.get(way, 0.0))
        cut = self.settings.cuts.get((min(way), max(way)))
        airtime_s = wire_bytes * link.bits_per_byte / link.rate_up_bps
        if cut is not None and begins_s < cut[1] and begins_s + airtime_s > cut[0]:
            begins_s = cut[1]  # what was sent before it is not sent again, and here not counted
        self._free_s[way] = begins_s + airtime_s
        self.bytes_sent += wire_bytes
        self._later(self._free_s[way] + link.delay_s - self._now, "arrive", sender, receiver, message)

    # what comes of it

    def _talker(self, number: int, weights: Mapping[int, float], start: Floats) -> Talker:
        settings, size = self.settings, len(start)
        share = settings.share / ALL
        if settings.method == "topk":
            return TopK(weights, size=size, share=share, rate=settings.rate)
        if settings.method == "choco":
            return Choco(weights, size=size, share=share, rate=settings.rate, start=start)
        return Gossip(
            number, weights, size=size, seed=settings.seed, share=settings.share, form=settings.values
        )

    def _living(self) -> list[_Node]:
        return [node for node in self._nodes.values() if self._now < node.dies_s]

    def _result(self, epoch: int) -> EpochResult:
        living = self._living()
        return self._judge.result(
            epoch,
            [node.descent.vector for node in living],
            [node.epoch_losses[epoch - 1] for node in living],
            bytes_sent=self.bytes_sent,
            exchanges=self.exchanges // 2,
            clock_s=self._now,
        )


def framed_bytes(message_bytes: int, link: Link) -> int:
    """What a message takes on the wire in frames of the link's MTU, once: header, tag and COBS."""
    payload_bytes = link.mtu_bytes - OVERHEAD_BYTES
    whole, rest = divmod(message_bytes, payload_bytes)
    last = cobs.wire_bytes(rest + OVERHEAD_BYTES) if rest else 0
    return whole * cobs.wire_bytes(link.mtu_bytes) + last
