"""A network is two graphs and one row: a toy one trains in `firmware-sim fleet`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from firmware_sim.cli import main
from groundstation.models.__main__ import BUILDERS
from onboard.learn.graph import SHIPPED, InferGraph, TrainGraph
from onboard.learn.networks import NETWORKS, described
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


def test_without_its_row_there_is_no_such_network() -> None:
    refused = CliRunner().invoke(main, ["fleet", "--model", "line", "--data", "digits"])
    assert refused.exit_code == 2
    assert "no model 'line'" in refused.output


def test_the_table_of_networks_is_complete() -> None:
    graphs = {f"{name}.{use}.onnx" for name in NETWORKS for use in ("train", "infer")}
    assert {path.name for path in SHIPPED.glob("*.onnx")} == graphs
    assert list(BUILDERS) == list(NETWORKS)
    for name, network in NETWORKS.items():
        for graph in (TrainGraph.load(name), InferGraph.load(name)):
            assert (graph.input_shape, graph.classes) == (network.input_shape, network.classes)
