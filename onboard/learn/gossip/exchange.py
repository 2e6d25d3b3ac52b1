"""One node's share of a gossip: neighbours' models flow into one another, and their mean stays what it was.

This is D-PSGD (Lian et al., NeurIPS 2017) and RD-PSGD (Meng et al., 2021, Algorithm 2) without global rounds.
Each edge numbers its own exchanges, and the number takes the place of the round in drawing its mask. Both
ends send their values at the mask. An end adds weight * (received - sent) once it has the other's values and
knows that the other has its own: both do or, in the end, neither. What one model gains the other loses,
however late (`codec.sparse`). Where nobody is late this is the papers' algorithm. A silent neighbour leaves
its edge's exchange open; its weight stays with the node, and nothing waits for it.

An end that lost its memory begins at exchange 0, and takes over the number of a neighbour that is further on.
Once an exchange was completed after a start, a neighbour that follows the rules is never further on than by
one, and a number beyond that is refused. What a neighbour can move a model by is bounded (`outliers`). An end
whose values are refused (another seed, weight, share or model) sends no more until it hears values that it
can use."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2s

import numpy as np

from onboard.codec import sparse
from onboard.codec.layout import Floats
from onboard.codec.mask import ALL, Draw, Mask, drawn
from onboard.codec.sparse import BadExchange, NeighbourValues
from onboard.codec.values import Form
from onboard.learn.gossip.outliers import Clipping, size_of

Message = bytes | memoryview

LAST_NUMBER = 2**32 - 2
"""Of an exchange, that is taken: the one after it can be written still, and no node opens another."""

FURTHEST = 2**31
"""The number that is taken over at most: 68 years of an exchange each second, and as many are left then."""


class Over(BadExchange):
    """The values are of an exchange that is over: whoever sent them has forgotten how far this edge was."""


class ImplausibleExchange(BadExchange):
    """No node that follows the rules sends that: a number far ahead, or values far beyond the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSetup:
    """What an algorithm begins with."""

    node: int
    weights: Mapping[int, float]  # W_ij by neighbour: positive, and 1 in all at most
    start: Floats
    """The first model, float32 (P,), the same at all nodes; it may change once the algorithm is made."""
    seed: int = 0
    share: int = ALL  # p, the share of the coordinates that travels, in 65536ths
    form: Form = Form.FP32  # how values travel, for rd-psgd and d-psgd
    rate: float = 1.0  # of the mixing, for topk (eta) and choco (gamma)
    classes: bytes = b""
    """What tells whether labels mean the same at two nodes (`labels.digest`); empty for labels themselves."""


@dataclass(slots=True)
class _Edge:
    """Where an edge stands; `number` is that of the exchange that is open or opens next."""

    weight: float
    seed: int
    number: int = 0
    mask: Mask | None = None
    message: Message = b""
    sent: Floats | None = None
    there: bool = False  # the neighbour has ours, durably
    received: Floats | None = None
    early: Message = b""  # theirs of the next exchange: they knew before this end that this one is complete
    shut: bool = False  # ours were refused, and nothing usable was heard since
    settled: bool = False  # an exchange was completed since the start: both ends know where the edge stands

    @property
    def complete(self) -> bool:
        return self.sent is not None and self.there and self.received is not None

    def begin(self, number: int) -> None:
        self.number, self.mask, self.message = number, None, b""
        self.sent, self.there, self.received = None, False, None


class Gossip:
    """RD-PSGD, and D-PSGD where the whole model travels. Raises ValueError for weights that are not positive
    or sum to more than 1."""

    def __init__(
        self, setup: GossipSetup, numbers: Mapping[int, int] = {}, memory: Mapping[str, Floats] = {}
    ) -> None:
        weights = dict(setup.weights)
        if min(weights.values(), default=1.0) <= 0 or sum(weights.values()) > 1 + 1e-9:
            raise ValueError(f"weights of node {setup.node}: {weights}, must be above 0 and sum to 1 at most")
        self.node, self._setup, self._size = setup.node, setup, len(setup.start)
        self.exchanges = 0
        self.clipped: dict[int, float] = {}
        self.memory: dict[str, Floats] = {}  # numbers and the model are all that this algorithm remembers
        self.clipping = Clipping(weights, setup.share / ALL)
        self._edges = {
            peer: _Edge(weight, _edge_seed(setup.seed, weight, setup.classes), numbers.get(peer, 0))
            for peer, weight in weights.items()
        }

    @property
    def numbers(self) -> dict[int, int]:
        return {peer: edge.number for peer, edge in self._edges.items()}

    @property
    def waits_for(self) -> frozenset[int]:
        return frozenset(peer for peer, e in self._edges.items() if e.sent is not None and not e.complete)

    @property
    def complete(self) -> tuple[int, ...]:
        return tuple(peer for peer, edge in self._edges.items() if edge.complete)

    @property
    def asked(self) -> frozenset[int]:
        return frozenset(peer for peer, e in self._edges.items() if e.received is not None and e.sent is None)

    def open(self, vector: Floats, peers: Collection[int] | None = None) -> dict[int, Message]:
        # A message is durable before it leaves: an end that sent other values under the same number after a
        # restart would change the mean.
        if math.isinf(self.clipping.scale):
            self.clipping.look_at(vector)
        opened = {}
        for peer, edge in self._edges.items():
            if edge.sent is None and not edge.shut and (peers is None or peer in peers):
                edge.message, edge.sent = sparse.outgoing(vector, self._mask(peer, edge), self._setup.form)
                opened[peer] = edge.message
        return opened

    def reopen(self, peer: int, message: Message, vector: Floats) -> None:
        edge = self._edges[peer]
        edge.begin(sparse.parse(message).round)
        edge.sent, edge.message = sparse.decode(message, self._mask(peer, edge)), message

    def stand_at(self, peer: int, number: int) -> None:
        edge = self._edges[peer]
        if edge.number < number:
            edge.begin(number)

    def message(self, peer: int) -> Message:
        return self._edges[peer].message

    def take(self, peer: int, message: Message) -> int:
        """Raises Over, ImplausibleExchange, and BadExchange for all else."""
        edge = self._edges[peer]
        header = sparse.parse(message)
        if header.round > LAST_NUMBER:
            raise BadExchange(f"exchange {header.round} with node {peer}: numbers end at {LAST_NUMBER}")
        if header.round < edge.number:
            raise Over(f"exchange {header.round} with node {peer} is over, at {edge.number}")
        follows = header.round == edge.number + 1 and edge.sent is not None and edge.received is not None
        if header.round > edge.number and not follows and (edge.settled or header.round > FURTHEST):
            raise ImplausibleExchange(
                f"exchange {header.round} with node {peer}, which is at {edge.number}, not so far"
            )
        mask = self._mask(peer, edge) if header.round == edge.number else self._drawn(peer, header.round)
        received = sparse.decode(message, mask)
        if self.clipping.is_absurd(received):
            sizes = f"{size_of(received):.3g} from node {peer}, the model's are {self.clipping.scale:.3g}"
            raise ImplausibleExchange(f"values of {sizes}")
        edge.shut = False
        if follows:
            edge.there, edge.early = True, message  # it would not go on without ours
            return header.round
        if header.round > edge.number:
            # It opens one only when the last is over: this end forgot how far it was.
            edge.begin(header.round)
            edge.mask = mask
        edge.received = received
        return header.round

    def delivered(self, peer: int) -> None:
        edge = self._edges[peer]
        edge.there = edge.sent is not None

    def refused(self, peer: int) -> None:
        # The exchange does not take place, on either side, before this end hears other values. What the
        # neighbour has sent itself stands, as it says that only once.
        edge = self._edges[peer]
        edge.message, edge.sent, edge.there, edge.shut = b"", None, False, True

    def try_again(self, peer: int) -> None:
        edge = self._edges[peer]
        edge.shut = edge.shut and edge.received is None

    def leave(self, peer: int) -> None:
        edge = self._edges[peer]
        edge.received, edge.early = None, b""

    def start(self, vector: Floats) -> None:
        # What was mixed so far was so in an earlier life, of which any part may be lost: a neighbour may be
        # further on by any number.
        for edge in self._edges.values():
            edge.settled = False
        self.clipping = Clipping(self._edges, self._setup.share / ALL)
        self.clipping.look_at(vector)

    def checkpointed(self) -> None:
        self.clipping.checkpointed()

    @property
    def suspects(self) -> list[int]:
        return self.clipping.pullers()

    def mix(self, vector: Floats) -> tuple[int, ...]:
        peers = self.complete
        self.clipped = {}
        if not peers:
            return peers
        answers = []
        self.clipping.look_at(vector, mixes=True)
        for peer in peers:
            edge = self._edges[peer]
            assert edge.sent is not None, "not complete"
            assert edge.received is not None, "not complete"
            if (share := self.clipping.share(peer, edge.sent, edge.received)) < 1:
                self.clipped[peer] = share
            mask, weight = self._mask(peer, edge), share * edge.weight
            answers.append(NeighbourValues(mask, weight, edge.sent, edge.received))
        sparse.mix(vector, answers)
        for peer in peers:
            edge = self._edges[peer]
            edge.settled = True
            edge.begin(edge.number + 1)
            if edge.early:
                edge.received, edge.early = sparse.decode(edge.early, self._mask(peer, edge)), b""
        self.exchanges += len(peers)
        return peers

    def _mask(self, peer: int, edge: _Edge) -> Mask:
        if edge.mask is None:
            edge.mask = self._drawn(peer, edge.number)
        return edge.mask

    def _drawn(self, peer: int, number: int) -> Mask:
        draw = Draw(self._edges[peer].seed, number, (self.node, peer), self._setup.share)
        return drawn(draw, self._size)


def _edge_seed(seed: int, weight: float, classes: bytes) -> int:
    """Two ends that weigh their edge differently would change the mean, and labels that mean different things
    must not be mixed: such ends draw different masks, and so refuse each other."""
    weighed = struct.pack("<Qf", seed, np.float32(weight)) + classes
    return int.from_bytes(blake2s(weighed, digest_size=8).digest(), "little")
