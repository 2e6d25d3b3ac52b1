"""Cuts a model's tensors into the same groups at both ends, by a rule on shapes alone.

ALQ (Qu et al., "Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR 2020, section 3) quantizes
weights in groups of n. Of its ways to group a convolution, large kernels have the one by kernel, small ones
the one by output channel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2s
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Weights = Mapping[str, Floats]

MAX_GROUP = 512  # a longer row is cut; an alpha then costs 8 bits in some 256 or more
MIN_GROUP = 8  # under it a coordinate costs more than its basis: such a tensor stays raw
# A kernel of 3x3 would pay 8 bits for its coordinate, and half a bit to say whether it has one, beside 9 for
# its signs. ResNet-20 on EuroSAT, seven rounds of five boards with 0.21 bit up, is right about 66.7 % by
# kernel, 71.3 % by 4 kernels, 70.4 % by 16, 71.8 % by channel, with fewer bytes down; FedAvg is about 76.2 %.
MIN_KERNEL = 16


@dataclass(frozen=True, slots=True)
class Tensor:
    """One parameter tensor of a model: its name, shape and group length n (0: raw, not grouped). A running
    statistic has its values from images, and no gradient tells how exact they have to be."""

    name: str
    shape: tuple[int, ...]
    group: int
    is_statistic: bool = field(default=False, compare=False)

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
    def spans(self) -> tuple[tuple[str, tuple[int, ...], int, int], ...]:
        """Returns each tensor's name and shape, and where it starts and ends in a vector of all."""
        ends = np.cumsum([t.size for t in self.tensors]).tolist()
        return tuple(
            (t.name, t.shape, start, end)
            for t, start, end in zip(self.tensors, [0, *ends[:-1]], ends, strict=True)
        )

    @cached_property
    def digest(self) -> bytes:
        """Returns 8 bytes (BLAKE2s) that differ where names, shapes, order or groups do."""
        text = "".join(f"{t.name} {t.shape} {t.group}\n" for t in self.tensors)
        return blake2s(text.encode(), digest_size=8).digest()

    @cached_property
    def parameters(self) -> int:
        """Counts all weights and biases, as "bits a weight" does."""
        return sum(t.size for t in self.tensors)


def layout(shapes: Mapping[str, tuple[int, ...]], statistics: Collection[str] = ()) -> Layout:
    """Returns the layout of tensors of these shapes, those named in `statistics` being running statistics."""
    return Layout(
        tuple(
            Tensor(name, tuple(shape), group_length(shape), name in statistics)
            for name, shape in shapes.items()
        )
    )


def group_length(shape: tuple[int, ...]) -> int:
    """Returns the group length for a tensor of this shape, 0 for raw: vectors, scalars, very short rows.

    A convolution (out, in, k...) has one group a kernel. Where that would be fewer than MIN_KERNEL weights,
    and in a dense tensor (out, in), a row of inputs is cut into the fewest equal parts of at most MAX_GROUP;
    a row without such a divisor stays whole."""
    if len(shape) < 2 or prod(shape) == 0:
        return 0
    kernel, row = prod(shape[2:]), prod(shape[1:])
    if len(shape) > 2 and kernel >= MIN_KERNEL:
        return kernel
    if row < MIN_GROUP:
        return 0
    divisors = (d for d in range(min(row, MAX_GROUP), MIN_GROUP - 1, -1) if row % d == 0)
    return next(divisors, row)


def in_groups(layout: Layout, weights: Weights) -> dict[str, Floats]:
    """Returns views of the grouped tensors as (G, n), by name. Raises ValueError for another shape."""
    for t in layout.grouped:
        _check_shape(t, weights[t.name])
    return {t.name: weights[t.name].reshape(t.groups, t.group) for t in layout.grouped}


def flat(layout: Layout, weights: Weights, out: Floats | None = None) -> Floats:
    """Copies all tensors into one float32 (P,), `out` if given. Raises ValueError for another shape."""
    out = np.empty(layout.parameters, np.float32) if out is None else out
    for t, view in zip(layout.tensors, views(layout, out).values(), strict=True):
        _check_shape(t, weights[t.name])
        view[...] = weights[t.name]
    return out


def views(layout: Layout, vector: Floats) -> dict[str, Floats]:
    """Returns views of a vector (P,) by tensor name, in their shapes."""
    if len(vector) != layout.parameters:
        raise ValueError(f"a vector of {len(vector)}, the layout has {layout.parameters}")
    return {name: vector[start:end].reshape(shape) for name, shape, start, end in layout.spans}


def check_finite(values: npt.NDArray[np.floating[Any]], what: str = "values") -> None:
    """Raises ValueError unless all values are finite."""
    if not np.isfinite(values).all():
        raise ValueError(f"{what} are not finite")


def _check_shape(tensor: Tensor, values: Floats) -> None:
    if values.shape != tensor.shape:
        raise ValueError(f"{tensor.name} has shape {values.shape}, the layout says {tensor.shape}")
