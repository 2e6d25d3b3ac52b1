"""The smallest network: one layer, a softmax regression of 7,850 parameters, for what no depth matters to."""

from __future__ import annotations

from pathlib import Path

import pytest

import onboard.learn.networks
from groundstation.models.folder import write_network
from onboard.learn.networks import INFER, TRAIN, NetworkFile
from tests import pieces
from tests.pieces import node

ABOUT = NetworkFile(name="line", task="classify", input=(1, 28, 28), outputs=10, forward_macs=7840, files={})
SHAPES = {"weight": (10, 784), "bias": (10,)}
FORWARD = [
    node("Flatten", ["x"], ["pixels"]),
    node("Gemm", ["pixels", "weight", "bias"], ["logits"], transB=1),
]
BACKWARD = [
    node("Gemm", ["d.logits", "pixels"], ["grad.weight"], transA=1),
    node("ReduceSum", ["d.logits", "over_batch"], ["grad.bias"], keepdims=0),
]


def write_line(folder: Path) -> None:
    """Writes the network's folder."""
    plan = pieces.GraphPlan("line", SHAPES, ABOUT.input, ABOUT.outputs, ABOUT.forward_macs)
    built = {
        TRAIN: pieces.train_model(plan, [*FORWARD, *pieces.loss(), *BACKWARD]),
        INFER: pieces.infer_model(plan, FORWARD),
    }
    write_network(
        folder, ABOUT, {name: model.SerializeToString(deterministic=True) for name, model in built.items()}
    )


def ship(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For this test `line` is the one network that there is."""
    write_line(folder / "line")
    monkeypatch.setattr(onboard.learn.networks, "SHIPPED", folder)
