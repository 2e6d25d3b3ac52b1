"""LeNet-5 as two ONNX graphs: one trains, with autograd's gradients, and one infers.

The network is the 20-50-500-10 LeNet-5 of the ALQ and SpaceDML papers: two 5x5 convolutions, each with a
bias, a 2x2 maximum and a ReLU, then 500 hidden units and the classes; 431,080 parameters for 1x28x28. Caffe's
LeNet has no ReLU after its convolutions; with them this one ends at 92.9 % and not 90.4 % (MNIST, 600 images,
8 epochs of Adam at 1e-3, mean of three seeds).

The backward pass is written by hand in standard operators, so that any onnxruntime can train:

- of a convolution, the weight's gradient is a convolution of x^T with dY^T (batch and channel axes swapped),
  and the input's gradient is a transposed convolution with the same weight;
- of a 2x2 maximum, the gradient goes back to where the maximum came from (`MaxUnpool`);
- the rest is in `pieces`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx

from groundstation.models import pieces
from groundstation.models.pieces import backward_dense, backward_relu, dense, node

CLASSES = 10
IMAGES = {"lenet5": (1, 28, 28), "lenet5-rgb": (3, 28, 28)}


def plan(name: str) -> pieces.GraphPlan:
    """Returns what both graphs of the network of this name share."""
    shapes = {
        "conv1.weight": (20, IMAGES[name][0], 5, 5),
        "conv1.bias": (20,),
        "conv2.weight": (50, 20, 5, 5),
        "conv2.bias": (50,),
        "fc1.weight": (500, 800),  # 800 = 50 channels of 4x4, what is left of 28x28
        "fc1.bias": (500,),
        "fc2.weight": (CLASSES, 500),
        "fc2.bias": (CLASSES,),
    }
    # Each weight multiplies once per position.
    places = {"conv1.weight": 24 * 24, "conv2.weight": 8 * 8, "fc1.weight": 1, "fc2.weight": 1}
    macs = sum(math.prod(shapes[name]) * times for name, times in places.items())
    return pieces.GraphPlan(name, shapes, IMAGES[name], CLASSES, macs)


def train_graph(name: str) -> onnx.ModelProto:
    nodes = [
        *_forward(indices=True),
        *pieces.loss(),
        *backward_dense("hidden", "fc2", "d.logits", "d.hidden"),
        *backward_relu("hidden", "d.hidden", "d.fc1"),
        *backward_dense("flat", "fc1", "d.fc1", "d.flat"),
        node("Shape", ["act2"], ["shape_of_act2"]),
        node("Reshape", ["d.flat", "shape_of_act2"], ["d.act2"]),
        # Nobody needs the image's gradient.
        *_backward_block(2, "act1"),
        node("ConvTranspose", ["d.conv2", "conv2.weight"], ["d.act1"]),
        *_backward_block(1, "x"),
    ]
    return pieces.train_model(plan(name), nodes)


def infer_graph(name: str) -> onnx.ModelProto:
    return pieces.infer_model(plan(name), _forward(indices=False))


def reference(parameters: Mapping[str, Any], x: Any, *, training: bool) -> Any:
    """The same network in torch: tensors in, logits (N, 10) out."""
    from torch.nn.functional import conv2d, linear, max_pool2d, relu

    p = parameters
    x = relu(max_pool2d(conv2d(x, p["conv1.weight"], p["conv1.bias"]), 2))
    x = relu(max_pool2d(conv2d(x, p["conv2.weight"], p["conv2.bias"]), 2))
    x = relu(linear(x.flatten(1), p["fc1.weight"], p["fc1.bias"]))
    return linear(x, p["fc2.weight"], p["fc2.bias"])


def _forward(*, indices: bool) -> list[onnx.NodeProto]:
    """x -> logits; with `indices`, each maximum also returns where it came from. The ReLU follows the
    maximum, which gives the same value for a quarter of the work."""
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    return [
        node("Conv", ["x", "conv1.weight", "conv1.bias"], ["conv1"]),
        node("MaxPool", ["conv1"], ["pool1", "where1"] if indices else ["pool1"], **pool),
        node("Relu", ["pool1"], ["act1"]),
        node("Conv", ["act1", "conv2.weight", "conv2.bias"], ["conv2"]),
        node("MaxPool", ["conv2"], ["pool2", "where2"] if indices else ["pool2"], **pool),
        node("Relu", ["pool2"], ["act2"]),
        node("Flatten", ["act2"], ["flat"]),
        dense("flat", "fc1", "fc1"),
        node("Relu", ["fc1"], ["hidden"]),
        dense("hidden", "fc2", "logits"),
    ]


def _backward_block(n: int, x: str) -> list[onnx.NodeProto]:
    """d.actN -> d.convN and the gradients of convolution N with input `x`. The bias's gradient is summed
    before MaxUnpool, which only adds zeros."""
    swap = {"perm": [1, 0, 2, 3]}
    return [
        *backward_relu(f"act{n}", f"d.act{n}", f"d.pool{n}"),
        node("ReduceSum", [f"d.pool{n}", "over_batch_and_place"], [f"grad.conv{n}.bias"], keepdims=0),
        node("MaxUnpool", [f"d.pool{n}", f"where{n}"], [f"d.conv{n}"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", [x], [f"{x}.swapped"], **swap),
        node("Transpose", [f"d.conv{n}"], [f"d.conv{n}.swapped"], **swap),
        node("Conv", [f"{x}.swapped", f"d.conv{n}.swapped"], [f"grad.conv{n}.weight.swapped"]),
        node("Transpose", [f"grad.conv{n}.weight.swapped"], [f"grad.conv{n}.weight"], **swap),
    ]
