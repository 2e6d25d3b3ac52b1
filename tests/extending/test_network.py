"""A network is two graphs and one row: a toy one trains in `firmware-sim fleet`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import onboard.learn.graph
from firmware_sim.cli import main
from groundstation.models import pieces
from groundstation.models.__main__ import BUILDERS
from groundstation.models.pieces import node
from onboard.learn.graph import SHIPPED, InferGraph, TrainGraph
from onboard.learn.networks import NETWORKS, Network, described

SHAPES = {"weight": (10, 784), "bias": (10,)}
FORWARD = [
    node("Flatten", ["x"], ["pixels"]),
    node("Gemm", ["pixels", "weight", "bias"], ["logits"], transB=1),
]
BACKWARD = [
    node("Gemm", ["d.logits", "pixels"], ["grad.weight"], transA=1),
    node("ReduceSum", ["d.logits", "over_batch"], ["grad.bias"], keepdims=0),
]


def write_graphs(folder: Path) -> None:
    """One layer: a softmax regression."""
    plan = pieces.GraphPlan("line", SHAPES, (1, 28, 28), classes=10, forward_macs=7840)
    train = pieces.train_model(plan, [*FORWARD, *pieces.loss(), *BACKWARD])
    for use, built in (("train", train), ("infer", pieces.infer_model(plan, FORWARD))):
        (folder / f"line.{use}.onnx").write_bytes(built.SerializeToString(deterministic=True))


def test_a_toy_network_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graphs(tmp_path)
    monkeypatch.setattr(onboard.learn.graph, "SHIPPED", tmp_path)
    monkeypatch.setitem(NETWORKS, "line", Network((1, 28, 28), 10))
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
