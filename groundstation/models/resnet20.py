"""ResNet-20 with BatchNorm as two ONNX graphs: one trains, with autograd's gradients, and one infers.

He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2: a convolution, three stages
of three blocks with 16, 32 and 64 channels, the mean over all places, one dense layer; shortcuts without
parameters (option A: every other place, zeros for the new channels). 269,722 parameters, for 3x32x32 as in
the paper as well as for 3x64x64, and 1,376 running statistics.

BatchNorm (Ioffe and Szegedy, ICML 2015) is written out, because torch.onnx mistranslates its training. The
training graph normalizes with the batch's mean and variance, and returns each running statistic's next value
(`next.NAME`: 0.9 of the old and 0.1 of the batch's, with the unbiased variance, as in torch). The inference
graph normalizes with the statistics that it is given.

The backward pass, by hand:

- of a convolution, the weight's gradient is the product of dY with x under each of the kernel's nine places
  (twice as fast as the convolution of x with dY); the input's is a transposed convolution;
- of BatchNorm, with v the normalized input: dx = gain / std (dy - mean(dy) - v mean(dy v));
- of a shortcut, zeros are put between the places, and the new channels are dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from groundstation.models import pieces
from groundstation.models.pieces import FLOAT, backward_dense, backward_relu, dense, node

CLASSES = 10
IMAGES = {"resnet20": (3, 32, 32), "resnet20-64": (3, 64, 64)}
CHANNELS = (16, 32, 64)
BLOCKS = 3  # n per stage, for 6 n + 2 layers
EPSILON, MOMENTUM = 1e-5, 0.1  # torch's defaults


@dataclass(frozen=True, slots=True)
class Unit:
    """A 3x3 convolution without bias and its BatchNorm. `side`: of the input."""

    conv: str
    norm: str
    channels_in: int
    channels: int
    stride: int
    side: int

    @property
    def side_out(self) -> int:
        return self.side // self.stride


@dataclass(frozen=True, slots=True)
class Block:
    """Two units and the shortcut around them, from `x` to `out`."""

    x: str
    first: Unit
    second: Unit
    out: str


def units(side: int) -> tuple[Unit, tuple[Block, ...]]:
    """Returns the first unit and all blocks, for images of side x side."""
    stem = Unit("conv1", "bn1", 3, CHANNELS[0], 1, side)
    blocks = list[Block]()
    x, channels = "act", CHANNELS[0]
    for stage, wide in enumerate(CHANNELS, 1):
        for number in range(BLOCKS):
            name, stride = f"layer{stage}.{number}", 2 if wide > channels else 1
            first = Unit(f"{name}.conv1", f"{name}.bn1", channels, wide, stride, side)
            second = Unit(f"{name}.conv2", f"{name}.bn2", wide, wide, 1, first.side_out)
            blocks.append(Block(x, first, second, f"{name}.out"))
            x, channels, side = f"{name}.out", wide, first.side_out
    return stem, tuple(blocks)


def train_graph(name: str) -> onnx.ModelProto:
    stem, blocks = units(IMAGES[name][1])
    nodes = [*_forward(stem, blocks, training=True), *pieces.loss(), *_backward(stem, blocks)]
    return pieces.train_model(plan(name), nodes, _constants(stem, blocks, training=True))


def infer_graph(name: str) -> onnx.ModelProto:
    stem, blocks = units(IMAGES[name][1])
    nodes = [*_forward(stem, blocks, training=False)]
    return pieces.infer_model(plan(name), nodes, _constants(stem, blocks, training=False))


def plan(name: str) -> pieces.GraphPlan:
    """Returns what both graphs of the network of this name share."""
    shapes, macs = dict[str, tuple[int, ...]](), 0
    for unit in _all(IMAGES[name][1]):
        shapes[f"{unit.conv}.weight"] = (unit.channels, unit.channels_in, 3, 3)
        macs += 9 * unit.channels_in * unit.channels * unit.side_out**2
        for of_norm in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{unit.norm}.{of_norm}"] = (unit.channels,)
    shapes |= {"fc.weight": (CLASSES, CHANNELS[-1]), "fc.bias": (CLASSES,)}
    buffers = [name for name in shapes if name.rpartition(".")[2].startswith("running_")]
    return pieces.GraphPlan(name, shapes, IMAGES[name], CLASSES, macs + CLASSES * CHANNELS[-1], buffers)


def reference(parameters: Mapping[str, Any], x: Any, *, training: bool) -> Any:
    """The same network in torch: tensors in, logits (N, 10) out. Training updates the statistics in place."""
    from torch.nn.functional import batch_norm, conv2d, linear, pad, relu

    p = parameters

    def unit(x: Any, which: Unit) -> Any:
        mean, variance, gain, bias = (
            p[f"{which.norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = conv2d(x, p[f"{which.conv}.weight"], stride=which.stride, padding=1)
        return batch_norm(x, mean, variance, gain, bias, training, MOMENTUM, EPSILON)

    stem, blocks = units(x.shape[-1])
    x = relu(unit(x, stem))
    for block in blocks:
        short = x
        if block.first.stride == 2:
            short = pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, block.first.channels - block.first.channels_in))
        x = relu(unit(relu(unit(x, block.first)), block.second) + short)
    return linear(x.mean((2, 3)), p["fc.weight"], p["fc.bias"])


def _all(side: int) -> Iterator[Unit]:
    stem, blocks = units(side)
    yield stem
    for block in blocks:
        yield from (block.first, block.second)


def _forward(stem: Unit, blocks: tuple[Block, ...], *, training: bool) -> Iterator[onnx.NodeProto]:
    yield from _forward_unit("x", stem, training=training)
    yield node("Relu", [stem.norm], ["act"])
    for block in blocks:
        first, second, short = block.first, block.second, block.x
        yield from _forward_unit(block.x, first, training=training)
        yield node("Relu", [first.norm], [f"{first.norm}.act"])
        yield from _forward_unit(f"{first.norm}.act", second, training=training)
        if first.stride == 2:
            short = f"{block.out}.short"
            yield node("Slice", [block.x, "from_00", "to_end", "places", "by_2"], [f"{short}.narrow"])
            yield node("Pad", [f"{short}.narrow", f"{first.channels}.new_channels"], [short])
        yield node("Add", [second.norm, short], [f"{block.out}.sum"])
        yield node("Relu", [f"{block.out}.sum"], [block.out])
    yield node("GlobalAveragePool", [blocks[-1].out], ["pool"])
    yield node("Flatten", ["pool"], ["flat"])
    yield dense("flat", "fc", "logits")


def _forward_unit(x: str, unit: Unit, *, training: bool) -> Iterator[onnx.NodeProto]:
    """x -> the unit's BatchNorm, under its name."""
    conv, norm = unit.conv, unit.norm
    yield node("Conv", [x, f"{conv}.weight"], [conv], pads=[1, 1, 1, 1], strides=[unit.stride] * 2)
    if not training:
        # A variance that was averaged from quantized or late values can be below 0.
        yield node("Relu", [f"{norm}.running_var"], [f"{norm}.variance"])
        given = [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "variance")]
        yield node("BatchNormalization", [conv, *given], [norm], epsilon=EPSILON)
        return
    over = {"axes": [0, 2, 3]}
    yield node("ReduceMean", [conv], [f"{norm}.mean"], **over)
    yield node("Sub", [conv, f"{norm}.mean"], [f"{norm}.centered"])
    yield node("Mul", [f"{norm}.centered", f"{norm}.centered"], [f"{norm}.squares"])
    yield node("ReduceMean", [f"{norm}.squares"], [f"{norm}.variance"], **over)
    yield node("Add", [f"{norm}.variance", "epsilon"], [f"{norm}.above_0"])
    yield node("Sqrt", [f"{norm}.above_0"], [f"{norm}.std"])
    yield node("Div", [f"{norm}.centered", f"{norm}.std"], [f"{norm}.unit"])
    for name in ("weight", "bias"):
        yield node("Reshape", [f"{norm}.{name}", "as_channels"], [f"{norm}.{name}.wide"])
    yield node("Mul", [f"{norm}.unit", f"{norm}.weight.wide"], [f"{norm}.scaled"])
    yield node("Add", [f"{norm}.scaled", f"{norm}.bias.wide"], [norm])
    # The statistics take the batch's mean, and its variance times n / (n - 1) for its n = N S S values.
    yield node("Shape", [conv], [f"{norm}.shape"])
    yield node("Gather", [f"{norm}.shape", "over_batch_and_place"], [f"{norm}.sides"])
    yield node("ReduceProd", [f"{norm}.sides"], [f"{norm}.n_int"], axes=[0])
    yield node("Cast", [f"{norm}.n_int"], [f"{norm}.n"], to=FLOAT)
    yield node("Sub", [f"{norm}.n", "one"], [f"{norm}.n-1"])
    yield node("Div", [f"{norm}.n", f"{norm}.n-1"], [f"{norm}.unbias"])
    yield node("Mul", [f"{norm}.variance", f"{norm}.unbias"], [f"{norm}.unbiased"])
    for batchs, name in ((f"{norm}.mean", "running_mean"), (f"{norm}.unbiased", "running_var")):
        yield node("Reshape", [batchs, "as_vector"], [f"{batchs}.vector"])
        yield node("Mul", [f"{batchs}.vector", "new_part"], [f"{batchs}.new"])
        yield node("Mul", [f"{norm}.{name}", "old_part"], [f"{norm}.{name}.old"])
        yield node("Add", [f"{norm}.{name}.old", f"{batchs}.new"], [f"next.{norm}.{name}"])


def _backward(stem: Unit, blocks: tuple[Block, ...]) -> Iterator[onnx.NodeProto]:
    """d.logits -> all gradients. Nobody needs the image's gradient."""
    yield from backward_dense("flat", "fc", "d.logits", "d.flat")
    yield node("Mul", ["d.flat", "a_place"], ["d.pool.flat"])
    yield node("Shape", ["pool"], ["pool.shape"])
    yield node("Reshape", ["d.pool.flat", "pool.shape"], [f"d.{blocks[-1].out}"])
    for block in reversed(blocks):
        first, second = block.first, block.second
        yield from backward_relu(block.out, f"d.{block.out}", f"d.{second.norm}")
        yield from _backward_unit(f"{first.norm}.act", second, f"d.{first.norm}.act")
        yield from backward_relu(f"{first.norm}.act", f"d.{first.norm}.act", f"d.{first.norm}")
        yield from _backward_unit(block.x, first, f"d.{block.x}.through")
        yield from _backward_shortcut(block)
    yield from backward_relu("act", "d.act", f"d.{stem.norm}")
    yield from _backward_unit("x", stem, None)


def _backward_shortcut(block: Block) -> Iterator[onnx.NodeProto]:
    """Adds the gradients through the shortcut and through the units: d.x."""
    first, short = block.first, f"d.{block.second.norm}"
    if first.stride == 2:
        name = f"d.{block.out}.short"
        yield node("Slice", [short, "from_0", f"{first.channels}.old_channels", "channels"], [f"{name}.old"])
        yield node("Reshape", [f"{name}.old", f"{first.channels}.apart"], [f"{name}.apart"])
        yield node("Pad", [f"{name}.apart", "zeros_between"], [f"{name}.padded"])
        yield node("Reshape", [f"{name}.padded", f"{first.channels}.together"], [name])
        short = name
    yield node("Add", [f"d.{block.x}.through", short], [f"d.{block.x}"])


def _backward_unit(x: str, unit: Unit, result: str | None) -> Iterator[onnx.NodeProto]:
    """d.NORM -> the gradients by the unit's parameters and, as `result`, by its input `x`."""
    conv, norm = unit.conv, unit.norm
    over = {"axes": [0, 2, 3]}
    yield node("Mul", [f"d.{norm}", f"{norm}.unit"], [f"d.{norm}.unit"])
    yield node("ReduceSum", [f"d.{norm}.unit", "over_batch_and_place"], [f"grad.{norm}.weight"], keepdims=0)
    yield node("ReduceSum", [f"d.{norm}", "over_batch_and_place"], [f"grad.{norm}.bias"], keepdims=0)
    yield node("ReduceMean", [f"d.{norm}.unit"], [f"d.{norm}.along"], **over)
    yield node("ReduceMean", [f"d.{norm}"], [f"d.{norm}.mean"], **over)
    yield node("Mul", [f"{norm}.unit", f"d.{norm}.along"], [f"d.{norm}.scale"])
    yield node("Sub", [f"d.{norm}", f"d.{norm}.mean"], [f"d.{norm}.centered"])
    yield node("Sub", [f"d.{norm}.centered", f"d.{norm}.scale"], [f"d.{norm}.across"])
    yield node("Div", [f"{norm}.weight.wide", f"{norm}.std"], [f"{norm}.gain"])
    yield node("Mul", [f"d.{norm}.across", f"{norm}.gain"], [f"d.{conv}"])
    if result is not None:
        yield node(
            "ConvTranspose", [f"d.{conv}", f"{conv}.weight"], [result], pads=[1, 1, 1, 1],
            strides=[unit.stride] * 2, output_padding=[unit.stride - 1] * 2,
        )  # fmt: skip
    # grad.CONV.weight is x under each place of the kernel, times d.CONV.
    yield node("Pad", [x, "a_place_around"], [f"{conv}.padded"])
    yield node("Transpose", [f"{conv}.padded"], [f"{conv}.x"], perm=[1, 0, 2, 3])
    for axis, before, after in (("rows", "x", "x.rows"), ("columns", "x.rows", "x.all")):
        for k in range(3):
            bounds = [f"from_{k}", f"{unit.side}.to_{k}", axis, f"by_{unit.stride}.once"]
            yield node("Slice", [f"{conv}.{before}", *bounds], [f"{conv}.{after}.{k}"])
        yield node("Concat", [f"{conv}.{after}.{k}" for k in range(3)], [f"{conv}.{after}"], axis=0)
    yield node("Reshape", [f"{conv}.x.all", f"{9 * unit.channels_in}.rows"], [f"{conv}.x.matrix"])
    yield node("Transpose", [f"d.{conv}"], [f"d.{conv}.last"], perm=[0, 2, 3, 1])
    yield node("Reshape", [f"d.{conv}.last", f"{unit.channels}.columns"], [f"d.{conv}.matrix"])
    yield node("MatMul", [f"{conv}.x.matrix", f"d.{conv}.matrix"], [f"grad.{conv}.matrix"])
    kernels = f"{unit.channels_in}.{unit.channels}.kernels"
    yield node("Reshape", [f"grad.{conv}.matrix", kernels], [f"grad.{conv}.kernels"])
    yield node("Transpose", [f"grad.{conv}.kernels"], [f"grad.{conv}.weight"], perm=[3, 2, 1, 0])


def _constants(stem: Unit, blocks: tuple[Block, ...], *, training: bool) -> list[onnx.TensorProto]:
    whole = {"from_00": [0, 0], "to_end": [stem.side] * 2, "places": [2, 3], "by_2": [2, 2]}
    for unit in (block.first for block in blocks if block.first.stride == 2):
        new = unit.channels - unit.channels_in
        whole[f"{unit.channels}.new_channels"] = [0, 0, 0, 0, 0, new, 0, 0]
    made = pieces.integers(whole)
    if not training:
        return made
    reals = {
        "epsilon": EPSILON, "one": 1.0, "new_part": MOMENTUM, "old_part": 1 - MOMENTUM,
        "a_place": 1 / blocks[-1].second.side_out**2,
    }  # fmt: skip
    whole = {
        "as_channels": [1, -1, 1, 1], "as_vector": [-1], "channels": [1], "rows": [2], "columns": [3],
        "from_0": [0], "from_1": [1], "from_2": [2], "by_1.once": [1], "by_2.once": [2],
        "a_place_around": [0, 0, 1, 1, 0, 0, 1, 1], "zeros_between": [0] * 6 + [0, 0, 0, 1, 0, 1],
    }  # fmt: skip
    for unit in _all(stem.side):
        ins, outs = unit.channels_in, unit.channels
        for k in range(3):
            whole[f"{unit.side}.to_{k}"] = [k + unit.side]
        whole[f"{9 * ins}.rows"] = [9 * ins, -1]
        whole[f"{outs}.columns"] = [-1, outs]
        whole[f"{ins}.{outs}.kernels"] = [3, 3, ins, outs]
        if unit.stride == 2:
            whole[f"{outs}.old_channels"] = [ins]
            whole[f"{outs}.apart"] = [0, ins, unit.side_out, 1, unit.side_out, 1]
            whole[f"{outs}.together"] = [0, ins, unit.side, unit.side]
    made += [helper.make_tensor(name, FLOAT, [], [value]) for name, value in reals.items()]
    return made + pieces.integers(whole)
