"""Real agents in two planes and a ground station's process over UDP: the planes meet by way of it alone."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_sim.ring.processes import PLAN, ProcessRun, create_nodes, meeting, write_plan
from firmware_sim.ring.result import EpochResult
from firmware_sim.ring.settings import GroundNode, RingSettings
from firmware_sim.ring.simulation import RingConfig
from firmware_sim.runs.folder import RunError
from firmware_sim.runs.processes import ProcessGroup
from hw_profiles import load_board, load_link
from onboard.agents.gossip_memory import CHECKPOINT, MODEL
from onboard.codec.layout import Floats
from onboard.data import loading
from onboard.learn.training import Recipe
from onboard.runtime.contact_plan import ContactPlan

PASSES = {1: ((0.0, 300.0),), 3: ((0.0, 1.0), (2.0, 300.0))}
BASE: dict[str, Any] = {
    "nodes": 4, "shape": "planes", "columns": 2, "sparsity": 0.3, "patience_s": 3.0, "every": 2,
    "board": load_board("raspberry-pi-4"), "link": load_link("isl-2mbyte"),
    "ground": GroundNode(load_link("isl-2mbyte"), PASSES),
}  # fmt: skip
STILL = Recipe(learning_rate=1e-30)  # all that changes a model is mixing
WITHIN_S = 60.0
PARAMETERS = 431_080  # of LeNet-5


def test_planes_come_nearer_through_the_ground_alone_and_the_mean_stays(tmp_path: Path) -> None:
    images = loading.load("digits", part="train").take(np.arange(64))
    settings = RingSettings(**BASE | {"epochs": 5, "recipe": STILL})
    files = create_nodes(tmp_path / "nodes", settings, [images] * 4, meeting(settings)[0])
    drawn = np.random.default_rng(0).standard_normal((5, PARAMETERS), np.float32)
    before = dict(enumerate(drawn / 10))
    for node, file in files.items():
        (file.parent / "state").mkdir()
        still = {"velocity": np.zeros(PARAMETERS, np.float32), "batches": 0, "peers": [], "numbers": []}
        np.savez(file.parent / "state" / CHECKPOINT, vector=before[node], **still)  # type: ignore[arg-type]
    crew, until = ProcessGroup(tmp_path / "logs"), time.monotonic() + WITHIN_S
    write_plan(tmp_path / "nodes", settings.ground, datetime.now(timezone.utc))  # type: ignore[arg-type]
    try:
        for node, file in files.items():
            crew.start(str(node), "onboard", "run", str(file), "--log", "json")
        while len(crew.ended()) < 4:
            for _ in crew.listen(0.1):
                pass
            assert time.monotonic() < until
        assert {member.name: member.process.returncode for member in crew.ended()} == dict.fromkeys("1234", 0)
    finally:
        for _ in crew.stop():
            pass
    after = dict[int, Floats]()
    for node, file in files.items():
        with np.load(file.parent / "state" / CHECKPOINT) as state:
            after[node] = state["vector"]
    assert apart(after) < 0.95 * apart(before)  # to within rounding the same, without the ground
    assert np.abs(total(after) - total(before)).max() / 5 < 1e-5
    with np.load(files[0].parent / "state" / MODEL) as model:
        np.testing.assert_array_equal(np.concatenate([model[name].ravel() for name in model]), after[0])


def total(models: dict[int, Floats]) -> Any:
    """Their sum, float64 (P,)."""
    return np.sum([model.astype(np.float64) for model in models.values()], axis=0)


def apart(models: dict[int, Floats]) -> float:
    """How far the mean models of the two planes are from each other."""
    return float(np.linalg.norm(models[1] + models[2] - models[3] - models[4]) / 2)


def test_a_crew_tells_of_its_ground_as_a_ring_does(tmp_path: Path) -> None:
    settings = RingSettings(**BASE | {"epochs": 5, "recipe": Recipe(learning_rate=0.05)})
    wishes = RingConfig(settings=settings, data="digits", images=100, out=tmp_path)
    results = [seen for seen in ProcessRun(wishes).play() if isinstance(seen, EpochResult)]
    assert [result.epoch for result in results] == [1, 2, 3, 4, 5]
    last = results[-1]
    assert last.ground_score is not None
    assert last.ground_score != results[0].ground_score  # it trains nothing itself
    assert 0.3 * 4 * PARAMETERS < last.ground_bytes < last.bytes_sent
    assert last.exchanges > (5 * 2 - 1) * 2  # those within the planes, before the last batch


def test_the_plan_has_each_pass_at_its_time(tmp_path: Path) -> None:
    began = datetime(2026, 1, 1, tzinfo=timezone.utc)
    write_plan(tmp_path, BASE["ground"], began)
    windows = ContactPlan(tmp_path / PLAN, 3, 0).windows(began.timestamp())
    assert [(window.rise, window.set) for window in windows] == [*PASSES[3]]


def test_a_node_alone_has_nobody_to_gossip_with(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nodes \[2, 4\] have no neighbours"):
        create_nodes(tmp_path, RingSettings(**BASE | {"columns": 1}), [], {})
