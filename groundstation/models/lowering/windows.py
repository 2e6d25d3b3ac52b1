"""Operators that cut an axis into windows, which may overlap, or choose the largest along it."""

from __future__ import annotations

from typing import Any

import numpy as np

from groundstation.models.lowering.writer import Call, is_known, product, whole


def unfold(call: Call, x: Any, axis: int, size: int, step: int) -> str:
    """Writes the windows of an axis: where it was stands their number, and each is the last axis."""
    w, axis, rank = call.writer, call.axis(x, axis), call.rank(x)
    length = call.shape(x)[axis]
    if not is_known(length):
        raise call.refuse("cuts a batch into windows")
    found = w.node("Gather", call.name(x), w.constant(_places(whole(length), size, step), "int64"), axis=axis)
    others = [at for at in range(rank + 1) if at != axis + 1]
    return w.permute(found, [*others, axis + 1])


def unfold_backward(call: Call, g: Any, _: Any, axis: int, size: int, step: int) -> str:
    """Adds up what windows say of each place, by a product with a matrix of ones and zeros."""
    w, sizes = call.writer, call.gives.shape
    axis %= len(sizes)
    length = whole(sizes[axis])
    places = _places(length, size, step).ravel()
    others = [at for at in range(len(sizes)) if at != axis]
    windows = w.permute(call.name(g), [*others, axis, len(sizes)])
    rows = w.reshape(windows, [product([sizes[at] for at in others]), len(places)])
    found = w.node("MatMul", rows, w.constant(np.eye(length, dtype=np.float32)[places]))
    return w.permute(
        w.reshape(found, [*(sizes[at] for at in others), length]),
        [*range(axis), len(sizes) - 1, *range(axis, len(sizes) - 1)],
    )


def _places(length: int, size: int, step: int) -> Any:
    """Returns the places of each window, int64 (windows, size)."""
    return np.arange(0, length - size + 1, step)[:, None] + np.arange(size)


def most(call: Call, x: Any, count: int, axis: int = -1, largest: bool = True, *_: Any) -> tuple[str, ...]:
    """Writes topk: the largest or smallest numbers along an axis in their order, and where they were."""
    w = call.writer
    options = {"axis": call.axis(x, axis), "largest": int(largest), "sorted": 1}
    return w.split("TopK", call.name(x), w.integers(count), outputs=2, **options)


def sort(
    call: Call, x: Any, axis: int = -1, descending: bool = False, *, dim: int | None = None, **_: Any
) -> tuple[str, ...]:  # fmt: skip
    """Writes sort, whose stable form names its axis `dim`; equal numbers keep their order in both."""
    axis = axis if dim is None else dim
    length = call.shape(x)[call.axis(x, axis)]
    if not is_known(length):
        raise call.refuse("sorts the images of a batch")
    return most(call, x, whole(length), axis, descending)


def max_unpool(call: Call, x: Any, where: Any, _: Any) -> str:
    """Puts each number where a pool had found it, among zeros."""
    w, sizes = call.writer, call.gives.shape
    rows = product(sizes[:-2])
    places = w.reshape(call.name(where), [rows, product(call.shape(x)[-2:])])
    values = w.reshape(call.name(x), [rows, product(call.shape(x)[-2:])])
    zeros = w.node("Expand", w.constant(0.0), w.sizes([rows, product(sizes[-2:])]))
    return w.reshape(w.node("ScatterElements", zeros, places, values, axis=1), sizes)
