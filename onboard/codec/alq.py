"""Weights become groups of binary bases under a bit budget, and both ends rebuild the same float32 weights.

Adaptive loss-aware quantization (Qu et al., "Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR
2020): a layer's weights are cut into G groups of n, and every group has its own number of bases I (its
bit-width, 0 to 8):

    w^ = sum_j alpha_j * b_j,    b_j in {-1, +1}^n,  alpha_j >= 0                                  (eq. 1)

Here are the structured sketch (section 3.1 there: greedy binarization of the residual, all coordinates
refitted by least squares after every basis) and the allocation of bases under a budget. Everything works on
whole tensors of groups at once: `groups` is always (G, n), `bits` (G,), `alphas` (G, I) and `signs` (G, I,
n).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onboard.codec import formats
from onboard.codec.layout import Floats, Layout, Weights, from_groups, in_groups

Doubles = npt.NDArray[np.float64]

MAX_BASES = 8
# An alpha travels as a float16 without its sign and with 3 bits of mantissa. It is off by at most 1/16, which
# adds 0.4 % of a basis's energy to the error: 97.1 % on digits against 97.2 % with all 10 bits (6 rounds, two
# seeds), and 97.9 % with the bits saved spent on more bases.
MANTISSA_BITS = 3
COORDINATE_BITS = 5 + MANTISSA_BITS
# A raw tensor's values lie on 2 * 7 + 1 = 15 lines: as accurate as 31 (97.95 and 97.9 %, same setting), and
# LeNet-5's 580 biases take 215 bytes instead of 290.
RAW_LEVELS = 7
HALF_MAX = float(np.finfo(np.float16).max)
# A basis with less than this share of its squared length outside the span of the others gets coordinate 0: a
# residual of nothing makes the next basis dependent, and float32 products tell no finer.
DEPENDENT = 1e-5


@dataclass(frozen=True, eq=False)
class Bases:
    """A grouped tensor as bases: `bits` (G,) uint8, `alphas` (G, I) float32, `signs` (G, I, n) int8.

    The alphas are >= 0, and in what travels as `rounded` leaves them. I is the largest bit-width in the
    tensor. Group g uses its first bits[g] bases; alphas and signs are 0 in the rest.
    """

    bits: npt.NDArray[np.uint8]
    alphas: Floats
    signs: npt.NDArray[np.int8]

    @classmethod
    def assembled(cls, bits: npt.NDArray[np.uint8], alphas: Floats, signs: npt.NDArray[np.uint8]) -> Bases:
        """From the bases that exist, one after the other: alphas (S,), signs (S, n) as 0 and 1."""
        width = int(bits.max(initial=0))
        bases = cls(
            bits,
            np.zeros((len(bits), width), np.float32),
            np.zeros((len(bits), width, signs.shape[1]), np.int8),
        )
        bases.alphas[bases.used] = alphas
        bases.signs[bases.used] = signs.astype(np.int8) * 2 - 1
        return bases

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        """(G, I): which bases exist."""
        return np.arange(self.alphas.shape[1]) < self.bits[:, None]

    def reconstruct(self) -> Floats:
        """The groups (G, n), float32; one product, one sum at a time: IEEE 754 makes it the same anywhere."""
        groups = np.zeros((len(self.bits), self.signs.shape[2]), np.float32)
        for j in range(self.alphas.shape[1]):
            at = np.flatnonzero(self.bits > j)
            groups[at] += self.alphas[at, j, None] * self.signs[at, j]
        return groups


@dataclass(frozen=True, eq=False)
class Raw:
    """A tensor on a uniform grid: `codes` int8 in its shape, and the float32 `step` between two values."""

    codes: npt.NDArray[np.int8]
    step: np.float32

    def reconstruct(self) -> Floats:
        return self.codes.astype(np.float32) * self.step


@dataclass(frozen=True, eq=False)
class Quantized:
    """A whole model as it travels: bases for the grouped tensors, a grid for the raw ones, both by name."""

    format: ClassVar[int] = formats.ALQ

    layout: Layout
    grouped: Mapping[str, Bases]
    raw: Mapping[str, Raw]

    def reconstruct(self) -> dict[str, Floats]:
        """See `Model.reconstruct`."""
        return {
            t.name: from_groups(t, self.grouped[t.name].reconstruct())
            if t.group
            else self.raw[t.name].reconstruct()
            for t in self.layout.tensors
        }

    @property
    def mean_width(self) -> float:
        """See `Model.mean_width`: the bases of a weight's group, averaged over the weights."""
        grouped = self.layout.grouped
        signs = sum(int(self.grouped[t.name].bits.sum(dtype=np.int64)) * t.group for t in grouped)
        return signs / sum(t.size for t in grouped)

    @property
    def budget_bits(self) -> int:
        """Bits of bases and coordinates together: what `allocate` keeps under its budget."""
        return sum(
            int(self.grouped[t.name].bits.sum(dtype=np.int64)) * (t.group + COORDINATE_BITS)
            for t in self.layout.grouped
        )


def _solved(gram: Doubles, target: Doubles) -> Doubles:
    """Least-squares coordinates (A, j) from Gram matrices (A, j, j) and targets (A, j), by Cholesky.

    All matrices at once, an entry at a time: j is at most MAX_BASES, A in the thousands.
    """
    width = gram.shape[1]
    lower = np.zeros((width, width, len(gram)))
    x = np.zeros((width, len(gram)))
    for i in range(width):
        for k in range(i):
            lower[i, k] = (gram[:, i, k] - np.einsum("ka,ka->a", lower[i, :k], lower[k, :k])) / lower[k, k]
        outside = gram[:, i, i] - np.einsum("ka,ka->a", lower[i, :i], lower[i, :i])
        lower[i, i] = np.sqrt(np.where(outside > DEPENDENT * gram[:, i, i], outside, np.inf))
        x[i] = (target[:, i] - np.einsum("ka,ka->a", lower[i, :i], x[:i])) / lower[i, i]
    for i in reversed(range(width)):
        x[i] = (x[i] - np.einsum("ka,ka->a", lower[i + 1 :, i], x[i + 1 :])) / lower[i, i]
    return np.asarray(x.T)


def refit(
    target: Floats, bits: npt.NDArray[np.uint8], signs: npt.NDArray[np.int8], h: Floats | None = None
) -> Doubles:
    """Coordinates (G, I) of the first bits[g] bases of `signs` (G, I, n) that leave the least squared error
    to `target` (G, n), weighted by `h` (G, n) unless None; 0 for all other bases.
    """
    order, depth = _sorted(bits)
    bases = [signs[order[:live], j].astype(np.float32) for j, live in enumerate(depth)]
    weighted = target[order] if h is None else target[order] * h[order]
    gram = np.zeros((len(order), len(depth), len(depth)))
    product = np.zeros((len(order), len(depth)))
    for j, basis in enumerate(bases):
        live = len(basis)
        own = basis if h is None else basis * h[order[:live]]
        for i, other in enumerate(bases[: j + 1]):
            gram[:live, i, j] = gram[:live, j, i] = _dots(own, other[:live])
        product[:live, j] = _dots(basis, weighted[:live])
    alphas = np.zeros(signs.shape[:2])
    alphas[order, : len(depth)] = _solved(gram, product)
    return alphas


def _greedy(
    w: Floats, h: Floats | None, depth: list[int], *, errors: bool = False
) -> tuple[Doubles, list[Floats], Doubles]:
    """Structured sketch of groups (A, n), widest first; the first `depth[j]` groups get a basis j.

    `h` (A, n) weighs the squared error. Returns alphas (A, I) before rounding (of any sign), each basis j
    (depth[j], n) as float32, and with `errors` the weighted squared error (A, I + 1) left after 0, 1 ... I
    bases (past a group's own width it repeats).
    """
    count, width = len(w), len(depth)
    alphas = np.zeros((count, width))
    bases: list[Floats] = []
    gram = np.zeros((count, width, width))
    target = np.zeros((count, width))
    error = np.zeros((count, width + 1))
    residual = w + np.float32(0)  # a sign bit has no zero: -0 becomes +0, and takes +1 on every machine
    if errors:
        error[:, 0] = _dots(residual, residual, h)
    for j, live in enumerate(depth):
        basis = np.copysign(np.float32(1), residual[:live])
        bases.append(basis)
        weighted = basis if h is None else basis * h[:live]
        for i, other in enumerate(bases[:-1]):
            gram[:live, i, j] = gram[:live, j, i] = _dots(weighted, other[:live])
        gram[:live, j, j] = w.shape[1] if h is None else _dots(weighted, basis)
        target[:live, j] = _dots(weighted, w[:live])
        alphas[:live, : j + 1] = _solved(gram[:live, : j + 1, : j + 1], target[:live, : j + 1])
        if errors or j + 1 < width:
            np.subtract(w[:live], _sums(alphas[:live].astype(np.float32), bases), out=residual[:live])
        if errors:
            error[:, j + 1] = error[:, j]
            error[:live, j + 1] = _dots(residual[:live], residual[:live], None if h is None else h[:live])
    return alphas, bases, error


def _dots(a: Floats, b: Floats, h: Floats | None = None) -> Floats:
    """Scalar products row by row, weighted by `h` unless None: (A, n), (A, n) -> (A,)."""
    dots: Floats = np.einsum("an,an->a", a if h is None else a * h, b)
    return dots


def _sums(alphas: Floats, bases: list[Floats]) -> Floats:
    """sum_j alphas[:, j] * bases[j] for the A groups of `alphas` (A, I): (A, n)."""
    total = alphas[:, :1] * bases[0][: len(alphas)]
    for j, basis in enumerate(bases[1:], 1):
        live = min(len(basis), len(alphas))
        total[:live] += alphas[:live, j, None] * basis[:live]
    return total


def _sorted(bits: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.intp], list[int]]:
    """Groups with a basis, widest first, and how many of them have more than j bases, for each j."""
    order = np.argsort(-bits.astype(np.int16), kind="stable")
    depth = [int(np.count_nonzero(bits > j)) for j in range(int(bits.max(initial=0)))]
    return order[: depth[0] if depth else 0], depth


def rounded(alphas: npt.NDArray[np.floating[Any]]) -> Floats:
    """|alphas| as they travel: float16 values with MANTISSA_BITS of mantissa, none infinite, as float32."""
    drop = 10 - MANTISSA_BITS
    halves = np.minimum(np.abs(alphas), HALF_MAX).astype(np.float16).view(np.uint16).astype(np.int64)
    # A carry out of the mantissa goes on into the exponent, as it should; at infinity (exponent 31) it stops.
    cut = np.minimum(halves + (1 << drop >> 1) >> drop, (31 << MANTISSA_BITS) - 1) << drop
    return np.asarray(cut.astype(np.uint16).view(np.float16), np.float32)


def sketch(groups: Floats, bits: npt.NDArray[np.uint8], curvature: Floats | None = None) -> Bases:
    """Structured sketch (ALQ section 3.1) of `groups` (G, n) float32 with `bits` (G,) uint8 bases each.

    `curvature` (G, n), not negative, weighs the least squares; None weighs all alike and needs no data, which
    is what a server can do. Errors: ValueError for weights that are not finite.
    """
    if not np.isfinite(groups).all():
        raise ValueError("weights are not finite: nothing to quantize")
    order, depth = _sorted(bits)
    alphas, bases, _ = _greedy(groups[order], None if curvature is None else curvature[order], depth)
    out = Bases(
        bits=bits.copy(),
        alphas=np.zeros((len(groups), len(depth)), np.float32),
        signs=np.zeros((len(groups), len(depth), groups.shape[1]), np.int8),
    )
    out.alphas[order] = rounded(alphas)
    for j, basis in enumerate(bases):  # -alpha * -b: every alpha becomes positive
        signs = basis.astype(np.int8)
        turned = alphas[: len(basis), j] < 0
        signs[turned] = -signs[turned]
        out.signs[order[: len(basis)], j] = signs
    return out


def project(groups: Floats, bits: npt.NDArray[np.uint8]) -> Floats:
    """What `sketch(groups, bits)` rebuilds, without the bases kept: the straight-through forward pass."""
    order, depth = _sorted(bits)
    out = np.zeros_like(groups)
    if depth:
        alphas, bases, _ = _greedy(groups[order], None, depth)
        values = np.copysign(rounded(alphas), alphas.astype(np.float32))
        out[order] = _sums(values, bases)
    return out


def gains(groups: Floats, max_bases: int, curvature: Floats | None = None) -> npt.NDArray[np.float64]:
    """(G, max_bases): weighted squared error that a group's 1st, 2nd ... basis removes, made non-increasing.

    A later basis can remove more than an earlier one, but cannot be had before it: the running minimum keeps
    any ranking by gain in an order that can be built. Errors: ValueError for values whose squares are not
    finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        _, _, error = _greedy(groups, curvature, [len(groups)] * max_bases, errors=True)
    if not np.isfinite(error).all():
        raise ValueError("weights or curvature are not finite, or too large to square: nothing to rank")
    removed = error[:, :-1] - error[:, 1:]
    return np.minimum.accumulate(np.maximum(removed, 0.0), axis=1)


def allocate(
    layout: Layout,
    weights: Weights,
    *,
    bits_per_weight: float,
    max_bases: int = MAX_BASES,
    curvature: Weights | None = None,
) -> dict[str, npt.NDArray[np.uint8]]:
    """How many bases every group gets: name -> (G,) uint8.

    Ranks every (group, next basis) by the weighted error it removes for a bit, (n + COORDINATE_BITS) of them,
    and takes the best until `bits_per_weight` times all parameters are spent. `curvature` is h, the square
    root of Adam's or AMSGrad's second moment (ALQ eq. 10 models the loss as h w^2 / 2); None ranks by plain
    error, without data.
    """
    if not 0 <= max_bases <= MAX_BASES:
        raise ValueError(f"max_bases is {max_bases}, must be 0 to {MAX_BASES}")
    tables = [
        gains(
            in_groups(t, weights[t.name]),
            max_bases,
            None if curvature is None else in_groups(t, curvature[t.name]),
        )
        for t in layout.grouped
    ]
    costs = [
        np.full(table.size, t.group + COORDINATE_BITS)
        for t, table in zip(layout.grouped, tables, strict=True)
    ]
    if not tables:
        return {}
    gain, cost = np.concatenate([table.ravel() for table in tables]), np.concatenate(costs)
    best = np.argsort(-gain / cost, kind="stable")
    spent = np.cumsum(cost[best])
    taken = np.zeros(len(gain), np.bool_)
    taken[best] = (spent <= bits_per_weight * layout.parameters) & (gain[best] > 0)
    ends = np.cumsum([table.size for table in tables])[:-1]
    return {
        t.name: part.reshape(table.shape).sum(axis=1, dtype=np.uint8)
        for t, table, part in zip(layout.grouped, tables, np.split(taken, ends), strict=True)
    }


def on_grid(values: Floats, levels: int) -> Raw:
    """`values` rounded to the grid step * {-levels ... levels}, the largest value on its last line."""
    if not np.isfinite(values).all():
        raise ValueError("weights are not finite: nothing to quantize")
    step = np.float32(np.float16(min(float(np.abs(values).max(initial=0.0)) / levels, HALF_MAX)))
    scaled = values / step if step else np.zeros_like(values)
    return Raw(np.clip(np.rint(scaled), -levels, levels).astype(np.int8), step)


def quantize(
    layout: Layout,
    weights: Weights,
    allocation: Mapping[str, npt.NDArray[np.uint8]],
    *,
    raw_levels: int = RAW_LEVELS,
) -> Quantized:
    """The model with `allocation` bases a group, raw tensors on grids of 2 * raw_levels + 1 values."""
    return Quantized(
        layout,
        {t.name: sketch(in_groups(t, weights[t.name]), allocation[t.name]) for t in layout.grouped},
        {t.name: on_grid(weights[t.name], raw_levels) for t in layout.raw},
    )
