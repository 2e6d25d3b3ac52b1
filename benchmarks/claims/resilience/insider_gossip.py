"""A node that gossips between an honest neighbour and a hostile one, with exchanges of 1.7 MB."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.claims.resilience.insider_kinds import Play
from benchmarks.claims.resilience.insider_world import Charged, Hostile
from benchmarks.harness.missions import EDGE, VirtualRing, edge, graphs
from hw_profiles import load_link
from onboard.codec import sparse
from onboard.learn.gossip import topology
from onboard.learn.gossip.exchange import Gossip, GossipSetup
from onboard.mission.objects import GOSSIP as KIND
from onboard.wire.events import Arrived

EXCHANGES = 5  # with the honest neighbour: then it is over
LAST = 2**32 - 1


class Ringed(VirtualRing):
    """Nodes 1 and 2 are honest, and node 3 is not; node 1 is charged for what it does."""

    programs = ("node-1", "node-2")

    def __init__(self, folder: Path, seed: str) -> None:
        super().__init__(folder, seed, encrypted=False)
        self.world: Charged = self._charged(seed)
        self.world.charged = {"node-1"}
        for number in (1, 2):
            toml = folder / f"node-{number}" / "node.toml"
            text = toml.read_text().replace("sparsity = 0.01", "sparsity = 1.0")
            toml.write_text(text.replace("epochs = 3", "epochs = 1000"))
        self.hostile = Hostile(
            self.world, edge(1, 3), folder / "node-3" / "1.key", node=3, peer=1, master=False, link=EDGE
        )

    def _charged(self, seed: str) -> Charged:
        world = Charged(seed)
        for a, b in topology.ring((1, 2, 3)):
            world.lay(edge(a, b), load_link(EDGE), f"node-{a}", f"node-{b}")
        return world

    def boot_all(self) -> None:
        """All programs, the hostile one too."""
        for name in self.programs:
            self.boot(name)
        self.world.start("node-3", self.hostile.main)

    def _exchanged(self) -> list[float]:
        return [
            said.at_s
            for said in self.world.said
            if said.program == "node-1" and said.event == "exchanged" and said.fields.get("peer") == 2
        ]

    def has_exchanged(self) -> bool:
        """Whether the honest neighbours have mixed their models so often."""
        return len(self._exchanged()) >= EXCHANGES

    def seconds(self) -> float:
        """How long that took, from the first on: that waits for a neighbour who is silent."""
        exchanged = self._exchanged()
        return exchanged[EXCHANGES - 1] - exchanged[0]


def _answers(values: Callable[[Hostile], float], number: Callable[[int], int] = lambda n: n) -> Play:
    """An exchange for each one that comes: of this value everywhere, under a number made from its own."""

    def play(hostile: Hostile) -> None:
        came = [e.payload for e in hostile.heard if isinstance(e, Arrived) and e.kind == KIND]
        if not hostile.is_free or len(came) <= hostile.answered:
            return
        hostile.answered = len(came)
        size = graphs()[0].layout.parameters
        at = number(sparse.parse(came[-1]).round)
        gossip = Gossip(GossipSetup(node=3, weights={1: 1 / 3}, start=np.zeros(size, np.float32)), {1: at})
        message = bytes(gossip.open(np.full(size, values(hostile), np.float32))[1])
        hostile.offer(KIND, message)

    return play


def _noise(size: int) -> Play:
    def play(hostile: Hostile) -> None:
        if hostile.is_free and hostile.due(20.0):
            hostile.offer(KIND, hostile.random.randbytes(size))

    return play


GOSSIP: Mapping[str, Play] = {
    "values of 1e20": _answers(lambda h: 1e20),
    "values of 1e3": _answers(lambda h: 1e3),
    "values of 1e38": _answers(lambda h: 1e38),
    "values that are denormal": _answers(lambda h: 1e-40),
    "the exchange of number 4,294,967,295": _answers(lambda h: 0.1, lambda n: LAST),
    "exchanges a thousand numbers ahead": _answers(lambda h: 0.1, lambda n: min(n + 1000, LAST)),
    "the same exchange again": _answers(lambda h: 0.1, lambda n: 1),
    "exchanges of noise": _noise(5_000),
}
