"""Rings learn by every method, repeat from their seed, and go on whatever becomes of nodes and edges."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from firmware_sim.cli import main
from firmware_sim.ring.result import EpochResult, framed_bytes
from firmware_sim.ring.settings import GroundNode, RingSettings
from firmware_sim.ring.simulation import Ring
from firmware_sim.runs.folder import RunError
from firmware_sim.runs.run import iid
from firmware_sim.world.disk import scratch
from hw_profiles import load_board, load_link
from onboard.codec.mask import Draw, drawn, share_of
from onboard.data import loading
from onboard.data.images import Images
from onboard.learn.gossip import topology
from onboard.learn.gossip.descent import consensus
from onboard.learn.gossip.exchange import Gossip, GossipSetup
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.training import Recipe
from tests.line import ship

COARSE = ("--frame-bytes", "65507")
LINK = replace(load_link("isl-2mbyte"), mtu_bytes=16_000)  # few frames are soon played
BASE: dict[str, Any] = {
    "nodes": 4, "every": 4, "epochs": 3, "recipe": Recipe(learning_rate=0.05),
    "board": load_board("raspberry-pi-4"), "link": LINK,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> tuple[list[Images], Images, TrainGraph, InferGraph]:
    train, infer = TrainGraph.load("lenet5"), InferGraph.load("lenet5")
    images = loading.load("digits", part="train")
    shares = [images.take(rows) for rows in iid(images.y, 4, 200, 0)]
    return shares, loading.load("digits", part="test"), train, infer


@pytest.fixture
def disks() -> Iterator[Path]:
    with scratch() as folder:
        yield folder


def made(settings: RingSettings, digits: Any, disks: Path) -> Ring:
    """A ring that begins on disks of its own."""
    folder = disks / str(len(list(disks.iterdir())))
    folder.mkdir()
    return Ring(settings, *digits, folder)


def play(ring: Ring) -> list[EpochResult]:
    return [seen for seen in ring.play() if isinstance(seen, EpochResult)]


@pytest.mark.parametrize(
    ("method", "least"), [("rd-psgd", 0.6), ("d-psgd", 0.8), ("choco", 0.7), ("topk", 0.5)]
)
def test_every_method_learns(digits: Any, disks: Path, method: Any, least: float) -> None:
    ring = made(RingSettings(**BASE | {"method": method, "sparsity": 0.2, "rate": 0.3}), digits, disks)
    results = play(ring)
    assert [result.epoch for result in results] == [1, 2, 3]
    assert results[-1].score > least
    assert results[-1].exchanges == 4 * 5  # 7 batches an epoch: five exchanges, over four edges
    assert len(results[-1].node_scores) == 4


def test_a_seed_repeats_a_run(digits: Any, disks: Path) -> None:
    settings = RingSettings(**BASE | {"epochs": 1})
    first, again, other = (play(made(replace(settings, seed=seed), digits, disks)) for seed in (0, 0, 1))
    assert first == again != other


def test_bytes_are_those_of_frames_and_fewer_in_the_share_of_p(digits: Any, disks: Path) -> None:
    sent = {}
    for method in ("d-psgd", "rd-psgd"):
        ring = made(RingSettings(**BASE | {"method": method, "epochs": 1}), digits, disks)
        sent[method] = play(ring)[-1].bytes_sent
    parameters = sum(int(np.prod(shape)) for shape in digits[2].shapes.values())
    # One exchange, over 4 edges both ways, with its offers and answers; COBS takes less than at its worst.
    assert sent["d-psgd"] == pytest.approx(8 * framed_bytes(4 * parameters + 20, LINK), rel=0.005)
    weights, model = topology.metropolis(topology.ring(range(1, 5))), np.zeros(parameters, np.float32)
    whole = 0
    for node in weights:
        setup = GossipSetup(node=node, weights=weights[node], start=model, share=share_of(0.1))
        whole += sum(framed_bytes(len(message), LINK) for message in Gossip(setup).open(model).values())
    assert sent["rd-psgd"] == pytest.approx(whole, rel=0.01)
    # A mask's own share varies by 7 % of it: of 200 masks the mean is within four deviations.
    counts = [drawn(Draw(0, number, (1, 2), share_of(0.1)), parameters).count for number in range(200)]
    assert np.mean(counts) / parameters == pytest.approx(0.1, abs=0.002)


BASE_SEED_1 = BASE | {"seed": 1}  # its three epochs learn more than those of seed 0


@pytest.fixture(scope="module")
def calm(digits: Any) -> EpochResult:
    """The last epoch of a ring without faults."""
    with scratch() as folder:
        return play(made(RingSettings(**BASE_SEED_1), digits, folder))[-1]


@pytest.mark.parametrize(
    "faults", [{"dead": {3: 2.0}}, {"cuts": {(1, 2): (0.5, 60.5)}}, {"link": replace(LINK, frame_loss=0.2)}]
)
def test_training_goes_on_through_faults_and_waits_no_longer_than_its_patience(
    digits: Any, disks: Path, calm: EpochResult, faults: dict[str, Any]
) -> None:
    ring = made(RingSettings(**BASE_SEED_1 | {"patience_s": 20.0} | faults), digits, disks)
    last = play(ring)[-1]
    assert last.clock_s < calm.clock_s + 25.0
    assert last.score > 0.75
    assert len(last.node_scores) == (3 if "dead" in faults else 4)


def test_an_edge_that_is_cut_for_a_while_does_not_move_the_mean(digits: Any, disks: Path) -> None:
    """At a learning rate that moves nothing, all that changes models is mixing."""
    settings = RingSettings(
        **BASE | {"cuts": {(1, 2): (0.0, 3.0)}, "patience_s": 1.0, "recipe": Recipe(learning_rate=1e-12)}
    )
    ring = made(settings, digits, disks)
    rng = np.random.default_rng(0)
    for vector in ring.models.values():
        vector += rng.standard_normal(vector.shape).astype(np.float32) / 100
    before = consensus(list(ring.models.values()))[0]
    assert play(ring)[-1].clock_s > 3.0
    # What is on its way when the run ends is mixed at one end; on all other coordinates the mean is the same.
    moved = np.abs(consensus(list(ring.models.values()))[0] - before) > 1e-5
    assert moved.mean() < 0.1


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(RunError, match="1 nodes: must be 2 to 254"):
        RingSettings(**BASE | {"nodes": 1})
    with pytest.raises(ValueError, match="4 nodes do not fill rows of 3"):
        RingSettings(**BASE | {"shape": "torus", "columns": 3})
    with pytest.raises(RunError, match=r"faults of \[9\]"):
        RingSettings(**BASE | {"dead": {9: 1.0}})
    with pytest.raises(RunError, match=r"faults of \[\] and \[\(0, 1\)\]"):
        RingSettings(**BASE | {"ground": GroundNode(LINK, {1: ((0.0, 9.0),)}), "cuts": {(0, 1): (1.0, 2.0)}})
    with pytest.raises(RunError, match="topk waits for all its neighbours"):
        RingSettings(**BASE | {"dead": {1: 1.0}, "method": "topk"})


SCENARIO = """
[ring]
nodes = 4
shape = "planes"
columns = 2
data = "digits"
images = 100
epochs = 10
frame-bytes = 65507
[ground]
link = "sband-2m"
[[ground.gateway]]
node = 1
passes = [[0, 300]]
[[ground.gateway]]
node = 3
passes = [[0, 1], [2, 300]]
"""


def test_planes_learn_from_each_other_by_way_of_the_ground(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    scenario = tmp_path / "hybrid.toml"
    scenario.write_text(SCENARIO)
    play = ["ring", "--scenario", str(scenario), "--model", "line", "--sparsity", "1", "--json"]
    told = CliRunner().invoke(main, play)
    assert told.exit_code == 0, told.stderr
    alone = CliRunner().invoke(main, [*play, "--epochs", "1", "--out", "short"])
    first, *_, last = (json.loads(line) for line in told.stdout.splitlines())
    assert json.loads(alone.stdout) == first  # what the command line says goes before the file
    assert 0 < first["ground_bytes"] < last["ground_bytes"] < last["bytes_sent"]
    assert last["ground_accuracy"] > 0.3  # it trains nothing itself


def test_nodes_in_parts_are_told_of(tmp_path: Path) -> None:
    small = ("--data", "digits", "--nodes", "4", "--images", "50", "--epochs", "1", "--columns", "2", *COARSE)
    told = run(*small, "--shape", "planes", cwd=tmp_path)
    assert told.returncode == 0
    assert told.stderr == "planes: these nodes are in parts, and their models never agree\n"
    assert run(*small, "--shape", "torus", "--out", "torus", cwd=tmp_path).stderr == ""


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("nodes = 4", "nods = 4"), "ring.nods: unknown key"),
        (("[0, 1], [2, 300]", "[0, 3], [2, 300]"), "passes: each is [rise, set], one after the other"),
        (("[0, 1], [2, 300]", "[0, 0], [2, 300]"), "passes: each is [rise, set], one after the other"),
        (("[[0, 1], [2, 300]]", "[]"), "passes: expected array of length >= 1"),
        (("sband-2m", "sband-3m"), "ground.link = 'sband-3m': no link is named 'sband-3m'"),
        (("node = 3", "node = 9"), "passes of [1, 9]: no such nodes"),
        (('shape = "planes"', 'shape = "line"'), "'line'"),
        (("columns = 2", "columns = 3"), "4 nodes do not fill rows of 3"),
    ],
)
def test_a_scenario_s_mistakes_get_one_line(tmp_path: Path, change: tuple[str, str], line: str) -> None:
    scenario = tmp_path / "hybrid.toml"
    scenario.write_text(SCENARIO.replace(*change))
    assert line in refused("--scenario", str(scenario))


def refused(*arguments: str) -> str:
    """The one line that the command ends with, before it begins."""
    told = CliRunner().invoke(main, ["ring", *arguments])
    assert told.exit_code == 2
    assert len(told.stderr.splitlines()) == 1
    return told.stderr


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "firmware_sim", "ring", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_tells_epochs_and_draws_them(tmp_path: Path) -> None:
    small = ("--data", "digits", "--nodes", "3", "--images", "100", "--epochs", "2", "--json", *COARSE)
    told = run(*small, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    epochs = [json.loads(line) for line in told.stdout.splitlines()]
    kept = (tmp_path / "ring-out" / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == epochs
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert (tmp_path / "ring-out" / "ring.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--dead", "three"], "--dead 'three': expected NODE@SECONDS, as 3@20"),
        (["--cut", "5@3"], "--cut '5@3': expected A-B@FROM:UNTIL, as 5-6@10:70"),
        (["--momentum", "1"], "'--momentum': 1.0 is not in the range 0<=x<1"),
    ],
)
def test_wrong_arguments_get_one_line(arguments: list[str], line: str) -> None:
    assert line in refused(*arguments)
