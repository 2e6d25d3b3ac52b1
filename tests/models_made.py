"""A mission whose rounds are closed and a board that was deployed a model, without a day of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner

import groundstation.cli
from groundstation.config import load_mission
from groundstation.store.store import Store
from onboard.agents.federated_state import DEPLOYED, KEPT, FederatedState
from onboard.codec import formats
from onboard.codec.layout import Floats
from onboard.codec.model import Budget
from onboard.codec.pack import CODECS, pack, unpack
from onboard.learn.federated.local import apply_delta
from onboard.learn.graph import InferGraph
from onboard.mission.objects import MODEL as MODEL_KIND
from onboard.mission.objects import Task, encode_object
from onboard.storage.journal import Journal
from onboard.wire.messages import digest
from tests.missions.bench import change

SEED, MISSION = 3, bytes(range(8))


def packed(graph: InferGraph, number: int) -> bytes:
    """What round `number` moved the weights by, as it travels: random, and large enough to be seen."""
    drawn = np.random.default_rng(number)
    moves = {name: drawn.normal(0, 0.1, shape).astype(np.float32) for name, shape in graph.shapes.items()}
    return pack(CODECS[formats.ALQ].quantize(graph.layout, moves, Budget(1.0, 4)))


def weights(graph: InferGraph, number: int) -> dict[str, Floats]:
    """The weights that boards compute with after round `number`."""
    moves = unpack(packed(graph, number), graph.layout).reconstruct()
    return apply_delta(graph.initial(SEED), moves)


def mission_of(folder: Path, network: str, values: tuple[float, ...] = (0.5, 0.9, 0.7)) -> Path:
    """A mission with one closed round for each of these values of its metric."""
    arguments = ["init", str(folder), "--seed", str(SEED), "--node", "pi,port=/dev/ttyUSB0"]
    assert CliRunner().invoke(groundstation.cli.main, arguments).exit_code == 0
    change(folder / "mission.toml", model=f'"{network}"')
    mission, graph = load_mission(folder), InferGraph.load(network)
    store = Store(mission.database)
    names = tuple(f"class {at}" for at in range(graph.classes)) if graph.objective.has_classes else ()
    store.begin(MISSION, "m", SEED, graph.digest, names)
    store.enter_node(1, "pi")
    for number, value in enumerate(values, 1):
        store.open_round(number, b"model", [1], 0.0, 1.0)
        store.close_round(number, packed(graph, number), value, 0.1, 0.5, 1.0)
    store.close()
    return folder


def deploy(state: Path, number: int, *, network: str | Path = "lenet5", name: str = DEPLOYED) -> InferGraph:
    """Leaves the state folder as a board's after round `number` of a mission, in whose middle `name` is
    MODEL; round 0 leaves it with the first task."""
    graph = InferGraph.load(network)
    task = Task(
        mission=MISSION, round=number + 1, model=graph.name, graph=graph.digest, seed=SEED,
        weights="packed" if number else "seed", training=None, deadline_s=60.0,
    )  # fmt: skip
    payload = encode_object(task, packed(graph, number) if number else b"")
    journal = Journal(state, FederatedState, KEPT)
    journal.keep(name, payload)
    named = digest(MODEL_KIND, payload)
    journal.save(FederatedState(links={}, **{"deployed" if name == DEPLOYED else "model": named}))
    return graph
