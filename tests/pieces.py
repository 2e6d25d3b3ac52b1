"""Shared parts of the hand-written training graphs: inputs, metadata, and layers with their gradients.

- A ReLU passes the gradient where the unit was on.
- A dense layer y = x W^T + b has dW = dy^T x, db = the sum of dy over the batch, dx = dy W.
- `SoftmaxCrossEntropyLoss` returns log-probabilities, so dlogits = (softmax - truth) / N.

`d.NAME` is the gradient of the loss by NAME; `grad.NAME`, by a parameter, is an output of the graph.
onnxruntime 1.12 already reads opset 17 and IR 8, and nothing here needs newer ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

OPSET = 17
IR_VERSION = 8
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
VALUE = helper.make_tensor_value_info
Constants = Sequence[onnx.TensorProto]

node = helper.make_node


@dataclass(frozen=True)
class GraphPlan:
    """What both graphs of a network share.

    `shapes`: of parameters and running statistics, in the order of the inputs; `buffers`: which of them are
    statistics; `forward_macs`: multiply-adds of one image's forward pass."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    input_shape: tuple[int, int, int]
    classes: int
    forward_macs: int
    buffers: Sequence[str] = ()


def train_model(plan: GraphPlan, nodes: list[onnx.NodeProto], constants: Constants = ()) -> onnx.ModelProto:
    """Returns a checked model: parameters and statistics, x float32 (N, C, H, W), y int64 (N) -> mean loss,
    `grad.NAME` of every parameter, `next.NAME` of every statistic."""
    outputs = [VALUE("loss", FLOAT, [])]
    outputs += [
        VALUE(f"grad.{key}", FLOAT, shape) for key, shape in plan.shapes.items() if key not in plan.buffers
    ]
    outputs += [VALUE(f"next.{key}", FLOAT, plan.shapes[key]) for key in plan.buffers]
    shared = [
        helper.make_tensor("classes", INT64, [], [plan.classes]),
        helper.make_tensor("off_on", FLOAT, [2], [0.0, 1.0]),
        *integers({"over_batch": [0], "over_batch_and_place": [0, 2, 3]}),
    ]
    inputs = [*_inputs(plan), VALUE("y", INT64, ["N"])]
    graph = helper.make_graph(nodes, f"{plan.name}.train", inputs, outputs, [*shared, *constants])
    return _model(graph)


def infer_model(plan: GraphPlan, nodes: list[onnx.NodeProto], constants: Constants = ()) -> onnx.ModelProto:
    """Returns a checked model: parameters and statistics, x float32 (N, C, H, W) -> logits (N, classes)."""
    outputs = [VALUE("logits", FLOAT, ["N", plan.classes])]
    return _model(helper.make_graph(nodes, f"{plan.name}.infer", _inputs(plan), outputs, [*constants]))


def integers(constants: Mapping[str, Sequence[int]]) -> list[onnx.TensorProto]:
    return [helper.make_tensor(name, INT64, [len(values)], values) for name, values in constants.items()]


def loss() -> list[onnx.NodeProto]:
    """logits, y -> mean loss and d.logits = (softmax(logits) - onehot(y)) / N."""
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
    """Passes the gradient where the unit was on: an activation is never negative, so its sign is 0 or 1."""
    return [
        node("Sign", [activation], [f"{activation}.on"]),
        node("Mul", [gradient, f"{activation}.on"], [result]),
    ]


def dense(x: str, layer: str, result: str) -> onnx.NodeProto:
    return node("Gemm", [x, f"{layer}.weight", f"{layer}.bias"], [result], transB=1)


def backward_dense(x: str, layer: str, gradient: str, result: str) -> list[onnx.NodeProto]:
    """Returns a dense layer's gradients by its parameters and, as `result`, by its input."""
    return [
        node("Gemm", [gradient, x], [f"grad.{layer}.weight"], transA=1),
        node("ReduceSum", [gradient, "over_batch"], [f"grad.{layer}.bias"], keepdims=0),
        node("MatMul", [gradient, f"{layer}.weight"], [result]),
    ]


def _inputs(plan: GraphPlan) -> list[onnx.ValueInfoProto]:
    taken = [VALUE(name, FLOAT, shape) for name, shape in plan.shapes.items()]
    return [*taken, VALUE("x", FLOAT, ["N", *plan.input_shape])]


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    opset = helper.make_opsetid("", OPSET)
    built = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[opset], producer_name="spacedml-edge"
    )
    onnx.checker.check_model(built, full_check=True)
    return built
