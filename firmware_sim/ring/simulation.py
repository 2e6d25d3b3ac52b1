"""Nodes that learn and gossip without a server: one process, a virtual clock, repeatable from a seed.

Every node is the programs' own gossip and descent (`onboard.learn`). A message's bytes are the real ones; of
its way only the time is emulated: each edge is a link of its own in each direction, and a message takes what
its frames take at the link's rate, with as many sent again as the link loses, and the delay. What sessions do
besides (offers, reports, their losses) is in `--processes` and in the tests of the agent.

The clock jumps from one thing to do to the next: nodes need not be in step, and nobody waits longer than
`patience_s` for a neighbour.

With a `GroundNode`, some nodes are gateways: while a pass is open they exchange with the ground station as
with a neighbour. It is node 0 of the same gossip, holds a model and trains nothing, and so what one plane
learned flows to the others. Nobody waits for it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from firmware_sim.ring.baselines import Choco, GossipAlgorithm, TopK
from firmware_sim.ring.result import EpochResult, Evaluator, RingProgress, Seconds
from firmware_sim.ring.state import (
    Acknowledged,
    Event,
    MessageArrival,
    NodeState,
    OutOfPatience,
    RingState,
    TrainingStep,
)
from firmware_sim.world.edge import DirectedLink, contacts_around
from hw_profiles import Board, Link
from onboard.board.budget import Pace
from onboard.codec.layout import Floats
from onboard.codec.mask import ALL, share_of
from onboard.codec.values import Form
from onboard.data.loading import Images
from onboard.learn.gossip import topology
from onboard.learn.gossip.descent import Descent, Recipe
from onboard.learn.gossip.exchange import Gossip, Message
from onboard.learn.graph import InferGraph, TrainGraph, initial
from onboard.learn.vectors import flat

Method = Literal["rd-psgd", "d-psgd", "topk", "choco"]
Shape = Literal["ring", "planes", "torus", "star", "complete"]
GROUND = 0
TELL_EVERY = 50  # happenings between two looks at the progress


class RingError(ValueError):
    """The ring cannot be as asked for; one line."""


@dataclass(frozen=True, slots=True)
class GroundNode:
    """A ground station. `passes`: (rise, set) in seconds, one after the other, by gateway."""

    link: Link
    passes: Mapping[int, tuple[tuple[Seconds, Seconds], ...]]


@dataclass(frozen=True, kw_only=True)
class RingSettings:
    """What a ring is told. `shape` "planes": a ring of every `columns` nodes; `every`: batches between two
    exchanges; `rate`: of the mixing, for topk and choco; `dead`: nodes that fall silent, and when; `cuts`:
    edges that carry nothing from one time until another.

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
    ground: GroundNode | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.nodes <= 254:
            raise RingError(f"{self.nodes} nodes: must be 2 to 254")
        if not self.board.train_flops:
            raise RingError(f"{self.board.name}: {self.board.title} cannot train")
        if (self.dead or self.cuts or self.ground) and self.method in ("topk", "choco"):
            raise RingError(f"{self.method} waits for all its neighbours: no faults and no ground with it")
        known = set(range(1, self.nodes + 1))
        edges = {edge for edge in self.edges() if GROUND not in edge}  # the others have their passes
        if not self.dead.keys() <= known or not self.cuts.keys() <= edges:
            raise RingError(f"faults of {sorted(self.dead)} and {sorted(self.cuts)}: no such nodes or edges")
        if self.ground is not None and not self.ground.passes.keys() <= known:
            raise RingError(f"passes of {sorted(self.ground.passes)}: no such nodes")

    @property
    def share(self) -> int:
        """p in 65536ths."""
        return ALL if self.method == "d-psgd" else share_of(self.sparsity)

    @property
    def in_parts(self) -> bool:
        """No way leads from every node to every other: their models never agree."""
        nodes = range(GROUND if self.ground else 1, self.nodes + 1)
        return topology.slowest(topology.metropolis(self.edges()), nodes) > 1 - 1e-9

    def edges(self) -> frozenset[topology.Edge]:
        """Who talks to whom; nodes count from 1, the ground is 0. Raises RingError."""
        nodes = range(1, self.nodes + 1)
        try:
            edges = {
                "ring": lambda: topology.ring(nodes),
                "planes": lambda: topology.planes(nodes, self.columns),
                "torus": lambda: topology.torus(nodes, self.columns),
                "star": lambda: topology.star(nodes),
                "complete": lambda: topology.complete(nodes),
            }[self.shape]()
        except ValueError as error:
            raise RingError(str(error)) from None
        return edges | {(GROUND, gateway) for gateway in (self.ground.passes if self.ground else ())}


@dataclass
class _Node:
    """One node; the ground has no descent. `waiting_since`: at an exchange; None while it trains."""

    number: int
    vector: Floats
    descent: Descent | None
    talker: GossipAlgorithm
    dies_s: Seconds = math.inf
    waiting_since: Seconds | None = None
    losses: list[float] = field(default_factory=list)  # of the present epoch
    epoch_losses: list[float] = field(default_factory=list)

    def state(self) -> NodeState:
        model = self.descent.state() if self.descent else {"vector": self.vector}
        return NodeState(model, self.talker.state(), self.waiting_since, self.losses, self.epoch_losses)

    def restore(self, state: NodeState) -> None:
        if self.descent:
            self.descent.restore(**state.model)
        else:
            self.vector[...] = state.model["vector"]
        self.talker.restore(**state.talker)
        self.waiting_since, self.losses, self.epoch_losses = (
            state.waiting_since, state.losses, state.epoch_losses,
        )  # fmt: skip


class Ring:
    """`shares`: the images of each node. node_images: how many test images each node's model is tried on.

    Raises RingError, ValueError.
    """

    def __init__(
        self, settings: RingSettings, shares: Sequence[Images], test: Images, train: TrainGraph,
        infer: InferGraph, node_images: int = 500,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._judge = Evaluator(infer, train.layout, test, node_images)
        start = initial(train.shapes, settings.seed)
        weights = topology.metropolis(settings.edges())
        if len(shares) != settings.nodes:
            raise RingError(f"{settings.nodes} nodes, {len(shares)} shares of images")
        self._nodes: dict[int, _Node] = {}
        for number, images in enumerate(shares, start=1):
            descent = Descent(
                train, start, images.x, images.y, settings.recipe, seed=settings.seed, node=number
            )
            talker = self._talker(number, weights.get(number, {}), descent.vector)
            dies_s = settings.dead.get(number, math.inf)
            self._nodes[number] = _Node(number, descent.vector, descent, talker, dies_s)
        if settings.ground is not None:
            vector = flat(train.layout, start)
            self._nodes[GROUND] = _Node(GROUND, vector, None, self._talker(GROUND, weights[GROUND], vector))
        pace = Pace(settings.board.cpu_share, settings.board.train_flops)
        flops = train.flops_per_image * settings.recipe.batch_size
        self._batch_s = pace.next_step_at(0.0, pace.step_cpu_s(0.0, flops))
        self._ways = {way: self._way(*way) for a, b in settings.edges() for way in ((a, b), (b, a))}
        self._events: list[tuple[Seconds, int, Event]] = []
        self._ordered = 0  # events so far: of two at the same time the older one comes first
        self._now = 0.0
        self.epochs = 0  # that are over
        self.exchanges = 0
        for node in self._living():
            self._later(self._batch_s, TrainingStep(node.number))

    @property
    def bytes_sent(self) -> int:
        """On all links, framing included."""
        return sum(way.bytes_sent for way in self._ways.values())

    @property
    def models(self) -> dict[int, Floats]:
        """Of each node that lives and trains, float32 (P,)."""
        return {node.number: node.vector for node in self._living()}

    def play(self) -> Iterator[RingProgress | EpochResult]:
        """Runs the epochs that are left."""
        for epoch in range(self.epochs + 1, self.settings.epochs + 1):
            for happening in itertools.count():
                if min(len(node.epoch_losses) for node in self._living()) >= epoch:
                    break
                self._advance()
                if happening % TELL_EVERY == 0:
                    done = min(node.descent.epochs for node in self._living() if node.descent)
                    yield RingProgress(epoch, min(max(done - epoch + 1, 0.0), 1.0), self._now)
            self.epochs = epoch
            yield self._result(epoch)

    def state(self) -> RingState:
        """What `restore` needs, of an epoch's end; its arrays and lists are the ring's own."""
        return RingState(
            epochs=self.epochs, now=self._now, ordered=self._ordered, exchanges=self.exchanges,
            events=self._events, nodes={number: node.state() for number, node in self._nodes.items()},
            ways=[(*ends, way.state()) for ends, way in self._ways.items()],
        )  # fmt: skip

    def restore(self, state: RingState) -> None:
        """Goes on from `state`, whose arrays and lists become the ring's own. Raises ValueError for another
        ring's."""
        for number, node in self._nodes.items():
            node.restore(state.nodes[number])
        for sender, receiver, way in state.ways:
            self._ways[sender, receiver].restore(**way)
        self.epochs, self._now, self._ordered = state.epochs, state.now, state.ordered
        self.exchanges, self._events = state.exchanges, state.events

    # what happens

    def _advance(self) -> None:
        self._now, _, event = heapq.heappop(self._events)
        match event:
            case TrainingStep(node):
                self._train(self._nodes[node])
            case OutOfPatience(node, since_s):
                self._out_of_patience(self._nodes[node], since_s)
            case MessageArrival(sender, receiver, message):
                self._arrive(self._nodes[sender], self._nodes[receiver], message)
            case Acknowledged(sender, receiver):
                self._acknowledge(self._nodes[sender], self._nodes[receiver])

    def _later(self, after_s: Seconds, event: Event) -> None:
        heapq.heappush(self._events, (self._now + after_s, self._ordered, event))
        self._ordered += 1

    def _train(self, node: _Node) -> None:
        """A batch is done."""
        if self._now >= node.dies_s:
            return
        descent = node.descent
        assert descent is not None, "the ground trains nothing"
        node.losses.append(descent.step())
        if descent.batches % descent.batches_an_epoch == 0:
            node.epoch_losses.append(sum(node.losses) / len(node.losses))
            node.losses.clear()
        if descent.batches % self.settings.every:
            self._go_on(node)
            return
        self._open(node)
        node.waiting_since = self._now
        self._later(self.settings.patience_s, OutOfPatience(node.number, self._now))
        self._mix(node)

    def _open(self, node: _Node) -> None:
        """Sends to neighbours; to and from the ground while there is contact, as values of the last pass are
        stale by the next."""
        talker = node.talker
        if isinstance(talker, Gossip):
            peers = [
                peer
                for peer in talker.numbers
                if GROUND not in (peer, node.number) or self._ways[node.number, peer].is_open(self._now)
            ]
            messages: Mapping[int, Message] = talker.open(node.vector, peers)
        else:
            messages = talker.open(node.vector)
        for peer, message in messages.items():
            self._send(node, self._nodes[peer], message)

    def _out_of_patience(self, node: _Node, since: Seconds) -> None:
        if node.waiting_since == since:
            node.talker.out_of_patience()
            self._mix(node)

    def _go_on(self, node: _Node) -> None:
        node.waiting_since = None
        if len(node.epoch_losses) < self.settings.epochs:
            self._later(self._batch_s, TrainingStep(node.number))

    def _mix(self, node: _Node) -> None:
        """Mixes what is complete; a node that waited for it trains on."""
        self.exchanges += len(node.talker.mix(node.vector))
        if node.waiting_since is not None and not node.talker.waits_for - {GROUND}:
            self._go_on(node)

    def _arrive(self, sender: _Node, receiver: _Node, message: Message) -> None:
        if self._now >= receiver.dies_s:
            return
        receiver.talker.take(sender.number, message)
        delay_s = self._ways[receiver.number, sender.number].delay_s
        self._later(delay_s, Acknowledged(sender.number, receiver.number))
        if receiver.number == GROUND:
            self._open(receiver)
        self._mix(receiver)

    def _acknowledge(self, sender: _Node, receiver: _Node) -> None:
        if self._now < sender.dies_s:
            sender.talker.delivered(receiver.number)
            self._mix(sender)

    # the links

    def _send(self, sender: _Node, receiver: _Node, message: Message) -> None:
        arrives_s = self._ways[sender.number, receiver.number].send(len(message), self._now)
        if arrives_s < math.inf:
            self._later(arrives_s - self._now, MessageArrival(sender.number, receiver.number, bytes(message)))

    def _way(self, sender: int, receiver: int) -> DirectedLink:
        settings, edge = self.settings, (min(sender, receiver), max(sender, receiver))
        if settings.ground is not None and edge[0] == GROUND:
            link = settings.ground.link
            rate_bps = link.rate_down_bps if sender == GROUND else link.rate_up_bps
            return DirectedLink(link, rate_bps, settings.ground.passes[edge[1]])
        return DirectedLink(
            settings.link, settings.link.rate_up_bps, contacts_around(settings.cuts.get(edge))
        )

    # what comes of it

    def _talker(self, number: int, weights: Mapping[int, float], start: Floats) -> GossipAlgorithm:
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
        """Nodes that train, and still do."""
        return [node for node in self._nodes.values() if node.descent and self._now < node.dies_s]

    def _result(self, epoch: int) -> EpochResult:
        living = self._living()
        return self._judge.result(
            epoch,
            [node.vector for node in living],
            [node.epoch_losses[epoch - 1] for node in living],
            bytes_sent=self.bytes_sent,
            exchanges=self.exchanges // 2,
            clock_s=self._now,
            ground=self._nodes[GROUND].vector if GROUND in self._nodes else None,
            ground_bytes=sum(way.bytes_sent for ends, way in self._ways.items() if GROUND in ends),
        )
