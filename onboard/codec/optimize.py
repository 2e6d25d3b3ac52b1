"""Bases and coordinates approach target weights in turn: every weight takes the nearest value of its group,
then the coordinates are fitted to what was taken, or take gradient steps of their own.

ALQ, section 3.3 (Qu et al., "Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR 2020). The
target is an optimizer's step away, w - g/h, and the error at each weight counts with its curvature h.
`target`, `gradient` and `curvature` are (G, n) float32; coordinates stay unrounded (`alq.rounded` is for what
travels).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onboard.codec.alq import Bases, refit
from onboard.codec.layout import Floats
from onboard.codec.prune import in_alpha_domain

Signs = npt.NDArray[np.int8]

TINY = np.float32(1e-12)  # keeps a group that no gradient ever reached from dividing 0 by 0


def nearest(target: Floats, bases: Bases) -> Signs:
    """Signs (G, I, n) that bring sum_j alpha_j * sign_j nearest to `target`, weight by weight.

    Weights' curvatures change nothing here: no error could be smaller.
    """
    signs = np.zeros(bases.signs.shape, np.int8)
    for width in range(1, bases.signs.shape[1] + 1):  # all groups of one width at a time
        at = np.flatnonzero(bases.bits == width)
        if len(at):
            search = _by_residual if width <= 2 else _by_halving
            signs[at, :width] = search(target[at], bases.alphas[at, :width])
    return signs


def _by_residual(target: Floats, alphas: Floats) -> Signs:
    """One or two bases: the sign of the weight for the larger coordinate, of what is then left for the other.

    With three, the two smaller ones can outweigh the largest, and this would not find the nearest value.
    """
    signs = np.empty((*alphas.shape, target.shape[1]), np.int8)
    order = np.argsort(-alphas, axis=1, kind="stable")
    rows, left = np.arange(len(alphas)), target
    for j in order.T:
        one = np.where(left > 0, np.int8(1), np.int8(-1))
        signs[rows, j] = one
        if alphas.shape[1] > 1:
            left = left - alphas[rows, j, None] * one
    return signs


def _by_halving(target: Floats, alphas: Floats) -> Signs:
    """I bases have 2^I values: each weight finds its own among its group's, sorted, in I halvings."""
    width = alphas.shape[1]
    corners = (np.arange(1 << width)[:, None] >> np.arange(width) & 1) * 2 - 1  # (2^I, I)
    values = alphas.astype(np.float64) @ corners.T
    order = np.argsort(values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    borders = ((ranked[:, 1:] + ranked[:, :-1]) / 2).astype(np.float32)
    half = 1 << width - 1
    rank = np.where(target > borders[:, half - 1, None], half, 0)
    while half := half >> 1:
        rank += half * (target > np.take_along_axis(borders, rank + (half - 1), axis=1))
    code = np.take_along_axis(order, rank, axis=1)
    return np.stack([(code >> j & 1) * 2 - 1 for j in range(width)], axis=1).astype(np.int8)


def fitted(target: Floats, bits: npt.NDArray[np.uint8], signs: Signs, curvature: Floats | None) -> Bases:
    """Bases with these signs (G, I, n) and the coordinates that leave the least squared error to `target`,
    weighted by `curvature` (None: all alike). A basis is negated where that makes its coordinate positive.
    """
    return _positive(bits, refit(target, bits, signs, curvature), signs)


def optimized(target: Floats, bases: Bases, curvature: Floats | None) -> Bases:
    """ALQ's step 2 on all groups: new bases for fixed coordinates, then new coordinates for these bases.

    Neither leaves more weighted squared error to `target` than `bases` do.
    """
    weights = None if curvature is None else np.maximum(curvature, TINY)
    return fitted(target, bases.bits, nearest(target, bases), weights)


def stepped(bases: Bases, gradient: Floats, curvature: Floats, rate: float) -> Bases:
    """Coordinates after a step of the optimizer in their own domain: alpha - rate * g_alpha / h_alpha, with
    g_alpha and h_alpha as pruning has them. A coordinate that would turn negative turns its basis.
    """
    g, h = in_alpha_domain(bases, gradient, curvature)
    return _positive(bases.bits, bases.alphas - np.float32(rate) * g / (h + TINY), bases.signs)


def _positive(bits: npt.NDArray[np.uint8], alphas: npt.NDArray[np.floating], signs: Signs) -> Bases:
    used = np.arange(signs.shape[1]) < bits[:, None]
    turned = used & (alphas < 0)
    if turned.any():
        signs = np.where(turned[..., None], -signs, signs)
    return Bases(bits, np.where(used, np.abs(alphas), 0).astype(np.float32), signs)
