"""Operators that take many entries together, or look some up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from groundstation.models.lowering.shapes import spread
from groundstation.models.lowering.writer import Call, Lowering, broadcast, product


def total(call: Call, x: Any, axes: Any = None, keep: bool = False, **_: Any) -> str:
    found = call.operand(x, call.gives.dtype)
    return call.writer.sum(found, call.axes(x, axes), keep) if call.rank(x) else found


def mean(call: Call, x: Any, axes: Any = None, keep: bool = False, **_: Any) -> str:
    return call.writer.node("ReduceMean", call.name(x), axes=call.axes(x, axes), keepdims=int(keep))


def variance(call: Call, x: Any, axes: Any = None, *, correction: Any = 1, keepdim: bool = False) -> str:
    """Writes the mean square distance from the mean, times n / (n - correction)."""
    w, name, chosen = call.writer, call.name(x), call.axes(x, axes)
    away = w.node("Sub", name, w.node("ReduceMean", name, axes=chosen, keepdims=1))
    found = w.node("ReduceMean", w.node("Mul", away, away), axes=chosen, keepdims=int(keepdim))
    if not correction:
        return found
    count = call.operand(product([call.shape(x)[axis] for axis in chosen]), "float32")
    return w.node("Mul", found, w.node("Div", count, w.node("Sub", count, w.constant(float(correction)))))


def variance_and_mean(
    call: Call, x: Any, axes: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> tuple[str, str]:
    return variance(call, x, axes, correction=correction, keepdim=keepdim), mean(call, x, axes, keepdim)


def normalize(call: Call, x: Any, axes: Sequence[int], epsilon: float) -> tuple[str, str]:
    """Writes (x - mean) / deviation and 1 / deviation."""
    w, name = call.writer, call.name(x)
    away = w.node("Sub", name, w.node("ReduceMean", name, axes=list(axes), keepdims=1))
    square = w.node("ReduceMean", w.node("Mul", away, away), axes=list(axes), keepdims=1)
    scale = w.node("Reciprocal", w.node("Sqrt", w.node("Add", square, w.constant(epsilon))))
    return w.node("Mul", away, scale), scale


def normalize_backward(call: Call, g: Any, y: Any, scale: Any, axes: Sequence[int]) -> str:
    """Writes (g - mean(g) - y mean(g y)) / deviation (Ioffe and Szegedy, ICML 2015, section 3)."""
    w, error, normal = call.writer, call.name(g), call.name(y)
    mean, slope = (
        w.node("ReduceMean", part, axes=list(axes), keepdims=1)
        for part in (error, w.node("Mul", error, normal))
    )
    rest = w.node("Sub", w.node("Sub", error, mean), w.node("Mul", normal, slope))
    return w.node("Mul", rest, call.name(scale))


def batch_norm(call: Call, x: Any, weight: Any, bias: Any, epsilon: float) -> tuple[str, ...]:
    """Writes the result, x - mean, and by channel the mean, the variance and the unbiased one.

    ONNX's BatchNormalization, with the statistics that it is given, is one pass over the map."""
    w, name, channels = call.writer, call.name(x), call.shape(x)[1]
    axes = [0, *range(2, call.rank(x))]
    mean = w.node("ReduceMean", name, axes=axes, keepdims=1)
    away = w.node("Sub", name, mean)
    variance = w.node("ReduceMean", w.node("Mul", away, away), axes=axes, keepdims=0)
    zeros = w.filled(0.0, channels)
    y = w.node(
        "BatchNormalization", away, call.name(weight), call.name(bias), zeros, variance, epsilon=epsilon
    )
    count, one = _count_of_channel(call, x), w.constant(1.0)
    others = w.node("Sub", count, one)
    if math.prod(call.shape(x)[2:]) == 1:  # a batch may be of one image, which must not leave a NaN
        others = w.node("Max", others, one)
    unbiased = w.node("Mul", variance, w.node("Div", count, others))
    return y, away, w.reshape(mean, [channels]), variance, unbiased


def batch_norm_backward(
    call: Call, g: Any, away: Any, variance: Any, weight: Any, epsilon: float
) -> tuple[str, str, str]:
    """Writes weight / deviation times (g - mean(g) - away mean(g away) / variance), again in few passes."""
    w, error, channels = call.writer, call.name(g), call.shape(g)[1]
    axes, ones, zeros = [0, *range(2, call.rank(g))], w.filled(1.0, channels), w.filled(0.0, channels)
    scale = w.node("Reciprocal", w.node("Sqrt", w.node("Add", call.name(variance), w.constant(epsilon))))
    by_bias = w.sum(error, axes)
    by_weight = w.node("Mul", w.sum(w.node("Mul", error, call.name(away)), axes), scale)
    gain, count = w.node("Mul", call.name(weight), scale), _count_of_channel(call, g)
    mean = w.node("Div", by_bias, count)
    across = w.node("BatchNormalization", error, gain, zeros, mean, ones, epsilon=0.0)
    slope = w.node("Mul", w.node("Mul", gain, scale), w.node("Div", by_weight, count))
    slope = w.reshape(slope, [1, channels, *[1] * (call.rank(g) - 2)])
    return w.node("Sub", across, w.node("Mul", call.name(away), slope)), by_weight, by_bias


def batch_norm_of_statistics(
    call: Call, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *numbers: float
) -> tuple[str, str, str]:
    """Writes the result, and nothing of a batch. `numbers`: a momentum of no use, and epsilon."""
    w, channels = call.writer, call.shape(x)[1]
    gain, shift = (
        w.filled(value, channels) if each is None else call.name(each)
        for each, value in ((weight, 1.0), (bias, 0.0))
    )
    given = (gain, shift, call.name(mean), call.name(variance))
    return w.node("BatchNormalization", call.name(x), *given, epsilon=numbers[1]), "", ""


def _count_of_channel(call: Call, x: Any) -> str:
    """Returns how many numbers a channel has, as a float32."""
    return call.operand(product([size for axis, size in enumerate(call.shape(x)) if axis != 1]), "float32")


def extreme(operation: str) -> Lowering:
    def lowered(call: Call, x: Any, axes: Any = None, keep: bool = False) -> str:
        return call.writer.node(operation, call.name(x), axes=call.axes(x, axes), keepdims=int(keep))

    return lowered


def place(which: str) -> Lowering:
    def lowered(call: Call, x: Any, axis: Any = None, keep: bool = False) -> str:
        name = call.name(x)
        if axis is None:
            raise call.refuse("counts places over the whole batch")
        return call.writer.node(which, name, axis=call.axis(x, axis), keepdims=int(keep))

    return lowered


def extreme_and_place(which: str) -> Lowering:
    def lowered(call: Call, x: Any, axis: int, keep: bool = False) -> tuple[str, str]:
        return extreme(f"Reduce{which}")(call, x, axis, keep), place(f"Arg{which}")(call, x, axis, keep)

    return lowered


def is_any(call: Call, x: Any, axes: Any = None, keep: bool = False) -> str:
    w = call.writer
    ones = w.cast(call.name(x), "float32")
    return w.cast(w.node("ReduceMax", ones, axes=call.axes(x, axes), keepdims=int(keep)), "bool")


def running_sum(call: Call, x: Any, axis: int, **_: Any) -> str:
    w = call.writer
    return w.node("CumSum", call.operand(x, call.gives.dtype), w.constant(call.axis(x, axis), "int64"))


def along(operation: str) -> Lowering:
    """Writes a softmax or its logarithm."""
    return lambda call, x, axis, *_: call.writer.node(operation, call.name(x), axis=call.axis(x, axis))


def safe_softmax(call: Call, x: Any, axis: int, *_: Any) -> str:
    """Writes a softmax that is 0 where all is masked by -inf, as attention takes it; products are never."""
    w, name, axis = call.writer, call.name(x), call.axis(x, axis)
    found = w.node("Softmax", name, axis=axis)
    if w.made_by(name) == "MatMul" or (w.made_by(name) == "Reshape" and w.made_from(name) == "MatMul"):
        return found
    most = w.node("ReduceMax", name, axes=[axis], keepdims=1)
    return w.node("Where", w.node("Equal", most, w.constant(float("-inf"))), w.constant(0.0), found)


def product_of_matrices(call: Call, a: Any, b: Any) -> str:
    return _gemm(call, a, b)


def product_and_bias(call: Call, bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> str:
    scales = {"alpha": float(alpha), "beta": float(beta)}
    return _gemm(call, a, b, call.name(bias), **{key: scale for key, scale in scales.items() if scale != 1})


def _gemm(call: Call, a: Any, b: Any, *bias: str, **attributes: Any) -> str:
    """Writes a product of two matrices, which takes either of them transposed at no cost."""
    w = call.writer
    (left, left_turned), (right, right_turned) = w.untransposed(call.name(a)), w.untransposed(call.name(b))
    turned = {"transA": left_turned, "transB": right_turned}
    attributes |= {key: 1 for key, is_turned in turned.items() if is_turned}
    return w.node("Gemm" if bias or attributes else "MatMul", left, right, *bias, **attributes)


def products_of_matrices(call: Call, a: Any, b: Any) -> str:
    return call.writer.node("MatMul", call.name(a), call.name(b))


def gather(call: Call, x: Any, axis: int, index: Any, **_: Any) -> str:
    return call.writer.node("GatherElements", call.name(x), call.name(index), axis=call.axis(x, axis))


def scatter(call: Call, x: Any, axis: int, index: Any, source: Any) -> str:
    values = spread(call, source, call.shape(index), call.gives.dtype)
    return call.writer.node(
        "ScatterElements", call.name(x), call.name(index), values, axis=call.axis(x, axis)
    )


def scatter_add(call: Call, x: Any, axis: int, index: Any, source: Any) -> str:
    names = (call.name(each) for each in (x, index, source))
    return call.writer.node("ScatterElements", *names, axis=call.axis(x, axis), reduction="add")


def embedding(call: Call, weight: Any, index: Any, *_: Any) -> str:
    return call.writer.node("Gather", call.name(weight), call.name(index), axis=0)


def index_select(call: Call, x: Any, axis: int, index: Any) -> str:
    return call.writer.node("Gather", call.name(x), call.name(index), axis=call.axis(x, axis))


def index(call: Call, x: Any, indices: Sequence[Any]) -> str:
    used = _used(call, indices)
    if len(used) == 1:
        return index_select(call, x, used[0], indices[used[0]])
    chosen = _Chosen(call, x, indices)
    found = call.writer.node("GatherND", chosen.leading(call.name(x)), chosen.where)
    return chosen.placed(found)


def index_put(call: Call, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> str:
    chosen = _Chosen(call, x, indices)
    source = chosen.gathered(spread(call, values, chosen.shape, call.gives.dtype))
    options = {"reduction": "add"} if accumulate else {}
    done = call.writer.node("ScatterND", chosen.leading(call.name(x)), chosen.where, source, **options)
    return call.writer.permute(done, _inverse(chosen.axes))


class _Chosen:
    """What x[indices] means, by numpy's rules: ONNX chooses along the first axes alone, so x's chosen axes go
    there, and where the chosen axes are neighbours, those of the indices stand in their place.

    `axes`: x's, the chosen ones first. `where`: the indices of a GatherND or ScatterND. `shape`: of
    x[indices].
    """

    def __init__(self, call: Call, x: Any, indices: Sequence[Any]) -> None:
        used, shape = _used(call, indices), call.shape(x)
        others = [axis for axis in range(len(shape)) if axis not in used]
        picked = [indices[axis] for axis in used]
        sizes = broadcast(*map(call.shape, picked))
        neighbours = used == list(range(used[0], used[-1] + 1))
        before = used[0] if neighbours else 0
        rest = [shape[axis] for axis in others]
        self.axes = [*used, *others]
        self.shape = [*rest[:before], *sizes, *rest[before:]]
        self.where = _joined(call, picked)
        first = len(sizes)
        self._back = [*range(first, first + before), *range(first), *range(first + before, first + len(rest))]
        self._call = call

    def leading(self, x: str) -> str:
        """Returns x with its chosen axes first."""
        return self._call.writer.permute(x, self.axes)

    def placed(self, found: str) -> str:
        """Returns what GatherND gives in the order of x[indices]."""
        return self._call.writer.permute(found, self._back)

    def gathered(self, values: str) -> str:
        """Returns values of the shape of x[indices] as ScatterND takes them."""
        return self._call.writer.permute(values, _inverse(self._back))


def _inverse(axes: list[int]) -> list[int]:
    return sorted(range(len(axes)), key=axes.__getitem__)


def _used(call: Call, indices: Sequence[Any]) -> list[int]:
    used = [axis for axis, each in enumerate(indices) if each is not None]
    if any(call.tensor(indices[axis]).dtype == "bool" for axis in used):
        raise call.refuse("chooses by a mask, and so gives a size that no graph knows")
    return used


def _joined(call: Call, indices: Sequence[Any]) -> str:
    """Returns index tensors, expanded to one shape, as the last axis of one tensor."""
    sizes = broadcast(*map(call.shape, indices))
    parts = [call.writer.reshape(spread(call, each, sizes, "int64"), [*sizes, 1]) for each in indices]
    return parts[0] if len(parts) == 1 else call.writer.node("Concat", *parts, axis=len(sizes))
