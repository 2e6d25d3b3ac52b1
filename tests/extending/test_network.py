"""A network is a folder: a toy one trains in `firmware-sim fleet`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from firmware_sim.cli import main
from groundstation.models.__main__ import BUILDERS
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.networks import SHIPPED, described, shipped
from tests.line import ship


def test_a_toy_network_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(tmp_path, monkeypatch)
    assert "line (1x28x28)" in described()
    fleet = [
        "fleet", "--model", "line", "--data", "digits", "--method", "fedavg", "--devices", "2", "--select",
        "2", "--rounds", "1", "--epochs", "4", "--images", "200", "--learning-rate", "0.01", "--json",
    ]  # fmt: skip
    played = CliRunner().invoke(main, [*fleet, "--out", str(tmp_path / "out")])
    assert played.exit_code == 0, played.output
    lines = [json.loads(line) for line in played.stdout.splitlines() if line.startswith("{")]
    assert [line["accuracy"] for line in lines if "accuracy" in line][-1] > 0.6


def test_without_its_folder_there_is_no_such_network() -> None:
    refused = CliRunner().invoke(main, ["fleet", "--model", "line", "--data", "digits"])
    assert refused.exit_code == 2
    assert "no model 'line'" in refused.output


def test_every_network_that_ships_is_built_here_and_whole() -> None:
    assert sorted(BUILDERS) == shipped() == sorted(path.name for path in SHIPPED.iterdir())
    for name in shipped():
        for graph in (TrainGraph.load(name), InferGraph.load(name)):
            assert graph.name == name
