"""Prunes a multi-bit network, and brings its bases and coordinates to target weights in turn, as ALQ does (Qu
et al., "Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR 2020).

Weights, `gradient`, `curvature` and `target` of a tensor are its groups, (G, n) float32. Coordinates stay
unrounded (`codec.quantized.rounded` is for what travels).

Pruning in the alpha domain (section 3.2): without coordinate alpha of basis b a group's weights move by
-alpha * b. To second order, and with a diagonal H, the loss then grows by

    f = -g_alpha * alpha + h_alpha * alpha^2 / 2,    g_alpha = b^T g,    h_alpha = b^T H b.

H is the optimizer's curvature over its learning rate, so that its own step would be -g/H. As b is of -1 and
+1, h_alpha is the sum of H's diagonal over the group, the same for all of its bases.

Optimizing (section 3.3): every weight takes the nearest value of its group, then the coordinates are fitted
to these or take gradient steps of their own. The target is an optimizer's step away, w - g/h, and the error
at each weight counts with its curvature h."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onboard.codec.alq import Signs, nearest, refit
from onboard.codec.layout import Floats, Layout
from onboard.codec.quantized import COORDINATE_BITS, Bases, Widths

Mask = npt.NDArray[np.bool_]

TINY = np.float32(1e-12)  # keeps a group that no gradient ever reached from dividing 0 by 0


def increments(bases: Bases, gradient: Floats, curvature: Floats, rate: float = 1.0) -> Floats:
    """Returns the modelled loss increment f (G, I) float32 of dropping each coordinate, with H = curvature /
    rate; 0 where there is none."""
    g, h = _in_alpha_domain(bases, gradient, curvature)
    loss: Floats = bases.alphas * (np.float32(0.5 / rate) * h * bases.alphas - g)
    return loss


def smallest(
    increments: Sequence[Floats], models: Sequence[Bases], *, top: Sequence[int], bits: float
) -> list[Mask]:
    """Chooses coordinates to drop for `bits` bits with their bases': a mask (G, I) a layer. The `top[l]`
    smallest increments a bit of each layer are sorted together and dropped in order until enough bits are
    gone. Raises ValueError for increments that are not finite."""
    sizes = [bases.used.size for bases in models]
    cost = np.repeat([bases.signs.shape[2] + COORDINATE_BITS for bases in models], sizes)
    worth = np.concatenate([f.ravel() for f in increments]).astype(np.float64) / cost
    candidates, start = [], 0
    for bases, size, most in zip(models, sizes, top, strict=True):
        at = start + np.flatnonzero(bases.used)
        if not np.isfinite(worth[at]).all():
            raise ValueError("increments are not finite: nothing to rank")
        candidates.append(at[np.argsort(worth[at], kind="stable")[:most]])
        start += size
    ranked = np.concatenate(candidates)
    ranked = ranked[np.argsort(worth[ranked], kind="stable")]
    mask = np.zeros(len(worth), np.bool_)
    mask[ranked[np.cumsum(cost[ranked]) - cost[ranked] < bits]] = True
    parts = np.split(mask, np.cumsum(sizes)[:-1])
    return [part.reshape(bases.used.shape) for part, bases in zip(parts, models, strict=True)]


def optimized(target: Floats, bases: Bases, curvature: Floats) -> Bases:
    """ALQ's step 2 on all groups: new bases for fixed coordinates, then new coordinates for these bases.
    Neither leaves more weighted squared error to `target` than `bases` do."""
    return fitted(target, bases.bits, nearest(target, bases), np.maximum(curvature, TINY))


def stepped(bases: Bases, gradient: Floats, curvature: Floats, rate: float) -> Bases:
    """Takes a step in the alpha domain: alpha - rate * g_alpha / h_alpha. A negative one turns its basis."""
    g, h = _in_alpha_domain(bases, gradient, curvature)
    return _positive(bases.bits, bases.alphas - np.float32(rate) * g / (h + TINY), bases.signs)


def fitted(target: Floats, bits: npt.NDArray[np.uint8], signs: Signs, curvature: Floats) -> Bases:
    """Fits coordinates of signs (G, I, n) to `target` by least squares weighted by `curvature`. A basis is
    negated where that makes its coordinate positive."""
    return _positive(bits, refit(target, bits, signs, curvature), signs)


def _in_alpha_domain(bases: Bases, gradient: Floats, curvature: Floats) -> tuple[Floats, Floats]:
    """Returns g_alpha and h_alpha, both (G, I) float32."""
    g: Floats = np.zeros(bases.alphas.shape, np.float32)
    for j in range(bases.alphas.shape[-1]):
        at = np.flatnonzero(bases.bits > j)
        g[at, j] = np.einsum("gn,gn->g", bases.signs[at, j].astype(np.float32), gradient[at])
    return g, np.where(bases.used, curvature.sum(axis=1)[:, None], np.float32(0))


def _positive(bits: npt.NDArray[np.uint8], alphas: npt.NDArray[np.floating], signs: Signs) -> Bases:
    used = np.arange(signs.shape[1]) < bits[:, None]
    turned = used & (alphas < 0)
    if turned.any():
        signs = np.where(turned[..., None], -signs, signs)
    return Bases(bits, np.where(used, np.abs(alphas), 0).astype(np.float32), signs)


def split_widths(layout: Layout, widths: npt.ArrayLike) -> dict[str, npt.NDArray[np.uint8]]:
    """Splits a checkpoint's bit-widths by name. Raises ValueError for another number of groups."""
    row = np.array(widths, np.uint8)
    ends = np.cumsum([t.groups for t in layout.grouped])
    if row.shape != (sum(t.groups for t in layout.grouped),):
        raise ValueError(f"the checkpoint has {row.size} bit-widths, not one for each group")
    return {t.name: part for t, part in zip(layout.grouped, np.split(row, ends[:-1]), strict=True)}


def arrays(models: Sequence[Bases]) -> dict[str, npt.NDArray[Any]]:
    """Packs coordinates and signs (a bit each) for a checkpoint; `from_arrays` undoes it."""
    signs = np.concatenate([bases.signs[bases.used].ravel() > 0 for bases in models])
    return {"alphas": np.concatenate([b.alphas[b.used] for b in models]), "signs": np.packbits(signs)}


def from_arrays(layout: Layout, widths: Widths, state: Mapping[str, npt.NDArray[Any]]) -> dict[str, Bases]:
    """Raises ValueError if a checkpoint's coordinates or signs are not as many as the bit-widths say."""
    counts = [int(widths[t.name].sum(dtype=np.int64)) for t in layout.grouped]
    sign_counts = [count * t.group for count, t in zip(counts, layout.grouped, strict=True)]
    alphas = np.array(state.get("alphas", ()), np.float32)
    packed = np.array(state.get("signs", ()), np.uint8)
    if alphas.shape != (sum(counts),) or packed.shape != (-(-sum(sign_counts) // 8),):
        raise ValueError(
            f"the checkpoint has {alphas.size} coordinates, its bit-widths ask for {sum(counts)}"
        )
    parts = np.split(alphas, np.cumsum(counts)[:-1])
    signs = np.split(np.unpackbits(packed)[: sum(sign_counts)], np.cumsum(sign_counts)[:-1])
    return {
        t.name: Bases.assembled(widths[t.name], part, ones.reshape(-1, t.group))
        for t, part, ones in zip(layout.grouped, parts, signs, strict=True)
    }
