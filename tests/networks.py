"""Tiny networks of each kind of task, as an export writes them; torch makes them."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from groundstation.models.folder import write_network
from groundstation.models.from_torch import Authored, infer_graph
from groundstation.models.lowering.lowering import LOWERINGS, lower
from groundstation.models.tracing import traced
from onboard.learn.networks import INFER, TRAIN, NetworkFile
from onboard.learn.objectives import Kind

IGNORE = 255


@functools.cache
def tiny(kind: Kind) -> Path:
    """Returns the folder of a tiny network, which is traced once a process."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-network-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_tiny(folder / f"tiny-{kind}", kind)


def write_tiny(
    folder: Path, kind: Kind, *, image: tuple[int, int, int] = (3, 8, 8), outputs: int = 3, width: int = 8
) -> Path:
    """Writes a network of two convolutions, with `ignore` for `segment`, and returns its folder."""
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional
    channels, height, across = image
    torch.manual_seed(0)
    body = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
    heads: dict[Kind, list[Any]] = {
        "classify": [nn.Flatten(), nn.Linear(width * height * across, outputs)],
        "regress": [nn.Flatten(), nn.Linear(width * height * across, outputs)],
        "segment": [nn.Conv2d(width, outputs, 3, padding=1)],
        "reconstruct": [nn.Conv2d(width, channels, 3, padding=1)],
    }

    class WithLoss(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(*body, *heads[kind])

        def forward(self, x: Any, y: Any = None) -> tuple[Any]:
            answers = self.network(x)
            if kind == "segment":
                return (functional.cross_entropy(answers, y, ignore_index=IGNORE),)
            if kind == "classify":
                return (functional.cross_entropy(answers, y),)
            return (functional.mse_loss(answers, x if kind == "reconstruct" else y),)

    def batch(size: int) -> list[Any]:
        labels = {
            "classify": lambda: torch.zeros(size, dtype=torch.int64),
            "segment": lambda: torch.zeros(size, height, across, dtype=torch.int64),
            "regress": lambda: torch.zeros(size, outputs),
        }
        images = torch.rand(size, *image)
        return [images, *([labels[kind]()] if kind in labels else [])]

    trained = WithLoss()
    names = [name.removeprefix("network.") for name in trained.state_dict()]
    trace = traced(trained.train(), batch, LOWERINGS, backward=True)
    inputs = {"0": "x", **({} if kind == "reconstruct" else {"1": "y"})}
    inputs |= {f"network.{name}": name for name in names}
    outputs_of = {"0": "loss"} | {f"grad.network.{name}": f"grad.{name}" for name in names}
    authored = Authored(trained.network, image, outputs)
    graph = lower(trace, inputs, outputs_of, batch="x")
    graph.name = kind
    about = NetworkFile(
        name=f"tiny-{kind}", task=kind, input=image, outputs=channels if kind == "reconstruct" else outputs,
        ignore=IGNORE if kind == "segment" else None, forward_macs=1000, files={},
    )  # fmt: skip
    parts = {TRAIN: _model(graph), INFER: infer_graph(authored, kind).SerializeToString()}
    write_network(folder, about, parts)
    return folder


def _model(graph: Any) -> bytes:
    from onnx import helper

    from groundstation.models.from_torch import IR_VERSION, OPSET

    opsets = [helper.make_opsetid("", OPSET)]
    raw: bytes = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets).SerializeToString()
    return raw
