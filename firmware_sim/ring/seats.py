"""What each node of a ring has: its configuration, its keys, its images and its disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2s
from pathlib import Path

import msgspec
import numpy as np

from firmware_sim.ring.node import RingSeat
from firmware_sim.ring.settings import RingSettings, link_of
from onboard.agents.gossip import GossipTraining
from onboard.board.budget import Pace
from onboard.codec.mask import ALL
from onboard.config import GROUND, GossipConfig, GossipSection, Neighbour
from onboard.data.loading import Images
from onboard.learn.gossip import topology
from onboard.learn.gossip.algorithms import GossipSetup
from onboard.learn.gossip.descent import Descent
from onboard.learn.graph import TrainGraph, initial
from onboard.storage.keys import save_key
from onboard.wire.medium.contact_gate import Window

NEVER_S = 1e9  # a virtual board loses no power: checkpoints before its end would only cost real time


def seats(
    settings: RingSettings, shares: Sequence[Images], graph: TrainGraph, folder: Path
) -> Iterator[RingSeat]:
    """All nodes, the ground too, each with a disk in `folder`. Raises OSError."""
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
        setup = GossipSetup(
            node=config.id, weights=weights.get(config.id, {}), start=descent.vector, seed=settings.seed,
            share=settings.share, form=settings.values, rate=settings.rate,
        )  # fmt: skip
        return GossipTraining(descent, flops, partial(settings.algorithm.make, setup))

    for number in numbers:
        config = _config(settings, number, weights.get(number, {}), folder / str(number))
        yield RingSeat(
            config=config,
            learn=partial(learn, config),
            batch_s=batch_s,
            dies_s=settings.dead.get(number, math.inf),
            contacts=_contacts(settings, number),
        )


def section(settings: RingSettings, *, trains: bool) -> GossipSection:
    """What a node's file says in [gossip]."""
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
    """What NODE.toml would say of this node; the key files are there."""
    gossip = section(settings, trains=number != GROUND)
    if settings.algorithm.waits_for_all:
        gossip = msgspec.structs.replace(gossip, patience_s=NEVER_S)
    neighbours = []
    folder.mkdir(parents=True, exist_ok=True)
    for peer, weight in weights.items():
        edge = (min(number, peer), max(number, peer))
        key_path = folder / f"{peer}.key"
        if not key_path.exists():
            save_key(key_path, blake2s(f"key {settings.seed} {edge}".encode()).digest())
        neighbours.append(
            Neighbour(
                link=link_of(settings, edge),
                port="/dev/air",
                key_path=key_path,
                id=peer,
                weight=weight,
                wait=peer != GROUND,
            )
        )
    board = settings.board
    return GossipConfig(
        path=folder / "node.toml",
        id=number,
        name=f"node-{number}",
        board=board,
        state=folder / "state",
        data_source="",
        data_folder=None,
        data_shape=(1, 1, 1),
        data_rows=None,
        cpu_share=board.cpu_share,
        memory_bytes=board.agent_memory_bytes,
        checkpoint_s=NEVER_S,
        gossip=gossip,
        model=settings.model,
        neighbours=tuple(neighbours),
    )


def _contacts(settings: RingSettings, number: int) -> dict[int, list[Window]]:
    """When the node sees neighbours that it does not always see."""
    if settings.ground is None:
        return {}
    passes = settings.ground.passes
    sights = passes if number == GROUND else {GROUND: passes[number]} if number in passes else {}
    return {peer: [Window(rise, set_) for rise, set_ in windows] for peer, windows in sights.items()}
