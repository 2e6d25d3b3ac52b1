"""The smallest network: one layer, a softmax regression of 7,850 parameters, for what no depth matters to."""

from __future__ import annotations

from pathlib import Path

import pytest

import onboard.learn.graph
from groundstation.models import pieces
from groundstation.models.pieces import node
from onboard.learn.networks import NETWORKS, Network

NETWORK = Network((1, 28, 28), 10)
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
    """line.train.onnx and line.infer.onnx."""
    plan = pieces.GraphPlan("line", SHAPES, NETWORK, forward_macs=7840)
    train = pieces.train_model(plan, [*FORWARD, *pieces.loss(), *BACKWARD])
    for use, built in (("train", train), ("infer", pieces.infer_model(plan, FORWARD))):
        (folder / f"line.{use}.onnx").write_bytes(built.SerializeToString(deterministic=True))


def ship(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For this test `line` is the one network that there is, with its row and its graphs."""
    write_graphs(folder)
    monkeypatch.setattr(onboard.learn.graph, "SHIPPED", folder)
    monkeypatch.setitem(NETWORKS, "line", NETWORK)
