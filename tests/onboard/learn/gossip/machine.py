"""A ring of four nodes that exchange, for hypothesis: what all machines of its kind may do in any order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from onboard.codec.layout import Floats
from onboard.codec.mask import share_of
from onboard.learn.gossip import topology
from onboard.learn.gossip.exchange import Gossip, GossipSetup

SIZE = 700  # three runs of a mask, of which the last one is shorter
WEIGHTS = topology.metropolis(topology.ring(range(4)))


def made(n: int, numbers: dict[int, int] | None = None, seed: int = 1) -> Gossip:
    start = np.zeros(SIZE, np.float32)
    setup = GossipSetup(node=n, weights=WEIGHTS[n], start=start, seed=seed, share=share_of(0.5))
    return Gossip(setup, numbers or {})


def matrix(weights: Mapping[int, Mapping[int, float]]) -> npt.NDArray[np.float64]:
    """W by rising node, with W_ii on the diagonal."""
    whole = np.array([[weights[i].get(j, 0.0) for j in sorted(weights)] for i in sorted(weights)])
    return whole + np.diag(1 - whole.sum(axis=1))


def random(seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


class GossipRing(RuleBasedStateMachine):
    """Messages and their acknowledgements arrive in any order between edges, and late."""

    @initialize()
    def begin(self) -> None:
        self.vectors = [random(n) for n in range(4)]
        self.total = np.sum(self.vectors, axis=0, dtype=np.float64)
        self.gossips = [made(n) for n in range(4)]
        self.air: list[tuple[int, int, bytes]] = []  # sent, not taken
        self.news: list[tuple[int, int, bytes]] = []  # taken, and the sender does not know it

    def send(self, n: int, peer: int, message: bytes) -> None:
        self.air.append((n, peer, bytes(message)))

    def take(self, a: int, b: int, message: bytes) -> None:
        self.gossips[b].take(a, message)

    @rule(n=st.integers(0, 3))
    def opens(self, n: int) -> None:
        for peer, message in self.gossips[n].open(self.vectors[n]).items():
            self.send(n, peer, message)

    @rule(which=st.integers(0, 100))
    def arrives(self, which: int) -> None:
        if self.air:
            a, b, message = self.air.pop(which % len(self.air))
            self.take(a, b, message)
            self.news.append((a, b, message))

    @rule(which=st.integers(0, 100))
    def acknowledged(self, which: int) -> None:
        if self.news:
            a, b, message = self.news.pop(which % len(self.news))
            if self.gossips[a].message(b) == message:
                self.gossips[a].delivered(b)

    @rule(n=st.integers(0, 3))
    def mixes(self, n: int) -> None:
        self.gossips[n].mix(self.vectors[n])

    def settle(self) -> None:
        """All that is on its way arrives, is acknowledged and mixed."""
        while self.air:
            self.arrives(0)
        while self.news:
            self.acknowledged(0)
        for n in range(4):
            self.mixes(n)
