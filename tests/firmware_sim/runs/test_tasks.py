"""Fleets and rings learn whatever the model's task is, as their commands are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from firmware_sim.cli import main
from firmware_sim.runs.run import RunConfig
from onboard.learn.gossip.descent import strata
from onboard.learn.graph import TrainGraph
from onboard.learn.objectives import METRICS, Kind
from tests.networks import IGNORE, tiny

SHAPE = (3, 8, 8)


def written(folder: Path, kind: Kind) -> str:
    """A set of dark and bright images: the left half is of the class that the brightness says."""
    draw = np.random.default_rng(1)
    arrays = {}
    for part, count in (("", 48), ("_test", 16)):
        bright = draw.integers(0, 2, count)
        x = np.clip(60 + 140 * bright[:, None, None, None] + draw.normal(0, 9, (count, *SHAPE)), 0, 255)
        mask = np.full((count, 8, 8), 2)
        mask[:, :, :4] = bright[:, None, None]
        mask[:, 0] = IGNORE
        y = {"classify": bright, "segment": mask, "regress": np.repeat(bright[:, None], 3, 1) * 1.0}
        arrays |= {f"x{part}": x.astype(np.uint8)} | ({f"y{part}": y[kind]} if kind in y else {})
    np.savez(folder / "set.npz", **arrays)
    return f"npz:{folder / 'set.npz'}"


def played(folder: Path, kind: Kind, *words: str) -> list[dict[str, object]]:
    command = [*words, "--json", "--model", str(tiny(kind)), "--data", written(folder, kind)]
    done = CliRunner().invoke(main, [*command, "--images", "12", "--out", str(folder / "out")])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", METRICS)
def test_a_fleet_learns_any_task(tmp_path: Path, kind: Kind) -> None:
    method = ("--method", "fedavg", "--epochs", "4", "--learning-rate", "0.02", "--rounds", "2")
    first, last = played(tmp_path, kind, "fleet", "--devices", "4", "--select", "2", *method)
    metric = METRICS[kind]
    assert metric.reaches(last[metric.key], first[metric.key])
    assert last["loss"] < first["loss"]  # type: ignore[operator]
    assert (tmp_path / "out" / "rounds.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["segment", "reconstruct"])
def test_a_ring_learns_any_task(tmp_path: Path, kind: Kind) -> None:
    rate = ("--learning-rate", "0.05", "--batch-size", "4", "--epochs", "2", "--every", "1")
    first, last = played(tmp_path, kind, "ring", "--nodes", "3", "--sparsity", "1", *rate)
    metric = METRICS[kind]
    assert last["test_loss"] < first["test_loss"]  # type: ignore[operator]
    scores = last[f"node_{metric.key}"]
    assert len(scores) == 3  # type: ignore[arg-type]


def test_masks_are_mixed_by_the_class_that_most_of_their_pixels_have(tmp_path: Path) -> None:
    masks = np.full((3, 4, 4), IGNORE, np.uint8)
    masks[0, 0, :3], masks[1, :2], masks[2, 3] = 1, 2, 0
    assert strata(masks, IGNORE).tolist() == [1, 2, 0]
    config = RunConfig(data=written(tmp_path, "segment"), images=8, alpha=0.1, out=tmp_path)
    shares, _ = config.load(TrainGraph.load(tiny("segment")), 4, seed=3)
    assert sum(map(len, shares)) == 32
    config = RunConfig(data=written(tmp_path, "regress"), images=8, alpha=0.1, out=tmp_path)
    with pytest.raises(ValueError, match="alpha is for classes, and model 'tiny-regress' is to regress"):
        config.load(TrainGraph.load(tiny("regress")), 4, seed=3)
