"""Operators that make, move, cut and join tensors without arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from groundstation.models.lowering.writer import Call, Sizes, is_known, whole

LAST = 2**63 - 1  # torch's "to the end" of a slice


def full(call: Call, *arguments: Any, **_: Any) -> str:
    """Writes full, full_like and scalar_tensor, whose last argument is the value."""
    return _filled(call, arguments[-1])


def zeros(call: Call, *_: Any, **__: Any) -> str:
    return _filled(call, 0)


def ones(call: Call, *_: Any, **__: Any) -> str:
    return _filled(call, 1)


def _filled(call: Call, value: Any) -> str:
    w, shape = call.writer, call.gives.shape
    scalar = call.operand(value, call.gives.dtype)
    return w.node("Expand", scalar, w.sizes(shape)) if shape else scalar


def arange(call: Call, *arguments: Any, **_: Any) -> str:
    start, end, step = [*([0] if len(arguments) == 1 else []), *arguments, 1][:3]
    dtype = call.gives.dtype
    if is_known(end):
        return call.writer.constant(np.arange(start, end, step), dtype)
    return call.writer.node("Range", *(call.operand(bound, dtype) for bound in (start, end, step)))


def view(call: Call, x: Any, *_: Any) -> str:
    """Writes view, unsqueeze and squeeze, all of which are told by the shape that they give."""
    if call.shape(x) == call.gives.shape:
        return call.name(x)
    return call.writer.reshape(call.name(x), call.gives.shape)


def permute(call: Call, x: Any, axes: Sequence[int]) -> str:
    return call.writer.permute(call.name(x), [axis % len(axes) for axis in axes])


def transpose(call: Call, x: Any, a: int = 0, b: int = 1) -> str:
    axes = list(range(call.rank(x)))
    a, b = call.axis(x, a), call.axis(x, b)
    axes[a], axes[b] = b, a
    return call.writer.permute(call.name(x), axes)


def expand(call: Call, x: Any, *_: Any, **__: Any) -> str:
    sizes = call.gives.shape
    return (
        call.name(x)
        if call.shape(x) == sizes
        else call.writer.node("Expand", call.name(x), call.writer.sizes(sizes))
    )


def copy(call: Call, _: Any, source: Any, *__: Any) -> str:
    return expand(call, source)


def cat(call: Call, tensors: Sequence[Any], axis: int = 0) -> str:
    parts = [call.operand(x, call.gives.dtype) for x in tensors if 0 not in call.shape(x)]
    return call.writer.node("Concat", *parts, axis=axis % len(call.gives.shape))


def repeat(call: Call, x: Any, repeats: Sequence[Any]) -> str:
    w, shape = call.writer, call.shape(x)
    name = w.reshape(call.name(x), [*[1] * (len(repeats) - len(shape)), *shape])
    return w.node("Tile", name, w.sizes(repeats))


def flip(call: Call, x: Any, axes: Sequence[int]) -> str:
    found = call.name(x)
    for axis in axes:
        found = call.writer.slice(found, call.axis(x, axis), -1, -LAST, -1)
    return found


def roll(call: Call, x: Any, shifts: Sequence[int], axes: Sequence[int] = ()) -> str:
    w, found, sizes = call.writer, call.name(x), call.shape(x)
    if not axes:
        raise call.refuse("rolls all axes as one, the batch's too: name axes that are an image's")
    for shift, axis in zip(shifts, axes, strict=True):
        axis = call.axis(x, axis)
        if not is_known(sizes[axis]):
            raise call.refuse("rolls the images of a batch")
        ahead = shift % max(whole(sizes[axis]), 1)
        if ahead:
            parts = w.slice(found, axis, -ahead, LAST), w.slice(found, axis, 0, -ahead)
            found = w.node("Concat", *parts, axis=axis)
    return found


def pad(call: Call, x: Any, pads: Sequence[Any], value: Any = 0.0) -> str:
    rank, w = call.rank(x), call.writer
    pairs = {rank - 1 - at: (int(pads[2 * at]), int(pads[2 * at + 1])) for at in range(len(pads) // 2)}
    return w.pad(call.name(x), rank, pairs, w.constant(value, call.gives.dtype) if value else "")


def cut(call: Call, x: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> str:
    """Writes slice. Of the batch it takes the whole, as a network treats all its images alike."""
    axis = call.axis(x, axis)
    first, last = _bounds(call, call.shape(x)[axis], start, end)
    if call.shape(x)[axis] == call.gives.shape[axis]:
        return call.name(x)
    return call.writer.slice(call.name(x), axis, first, last, step)


def _bounds(call: Call, size: Any, start: Any, end: Any) -> tuple[int, int]:
    if is_known(size):
        first, last, _ = slice(start, None if end is None else int(end)).indices(int(size))
        return first, last
    whole = end is None or end == size or (is_known(end) and end >= LAST)
    if start not in (None, 0) or not whole:
        raise call.refuse("takes a part of the batch, which must be treated as a whole")
    return 0, LAST


def select(call: Call, x: Any, axis: int, index: int) -> str:
    return call.writer.node(
        "Gather", call.name(x), call.writer.constant(index, "int64"), axis=call.axis(x, axis)
    )


def split(call: Call, x: Any, _: Any, axis: int = 0) -> tuple[str, ...]:
    axis = call.axis(x, axis)
    gives = call.operator.gives
    assert isinstance(gives, tuple)
    lengths = [whole(part.shape[axis]) for part in gives]
    w, name = call.writer, call.name(x)
    return tuple(
        w.slice(name, axis, end - length, end)
        for length, end in zip(lengths, itertools.accumulate(lengths), strict=True)
    )


def _placed(call: Call, source: Any, axis: int, first: int, step: int) -> str:
    """Returns zeros of the result's shape with `source` at `first` and each `step` further of one axis."""
    w, name, sizes = call.writer, call.name(source), list(call.shape(source))
    size, count = whole(call.gives.shape[axis]), whole(sizes[axis])
    if step > 1:  # put step - 1 zeros behind each
        name = w.reshape(name, [*sizes[: axis + 1], 1, *sizes[axis + 1 :]])
        name = w.pad(name, len(sizes) + 1, {axis + 1: (0, step - 1)})
        count *= step
        name = w.reshape(name, [*sizes[:axis], count, *sizes[axis + 1 :]])
    return w.placed(name, len(sizes), axis, first, size, count)


def slice_backward(call: Call, g: Any, _: Any, axis: int, start: Any, end: Any, step: int) -> str:
    sizes = call.gives.shape
    axis %= len(sizes)
    first, _last = _bounds(call, sizes[axis], start, end)
    return _placed(call, g, axis, first, step) if is_known(sizes[axis]) else call.name(g)


def select_backward(call: Call, g: Any, _: Any, axis: int, index: int) -> str:
    w, sizes = call.writer, call.gives.shape
    axis %= len(sizes)
    index %= whole(sizes[axis])
    name = w.reshape(call.name(g), [*sizes[:axis], 1, *sizes[axis + 1 :]])
    return w.placed(name, len(sizes), axis, index, whole(sizes[axis]), 1)


def slice_scatter(
    call: Call, x: Any, source: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    axis = call.axis(x, axis)
    size = call.shape(x)[axis]
    first, last = _bounds(call, size, start, end)
    if not is_known(size):
        return call.name(source)
    placed = _placed(call, source, axis, first, step)
    return _chosen(call, x, placed, axis, slice(first, last, step))


def select_scatter(call: Call, x: Any, source: Any, axis: int, index: int) -> str:
    axis, sizes = call.axis(x, axis), call.shape(x)
    spread = call.writer.reshape(call.name(source), [*sizes[:axis], 1, *sizes[axis + 1 :]])
    return _chosen(call, x, spread, axis, index)


def _chosen(call: Call, x: Any, other: str, axis: int, places: Any) -> str:
    """Returns `x` with some places of one axis taken from `other`."""
    w, sizes = call.writer, call.shape(x)
    inside = np.zeros(whole(sizes[axis]), bool)
    inside[places] = True
    form = [-1 if at == axis else 1 for at in range(len(sizes))]
    return w.node("Where", w.constant(inside.reshape(form), "bool"), other, call.name(x))


def spread(call: Call, x: Any, sizes: Sizes, dtype: str) -> str:
    """Returns a tensor or number of a dtype, expanded."""
    return call.writer.node("Expand", call.operand(x, dtype), call.writer.sizes(sizes))
