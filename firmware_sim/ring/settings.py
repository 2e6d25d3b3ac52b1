"""The settings of a ring, from the command's options and a scenario file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from firmware_sim.ring.result import Seconds
from firmware_sim.runs.folder import RunError
from hw_profiles import Board, Link, load_link
from onboard.codec.mask import ALL, share_of
from onboard.codec.values import Form
from onboard.config import GROUND, GossipSection, Text, profile
from onboard.console.toml import read
from onboard.learn.gossip import topology
from onboard.learn.gossip.algorithms import ALGORITHMS, AlgorithmKind
from onboard.learn.training import Recipe

Shape = Literal["ring", "planes", "torus", "star", "complete"]


@dataclass(frozen=True, slots=True)
class GroundNode:
    """A ground station. `passes`: ascending (rise, set) in seconds, by gateway."""

    link: Link
    passes: Mapping[int, tuple[tuple[Seconds, Seconds], ...]]


@dataclass(frozen=True, kw_only=True)
class RingSettings:
    """The settings of a ring. Raises RunError for values out of range or in conflict.

    `shape` "planes": a ring of every `columns` nodes; `every`: batches between two exchanges; `rate`: mixing
    rate of topk and choco; `dead`: when nodes fall silent; `cuts`: edges that carry nothing, and when."""

    nodes: int = 8
    method: str = "rd-psgd"
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
            raise RunError(f"{self.nodes} nodes: must be 2 to 254")
        if self.method not in ALGORITHMS:
            raise RunError(f"{self.method}: must be one of {', '.join(ALGORITHMS)}")
        if not self.board.train_flops:
            raise RunError(f"{self.board.name}: {self.board.title} cannot train")
        if (self.dead or self.cuts or self.ground) and self.algorithm.waits_for_all:
            raise RunError(f"{self.method} waits for all its neighbours: no faults and no ground with it")
        known = set(range(1, self.nodes + 1))
        edges = {edge for edge in self.edges() if GROUND not in edge}  # the others have their passes
        if not self.dead.keys() <= known or not self.cuts.keys() <= edges:
            raise RunError(f"faults of {sorted(self.dead)} and {sorted(self.cuts)}: no such nodes or edges")
        if self.ground is not None and not self.ground.passes.keys() <= known:
            raise RunError(f"passes of {sorted(self.ground.passes)}: no such nodes")

    @property
    def algorithm(self) -> AlgorithmKind:
        return ALGORITHMS[self.method]

    @property
    def share(self) -> int:
        """The sparsity p in 65536ths."""
        return ALL if self.algorithm.sends_all else share_of(self.sparsity)

    @property
    def numbers(self) -> range:
        """The numbers of all nodes, the ground included."""
        return range(GROUND if self.ground else 1, self.nodes + 1)

    @property
    def in_parts(self) -> bool:
        """Whether the graph is disconnected, so that the models never agree."""
        return not topology.connected(self.edges(), self.numbers)

    def section(self, *, trains: bool) -> GossipSection:
        """Returns the `[gossip]` table of a node's file."""
        own = {
            "model": self.model,
            "seed": self.seed,
            "sparsity": self.share / ALL,
            "values": self.values.name.lower(),
            "every": self.every,
            "patience_s": self.patience_s,
            "trains": trains,
            "epochs": self.epochs,
        }
        return msgspec.convert(msgspec.structs.asdict(self.recipe) | own, GossipSection)

    def edges(self) -> frozenset[topology.Edge]:
        """Returns who talks to whom; nodes count from 1, the ground is 0. Raises ValueError."""
        nodes = range(1, self.nodes + 1)
        shapes: dict[Shape, Callable[[], frozenset[topology.Edge]]] = {
            "ring": lambda: topology.ring(nodes),
            "planes": lambda: topology.planes(nodes, self.columns),
            "torus": lambda: topology.torus(nodes, self.columns),
            "star": lambda: topology.star(nodes),
            "complete": lambda: topology.complete(nodes),
        }
        return shapes[self.shape]() | {
            (GROUND, gateway) for gateway in (self.ground.passes if self.ground else ())
        }

    def link_of(self, a: int, b: int) -> Link:
        return self.ground.link if self.ground is not None and GROUND in (a, b) else self.link

    def contacts(self, edge: topology.Edge) -> Sequence[tuple[Seconds, Seconds]]:
        """Returns (rise, set) of an edge: a gateway's passes, or all the time around a cut."""
        if self.ground is not None and edge[0] == GROUND:
            return self.ground.passes[edge[1]]
        from_s, until_s = self.cuts.get(edge, (math.inf, math.inf))
        return [(rise, set_) for rise, set_ in ((0.0, from_s), (until_s, math.inf)) if rise < set_]


Moment = Annotated[float, Meta(ge=0, le=1e9)]


class GatewayTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `[[ground.gateway]]` table: a node, and when it sees the ground, in seconds since the start."""

    node: Annotated[int, Meta(ge=1, le=254)]
    passes: Annotated[list[tuple[Moment, Moment]], Meta(min_length=1)]

    def __post_init__(self) -> None:
        overlap = any(before[1] > after[0] for before, after in pairwise(self.passes))
        if overlap or any(rise >= set_ for rise, set_ in self.passes):
            raise ValueError("passes: each is [rise, set], one after the other")


class GroundTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[ground]` table: the station's link profile and its gateways."""

    link: Text
    gateway: Annotated[list[GatewayTable], Meta(min_length=1)]


class ScenarioFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario file. `ring`: options of `firmware-sim ring` by name."""

    ring: dict[str, Any] = msgspec.field(default_factory=dict)
    ground: GroundTable | None = None


def load_scenario(path: Path) -> tuple[dict[str, Any], GroundNode | None]:
    """Returns the options by name, and the ground. Raises ConfigError."""
    file = read(path, ScenarioFile)
    if file.ground is None:
        return file.ring, None
    link = profile(path, "ground.link", file.ground.link, load_link, path.resolve().parent)
    passes = {gateway.node: tuple(gateway.passes) for gateway in file.ground.gateway}
    return file.ring, GroundNode(link, passes)
