"""Makes the two graphs of a torch module: one trains it, with autograd's gradients, and one infers.

The graphs' parameters and running statistics stand in the order of `module.state_dict()`. A parameter that
requires no gradient goes into both graphs and gets none (`freeze`)."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from groundstation.models.lowering.lowering import LOWERINGS, lower
from groundstation.models.tracing import UnsupportedError, traced

OPSET, IR_VERSION = 17, 8  # onnxruntime 1.12 reads them already, and nothing here needs newer ones


@dataclass(frozen=True)
class Authored:
    """A torch module with what a graph must say of it. `image`: channels, height and width."""

    module: Any
    image: tuple[int, int, int]
    classes: int

    def reference(self, parameters: Mapping[str, Any], x: Any, *, training: bool) -> Any:
        """Runs the module itself: tensors by name and images -> logits (N, classes). Statistics change in
        place."""
        from torch.func import functional_call

        self.module.train(training)
        return functional_call(self.module, dict(parameters), (x,))


def freeze(module: Any, patterns: Sequence[str]) -> None:
    """Leaves a gradient to the parameters whose names match a pattern ("head.*") alone. Raises
    UnsupportedError if none does."""
    names = [name for name, _ in module.named_parameters()]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UnsupportedError(f"no parameter matches {', '.join(patterns)}; the first is {names[0]}")


def train_graph(authored: Authored, name: str) -> onnx.ModelProto:
    """Returns a checked model: parameters and statistics, x float32 (N, C, H, W), y int64 (N) -> mean
    cross-entropy, `grad.NAME` of every parameter that learns, `next.NAME` of every statistic."""
    trace = traced(_with_loss(authored.module), _batch(authored, labels=True), LOWERINGS, backward=True)
    state = _state(authored.module)
    learned = {key for key, parameter in authored.module.named_parameters() if parameter.requires_grad}
    if unused := sorted(learned - {key.removeprefix("grad.network.") for key in trace.returned}):
        raise UnsupportedError(f"{unused[0]} has no part in the loss")
    changed = [key for key in state if key not in learned and f"next.network.{key}" in trace.returned]
    outputs = {"0": "loss"}
    outputs |= {f"grad.network.{key}": f"grad.{key}" for key in state if key in learned}
    outputs |= {f"next.network.{key}": f"next.{key}" for key in changed}
    inputs = {"0": "x", "1": "y", **{f"network.{key}": key for key in authored.module.state_dict()}}
    return _model(authored, f"{name}.train", lower(trace, inputs, outputs, batch="x"))


def infer_graph(authored: Authored, name: str) -> onnx.ModelProto:
    """Returns a checked model: parameters and statistics, x float32 (N, C, H, W) -> logits (N, classes)."""
    authored.module.eval()
    trace = traced(_answering(authored.module), _batch(authored, labels=False), LOWERINGS, backward=False)
    inputs = {"0": "x", **{f"network.{key}": key for key in authored.module.state_dict()}}
    return _model(authored, f"{name}.infer", lower(trace, inputs, {"0": "logits"}, batch="x"))


def forward_macs(authored: Authored) -> int:
    """Returns the multiply-adds of one image's forward pass, in convolutions and products of matrices."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    authored.module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        authored.module(torch.zeros(1, *authored.image))
    return int(counter.get_total_flops()) // 2


def _state(module: Any) -> list[str]:
    return [key for key, value in module.state_dict().items() if value.is_floating_point()]


def _batch(authored: Authored, *, labels: bool) -> Any:
    import torch

    def batch(size: int) -> list[Any]:
        images = torch.zeros(size, *authored.image)
        return [images, torch.zeros(size, dtype=torch.int64)] if labels else [images]

    return batch


def _with_loss(module: Any) -> Any:
    import torch

    class Trained(torch.nn.Module):  # type: ignore[misc]  # torch is not there for mypy
        def __init__(self) -> None:
            super().__init__()
            self.network = module.train()

        def forward(self, x: Any, y: Any) -> tuple[Any]:
            return (torch.nn.functional.cross_entropy(self.network(x), y),)

    return Trained()


def _answering(module: Any) -> Any:
    import torch

    class Inference(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, x: Any) -> tuple[Any]:
            return (self.network(x),)

    return Inference()


def _model(authored: Authored, name: str, graph: onnx.GraphProto) -> onnx.ModelProto:
    """Orders the inputs and adds the metadata that a board cannot read off them."""
    order = {key: at for at, key in enumerate([*_state(authored.module), "x", "y"])}
    taken = sorted(graph.input, key=lambda value: order[value.name])
    del graph.input[:]
    graph.input.extend(taken)
    graph.name = name
    built = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="spacedml-edge",
    )
    onnx.checker.check_model(built, full_check=True)
    return built
