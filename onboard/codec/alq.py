"""Turns weights into groups of binary bases under a bit budget: ALQ's structured sketch and its allocation.

Qu et al. (CVPR 2020; see `quantized`), section 3.1: each basis is the sign of what the bases before it have
left of the weights, and after every basis all coordinates are refitted by least squares. Whole tensors of
groups are worked on at once: `groups` is (G, n), `bits` (G,), `alphas` (G, I) and `signs` (G, I, n)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onboard.codec import quantized
from onboard.codec.layout import Floats, Layout, Weights, in_groups
from onboard.codec.model import Budget
from onboard.codec.quantized import (
    COORDINATE_BITS,
    HALF_MAX,
    MAX_BASES,
    Bases,
    Quantized,
    Raw,
    Widths,
    rounded,
)

Doubles = npt.NDArray[np.float64]

# A raw tensor's values lie on 2 * 7 + 1 = 15 lines: as accurate as 31 (97.95 and 97.9 % on digits, 6 rounds,
# two seeds), and LeNet-5's 580 biases take 215 bytes instead of 290.
RAW_LEVELS = 7
# A basis with less than this share of its squared length outside the span of the others gets coordinate 0: a
# residual of nothing makes the next basis dependent, and float32 products tell no finer.
DEPENDENT = 1e-5


def _solved(gram: Doubles, target: Doubles) -> Doubles:
    """Solves for (A, j) by Cholesky, all matrices at once: j is at most MAX_BASES, A in the thousands."""
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


def refit(target: Floats, bits: npt.NDArray[np.uint8], signs: npt.NDArray[np.int8], h: Floats) -> Doubles:
    """Fits coordinates (G, I) of the first bits[g] bases of `signs` (G, I, n) to `target` (G, n) by least
    squares weighted by `h` (G, n); they are 0 for all other bases."""
    order, depth = _sorted(bits)
    h = h[order]
    bases = [signs[order[:live], j].astype(np.float32) for j, live in enumerate(depth)]
    weighted = target[order] * h
    gram = np.zeros((len(order), len(depth), len(depth)))
    product = np.zeros((len(order), len(depth)))
    for j, basis in enumerate(bases):
        live = len(basis)
        own = basis * h[:live]
        for i, other in enumerate(bases[: j + 1]):
            gram[:live, i, j] = gram[:live, j, i] = _dots(own, other[:live])
        product[:live, j] = _dots(basis, weighted[:live])
    alphas = np.zeros(signs.shape[:2])
    alphas[order, : len(depth)] = _solved(gram, product)
    return alphas


def _greedy(
    w: Floats, h: Floats | None, depth: list[int], *, errors: bool = False
) -> tuple[Doubles, list[Floats], Doubles]:
    """Sketches groups (A, n), widest first, of which the first `depth[j]` get a basis j. Returns alphas (A,
    I) of any sign, not rounded; each basis j (depth[j], n); and with `errors` the error (A, I + 1), weighted
    by `h` (A, n), left after 0, 1 ... I bases, which repeats past a group's own width."""
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
    dots: Floats = np.einsum("an,an->a", a if h is None else a * h, b)
    return dots


def _sums(alphas: Floats, bases: list[Floats]) -> Floats:
    total = alphas[:, :1] * bases[0][: len(alphas)]
    for j, basis in enumerate(bases[1:], 1):
        live = min(len(basis), len(alphas))
        total[:live] += alphas[:live, j, None] * basis[:live]
    return total


def _sorted(bits: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.intp], list[int]]:
    """Returns groups with a basis, widest first, and for each j how many have more than j bases."""
    order = np.argsort(-bits.astype(np.int16), kind="stable")
    depth = [int(np.count_nonzero(bits > j)) for j in range(int(bits.max(initial=0)))]
    return order[: depth[0] if depth else 0], depth


def sketch(groups: Floats, bits: npt.NDArray[np.uint8], curvature: Floats | None = None) -> Bases:
    """Sketches `groups` (G, n) float32 with `bits` (G,) uint8 bases each. `curvature` (G, n), not negative,
    weighs the least squares, None all alike. Raises ValueError for weights that are not finite."""
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
    """Returns what `sketch(groups, bits)` rebuilds, without its bases: the straight-through forward pass."""
    order, depth = _sorted(bits)
    out = np.zeros_like(groups)
    if depth:
        alphas, bases, _ = _greedy(groups[order], None, depth)
        values = np.copysign(rounded(alphas), alphas.astype(np.float32))
        out[order] = _sums(values, bases)
    return out


def gains(groups: Floats, max_bases: int, curvature: Floats | None = None) -> npt.NDArray[np.float64]:
    """Returns (G, max_bases): the weighted squared error that a group's 1st, 2nd ... basis removes, and never
    more than the basis before it. Raises ValueError for values whose squares are not finite."""
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
    """Allots bases to groups: name -> (G,) uint8.

    A basis costs n + COORDINATE_BITS bits. Those that remove the most weighted error for a bit are taken
    until `bits_per_weight` times all parameters are spent. `curvature` is h, the square root of Adam's or
    AMSGrad's second moment (ALQ eq. 10 models the loss as h w^2 / 2); None ranks by plain error."""
    if not 0 <= max_bases <= MAX_BASES:
        raise ValueError(f"max_bases is {max_bases}, must be 0 to {MAX_BASES}")
    h = {} if curvature is None else in_groups(layout, curvature)
    tables = {name: gains(w, max_bases, h.get(name)) for name, w in in_groups(layout, weights).items()}
    if not tables:
        return {}
    gain = np.concatenate([table.ravel() for table in tables.values()])
    cost = np.repeat([t.group + COORDINATE_BITS for t in layout.grouped], [v.size for v in tables.values()])
    best = np.argsort(-gain / cost, kind="stable")
    taken = np.zeros(len(gain), np.bool_)
    taken[best] = (np.cumsum(cost[best]) <= bits_per_weight * layout.parameters) & (gain[best] > 0)
    ends = np.cumsum([table.size for table in tables.values()])[:-1]
    return {
        name: part.reshape(table.shape).sum(axis=1, dtype=np.uint8)
        for (name, table), part in zip(tables.items(), np.split(taken, ends), strict=True)
    }


def on_grid(values: Floats, levels: int) -> Raw:
    """Rounds `values` to the grid step * {-levels ... levels}, the largest value on its last line."""
    if not np.isfinite(values).all():
        raise ValueError("weights are not finite: nothing to quantize")
    step = np.float32(np.float16(min(float(np.abs(values).max(initial=0.0)) / levels, HALF_MAX)))
    scaled = values / step if step else np.zeros_like(values)
    return Raw(np.clip(np.rint(scaled), -levels, levels).astype(np.int8), step)


def quantize(layout: Layout, weights: Weights, widths: Widths) -> Quantized:
    """Quantizes with `widths[name]` (G,) bases a group, and raw tensors on grids of RAW_LEVELS each way."""
    return Quantized(
        layout,
        {name: sketch(w, widths[name]) for name, w in in_groups(layout, weights).items()},
        {t.name: on_grid(weights[t.name], RAW_LEVELS) for t in layout.raw},
    )


class AlqCodec:
    """Weights become binary bases."""

    name = "quantized"
    sections = staticmethod(quantized.sections)
    unpack = staticmethod(quantized.unpack)

    def quantize(self, layout: Layout, weights: Weights, budget: Budget) -> Quantized:
        """Allots and sketches by plain error."""
        widths = allocate(layout, weights, bits_per_weight=budget.bits_per_weight, max_bases=budget.max_bases)
        return quantize(layout, weights, widths)

    def check(self, model: Quantized, budget: Budget) -> None:
        """Checks bases and bits against what `allocate` grants, and that raw tensors are on the grid."""
        parameters = model.layout.parameters
        most = max((int(bases.bits.max(initial=0)) for bases in model.grouped.values()), default=0)
        if most > budget.max_bases:
            raise ValueError(f"{most} bases in a group, asked for were {budget.max_bases} at most")
        if model.budget_bits > budget.bits_per_weight * parameters:  # as `allocate` keeps it, to the bit
            bits = model.budget_bits / parameters
            raise ValueError(f"{bits:.3g} bits a weight, asked for were {budget.bits_per_weight:g} at most")
        if any(np.abs(raw.codes.astype(np.int16)).max(initial=0) > RAW_LEVELS for raw in model.raw.values()):
            raise ValueError(f"biases beside the grid of {2 * RAW_LEVELS + 1} values")
