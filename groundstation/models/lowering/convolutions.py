"""Convolutions, maximum pooling and their gradients.

A convolution's gradient by its input is a transposed convolution with the same weight, and the gradient by
its weight is a convolution of the input with the result's gradient in which batch and channels, and stride
and dilation, change places (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016,
chapter 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from groundstation.models.lowering.writer import Call, product

POOL_BACKWARD = "max_pool2d_with_indices_backward.default"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a kernel stands: one number for each side of a map."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int = 1

    def attributes(self) -> dict[str, Any]:
        """Returns those of ONNX, without its defaults."""
        found: dict[str, Any] = {}
        if any(step != 1 for step in self.stride):
            found["strides"] = list(self.stride)
        if any(self.padding):
            found["pads"] = [*self.padding, *self.padding]
        if any(step != 1 for step in self.dilation):
            found["dilations"] = list(self.dilation)
        if self.groups != 1:
            found["group"] = self.groups
        return found


def convolution(call: Call, x: Any, weight: Any, bias: Any, *placed: Any) -> str:
    """Writes (stride, padding, dilation, transposed, output_padding, groups), as ATen orders them."""
    stride, padding, dilation, is_transposed, output_padding, groups = placed
    attributes = Placement(stride, padding, dilation, groups).attributes()
    if is_transposed and any(output_padding):
        attributes["output_padding"] = list(output_padding)
    names = [call.name(x), call.name(weight), *([] if bias is None else [call.name(bias)])]
    return call.writer.node("ConvTranspose" if is_transposed else "Conv", *names, **attributes)


def convolution_backward(
    call: Call, g: Any, x: Any, weight: Any, _: Any, *placed: Any
) -> tuple[str | None, str | None, str | None]:
    """Writes the gradients by input, weight and bias that the last argument asks for."""
    stride, padding, dilation, is_transposed, _padding, groups, wanted = placed
    at = Placement(stride, padding, dilation, groups)
    w, by_x, by_weight, error = call.writer, None, None, call.name(g)
    by_bias = w.sum(error, [0, *range(2, call.rank(g))]) if wanted[2] else None
    if wanted[1] and is_transposed:
        by_weight = _by_weight(call, g, x, (error, call.name(x)), weight, at)
    elif wanted[1]:
        joined = (
            call.joined(x) if groups == 1 else [x]
        )  # each part by itself, so that their whole is not held
        found = [_by_weight(call, part, g, (call.name(part), error), weight, at) for part in joined]
        by_weight = found[0] if len(found) == 1 else w.node("Concat", *found, axis=1)
    if wanted[0] and is_transposed:
        by_x = w.node("Conv", error, call.name(weight), **at.attributes())
    elif wanted[0]:
        rest = _unreached(at, *(call.shape(each)[2:] for each in (x, g, weight)))
        more = {"output_padding": rest} if any(rest) else {}
        by_x = w.node("ConvTranspose", error, call.name(weight), **at.attributes(), **more)
    return by_x, by_weight, by_bias


def _unreached(at: Placement, sides: Sequence[Any], given: Sequence[Any], kernel: Sequence[Any]) -> list[int]:
    """Returns how many last places of each side no kernel reaches, as strides jump over them."""
    numbers = zip(sides, given, kernel, at.stride, at.padding, at.dilation, strict=True)
    return [
        int(side - ((count - 1) * step - 2 * pad + apart * (taps - 1) + 1))
        for side, count, taps, step, pad, apart in numbers
    ]


def _by_weight(call: Call, image: Any, error: Any, names: tuple[str, str], weight: Any, at: Placement) -> str:
    """Writes the gradient by a weight. `names`: of the image and of the error."""
    small = call.rank(image) == 4 and max(call.shape(weight)[2:]) <= 3
    near = max(at.padding) < min(*call.shape(image)[2:], *call.shape(error)[2:])  # so that all shifts overlap
    if small and near and at.groups == 1:
        return _by_weight_of_shifts(call, image, error, names, weight, at)
    w = call.writer
    places = list(range(2, call.rank(image)))
    (_, taken, *sides), (_, _, *counts) = call.shape(image), call.shape(error)
    kernel = call.shape(weight)[2:]
    left, right = names
    if at.groups == 1:
        left, right = (w.permute(name, [1, 0, *places]) for name in (left, right))
    else:  # (N, groups, channels of a group) -> those channels, one group's batch after another's
        behind = [axis + 1 for axis in places]
        left = w.reshape(left, [-1, at.groups, taken // at.groups, *sides])
        left = w.reshape(w.permute(left, [2, 1, 0, *behind]), [taken // at.groups, -1, *sides])
        right = w.permute(right, [1, 0, *places])
    turned = Placement(at.dilation, at.padding, at.stride, at.groups)
    found = w.node("Conv", left, right, **turned.attributes())  # (taken / groups, given, kernel and more)
    numbers = zip(places, sides, counts, kernel, at.stride, at.padding, at.dilation, strict=True)
    for axis, side, count, taps, step, pad, apart in numbers:
        if (side + 2 * pad - step * (count - 1) - 1) // apart + 1 > taps:
            found = w.slice(found, axis, 0, taps)
    return w.permute(found, [1, 0, *places])


def _by_weight_of_shifts(
    call: Call, image: Any, error: Any, names: tuple[str, str], weight: Any, at: Placement
) -> str:
    """Returns the same as products of matrices, up to 2.3 times as fast in onnxruntime.

    For each place in the kernel, the gradient times the image, its channels last, that this place sees: a sum
    over all places of the map, which is one entry of every kernel. Where the kernels are many and the maps
    small, the batch's axis goes behind the channels', so that one product sums over it."""
    w = call.writer
    (batch, taken, height, width), given = call.shape(image), call.shape(error)[1]
    tall, wide = call.shape(weight)[2:]
    is_one = 3 * tall * wide * taken * given > (taken + given) * height * width  # measured for 8 to 64 pixels
    g = w.permute(names[1], [1, 0, 2, 3]) if is_one else names[1]
    places = _shifted if all(step == 1 for step in at.stride) else _strided
    products = list[str]()
    for below, beside, count in places(call, (image, error), (names[0], g), (tall, wide), at):
        left = w.reshape(below, [given, -1] if is_one else [batch, given, count])
        right = w.reshape(beside, [-1, taken] if is_one else [batch, count, taken])
        products.append(w.node("MatMul", left, right))
    found = w.node("Concat", *products, axis=0 if is_one else 1) if len(products) > 1 else products[0]
    found = found if is_one else w.sum(found, [0])
    return w.permute(w.reshape(found, [tall, wide, given, taken]), [2, 3, 0, 1])


Pairs = Iterator[tuple[str, str, int]]
"""For each place in a kernel: gradient, image (N, places, channels) and places."""


def _shifted(
    call: Call, tensors: tuple[Any, Any], names: tuple[str, str], kernel: Sequence[int], at: Placement
) -> Pairs:
    """Shifts the gradient to each row of the kernel, and the image to each column."""
    w = call.writer
    (batch, taken, height, width), (_, _, rows, columns) = map(call.shape, tensors)
    # a Pad takes its time for each run of the last axis: so the runs are long
    x = w.reshape(w.permute(names[0], [0, 2, 3, 1]), [batch, height, width * taken])
    g = w.node("Reshape", names[1], w.integers(0, 0, rows * columns))
    for i in range(kernel[0]):
        down = i * at.dilation[0] - at.padding[0]
        below = w.pad(g, 3, {2: (down * columns, (height - rows - down) * columns)})
        for j in range(kernel[1]):
            across = j * at.dilation[1] - at.padding[1]
            beside = w.pad(x, 3, {2: (-across * taken, (columns - width + across) * taken)})
            yield below, beside, height * columns


def _strided(
    call: Call, tensors: tuple[Any, Any], names: tuple[str, str], kernel: Sequence[int], at: Placement
) -> Pairs:
    """Takes every other place of the image, or further ones, from each row and column of the kernel on."""
    w = call.writer
    (_, _, *sides), (_, _, *counts) = map(call.shape, tensors)
    numbers = zip(sides, counts, kernel, at.stride, at.padding, at.dilation, strict=True)
    seen = [
        (pad, (count - 1) * step + (taps - 1) * apart + 1 - pad - side)
        for side, count, taps, step, pad, apart in numbers
    ]
    x = w.pad(w.permute(names[0], [0, 2, 3, 1]), 4, dict(enumerate(seen, 1)))
    reach = [(count - 1) * step + 1 for count, step in zip(counts, at.stride, strict=True)]
    for i in range(0, kernel[0] * at.dilation[0], at.dilation[0]):
        rows = w.slice(x, 1, i, i + reach[0], at.stride[0])
        for j in range(0, kernel[1] * at.dilation[1], at.dilation[1]):
            yield names[1], w.slice(rows, 2, j, j + reach[1], at.stride[1]), counts[0] * counts[1]


def max_pool(
    call: Call, x: Any, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,),
    ceil: bool = False,
) -> tuple[str, ...]:  # fmt: skip
    sides = call.rank(x) - 2
    kernel = _of_each_side(kernel, sides)
    step, border, spread = (_of_each_side(each, sides) for each in (stride or kernel, padding, dilation))
    at = Placement(step, border, spread)
    options = {"ceil_mode": 1} if ceil else {}
    attributes = {**at.attributes(), **options}
    w = call.writer
    found, where = w.split("MaxPool", call.name(x), outputs=2, kernel_shape=kernel, **attributes)
    if call.users(1) - {POOL_BACKWARD}:  # torch counts places over a channel, ONNX over the whole tensor
        where = w.node("Mod", where, w.constant(product(call.shape(x)[2:]), "int64"))
    return found, where


def max_pool_backward(call: Call, g: Any, x: Any, kernel: Any, stride: Any, padding: Any, *rest: Any) -> str:
    """Puts the gradient where each maximum came from."""
    w = call.writer
    where = call.name(rest[-1])
    if w.made_by(where) == "Mod":
        where = w.source(where)
    kernel = _of_each_side(kernel, 2)
    stride = _of_each_side(stride or kernel, 2)
    covered = [count * step for count, step in zip(call.shape(g)[2:], stride, strict=True)]
    if kernel == stride and covered == list(call.shape(x)[2:]) and not any(padding):
        return w.node("MaxUnpool", call.name(g), where, kernel_shape=kernel, strides=stride)
    zeros = w.node("Expand", w.constant(0.0), w.sizes([product(call.shape(x))]))
    places, values = w.reshape(where, [-1]), w.reshape(call.name(g), [-1])
    found = w.node("ScatterElements", zeros, places, values, axis=0, reduction="add")
    return w.reshape(found, call.shape(x))


def _of_each_side(value: Any, sides: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * sides if len(values) == 1 else values
