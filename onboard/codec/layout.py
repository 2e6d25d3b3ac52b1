"""Both ends cut a model's tensors into the same groups, by a rule on shapes alone.

ALQ (Qu et al., "Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR 2020, section 3) quantizes
weights in groups of n. How a convolution's weights fall into groups is an option there: by kernel, by pixel,
by channel or by sub-channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2s
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Weights = Mapping[str, Floats]
Grouping = Literal["kernel", "pixel", "channel", "subchannel"]

MAX_GROUP = 512  # a longer row is cut; an alpha then costs 8 bits in some 256 or more
MIN_GROUP = 8  # under it a coordinate costs more than its basis: such a tensor stays raw


@dataclass(frozen=True, slots=True)
class Tensor:
    """One parameter tensor of a model: its name, shape and group length n (0: raw, not grouped).

    `across`: a group holds one pixel of all input channels (`Grouping` "pixel"); else a group's weights lie
    one after the other in the tensor.
    """

    name: str
    shape: tuple[int, ...]
    group: int
    across: bool = False

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def groups(self) -> int:
        """Number of groups G; 0 for a raw tensor."""
        return self.size // self.group if self.group else 0


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in the order of its graph's inputs: everything a packed model leaves unsaid."""

    tensors: tuple[Tensor, ...]

    @cached_property
    def grouped(self) -> tuple[Tensor, ...]:
        return tuple(t for t in self.tensors if t.group)

    @cached_property
    def raw(self) -> tuple[Tensor, ...]:
        return tuple(t for t in self.tensors if not t.group)

    @cached_property
    def digest(self) -> bytes:
        """8 bytes (BLAKE2s) that differ where names, shapes, order or groups do."""
        text = "".join(f"{t.name} {t.shape} {t.group}{' across' * t.across}\n" for t in self.tensors)
        return blake2s(text.encode(), digest_size=8).digest()

    @cached_property
    def parameters(self) -> int:
        """All weights and biases: what "bits a weight" is counted against."""
        return sum(t.size for t in self.tensors)


def layout(shapes: Mapping[str, tuple[int, ...]], by: Grouping = "kernel") -> Layout:
    """The layout of parameters `name -> shape`, in the mapping's order, with convolutions grouped `by`."""
    return Layout(tuple(_tensor(name, tuple(shape), by) for name, shape in shapes.items()))


def group_length(shape: tuple[int, ...], by: Grouping = "kernel") -> int:
    """The group length for a tensor of this shape, 0 for raw.

    Convolutions (out, in, k...): "kernel" is one group a kernel, "pixel" one for each output channel and
    place in the kernel, "channel" one an output channel. Dense (out, in), "subchannel", and convolutions
    whose groups would have fewer than MIN_GROUP weights: a row of inputs in the fewest equal parts of at most
    MAX_GROUP (a row without such a divisor stays whole); a dense row by "channel" stays whole. Vectors,
    scalars and tensors with very short rows are raw.
    """
    if len(shape) < 2 or prod(shape) == 0:
        return 0
    kernel, row = prod(shape[2:]), prod(shape[1:])
    if by == "kernel" and len(shape) > 2 and kernel >= MIN_GROUP:
        return kernel
    if _across(shape, by):
        return shape[1]
    if row < MIN_GROUP:
        return 0
    if by == "channel":
        return row
    divisors = (d for d in range(min(row, MAX_GROUP), MIN_GROUP - 1, -1) if row % d == 0)
    return next(divisors, row)


def in_groups(tensor: Tensor, values: Floats) -> Floats:
    """The tensor's values as (G, n), a view where the order allows one. Errors: ValueError when the shape is
    not the tensor's.
    """
    if values.shape != tensor.shape:
        raise ValueError(f"{tensor.name} has shape {values.shape}, the layout says {tensor.shape}")
    if tensor.across:
        values = np.moveaxis(values, 1, -1)
    return values.reshape(tensor.groups, tensor.group)


def from_groups(tensor: Tensor, groups: Floats) -> Floats:
    """Groups (G, n) as the tensor that `in_groups` took them from, a view where the order allows one."""
    if not tensor.across:
        return groups.reshape(tensor.shape)
    return np.moveaxis(groups.reshape(tensor.shape[0], *tensor.shape[2:], tensor.shape[1]), -1, 1)


def flat(layout: Layout, weights: Weights, out: Floats | None = None) -> Floats:
    """All tensors one after the other in one float32 vector (P,), a copy (into `out` if given). Errors:
    ValueError for another shape.
    """
    out = np.empty(layout.parameters, np.float32) if out is None else out
    for name, view in views(layout, out).items():
        if weights[name].shape != view.shape:
            raise ValueError(f"{name} has shape {weights[name].shape}, the layout says {view.shape}")
        view[...] = weights[name]
    return out


def views(layout: Layout, vector: Floats) -> dict[str, Floats]:
    """The tensors of a vector (P,) by name, in their shapes; writing to one writes to the vector."""
    ends = np.cumsum([t.size for t in layout.tensors])[:-1]
    parts = np.split(vector, ends)
    return {t.name: part.reshape(t.shape) for t, part in zip(layout.tensors, parts, strict=True)}


def _tensor(name: str, shape: tuple[int, ...], by: Grouping) -> Tensor:
    return Tensor(name, shape, group_length(shape, by), _across(shape, by))


def _across(shape: tuple[int, ...], by: Grouping) -> bool:
    return by == "pixel" and len(shape) > 2 and shape[1] >= MIN_GROUP and prod(shape) > 0
