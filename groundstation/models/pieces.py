"""What hand-written training graphs share: inputs, facts, the loss and its gradient, a ReLU's gradient.

- Of a ReLU, the gradient goes on where the unit was on.
- Of the loss, `SoftmaxCrossEntropyLoss` hands out log-probabilities, so dlogits = (softmax - truth) / N.

Tensors are named: `d.NAME` is the loss's gradient by NAME, `grad.NAME` the one by a parameter, which leaves
the graph. Opset 17 and IR 8 are what onnxruntime 1.12 already read; nothing here needs a newer one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

OPSET = 17
IR_VERSION = 8
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shapes = Mapping[str, tuple[int, ...]]

node = helper.make_node


def constants(classes: int) -> list[onnx.TensorProto]:
    """What `loss` and sums over a batch, or over a batch and all places, take."""
    return [
        helper.make_tensor("classes", INT64, [], [classes]),
        helper.make_tensor("off_on", FLOAT, [2], [0.0, 1.0]),
        helper.make_tensor("over_batch", INT64, [1], [0]),
        helper.make_tensor("over_batch_and_place", INT64, [3], [0, 2, 3]),
    ]


def loss() -> list[onnx.NodeProto]:
    """logits, y -> mean loss and its gradient d.logits = (softmax(logits) - onehot(y)) / N."""
    return [
        node("SoftmaxCrossEntropyLoss", ["logits", "y"], ["loss", "log_probability"], reduction="mean"),
        node("Exp", ["log_probability"], ["probability"]),
        node("OneHot", ["y", "classes", "off_on"], ["truth"]),
        node("Sub", ["probability", "truth"], ["excess"]),
        node("Shape", ["y"], ["batch_int"]),
        node("Cast", ["batch_int"], ["batch"], to=FLOAT),
        node("Div", ["excess", "batch"], ["d.logits"]),
    ]


def backward_relu(activation: str, gradient: str, result: str) -> list[onnx.NodeProto]:
    """The gradient where the unit was on; an activation is never negative, so its sign is 0 or 1."""
    return [
        node("Sign", [activation], [f"{activation}.on"]),
        node("Mul", [gradient, f"{activation}.on"], [result]),
    ]


def inputs(shapes: Shapes, image: Sequence[int], *, labels: bool) -> list[onnx.ValueInfoProto]:
    """Parameters in their order, x float32 (N, C, H, W), and with `labels` y int64 (N)."""
    value = helper.make_tensor_value_info
    taken = [value(name, FLOAT, shape) for name, shape in shapes.items()]
    taken.append(value("x", FLOAT, ["N", *image]))
    return [*taken, value("y", INT64, ["N"])] if labels else taken


def model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
    *,
    classes: int,
    forward_macs: int,
) -> onnx.ModelProto:
    """One checked model with the facts that a board cannot read off a session's inputs and outputs."""
    built = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, constants),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="spacedml-edge",
    )
    helper.set_model_props(built, {"classes": str(classes), "forward_macs": str(forward_macs)})
    onnx.checker.check_model(built, full_check=True)
    return built
