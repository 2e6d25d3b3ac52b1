"""The coordinates that matter least to the loss go first, wherever in the model they are.

Pruning in the alpha domain (Qu et al., "Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR 2020,
section 3.2). Without coordinate alpha of basis b a group's weights move by -alpha * b. To second order, and
with a diagonal H, the loss then grows by

    f = -g_alpha * alpha + h_alpha * alpha^2 / 2,    g_alpha = b^T g,    h_alpha = b^T H b.

H is the optimizer's curvature over its learning rate, so that a step of its own would be -g/H. Since b is of
-1 and +1, h_alpha is the sum of H's diagonal over the group, the same for all of its bases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onboard.codec.alq import Bases
from onboard.codec.layout import Floats

Mask = npt.NDArray[np.bool_]


def in_alpha_domain(bases: Bases, gradient: Floats, curvature: Floats) -> tuple[Floats, Floats]:
    """g_alpha and h_alpha, both (G, I) float32, of the weights' gradient and curvature (G, n)."""
    g: Floats = np.zeros(bases.alphas.shape, np.float32)
    for j in range(bases.alphas.shape[-1]):
        at = np.flatnonzero(bases.bits > j)
        g[at, j] = np.einsum("gn,gn->g", bases.signs[at, j].astype(np.float32), gradient[at])
    return g, np.where(bases.used, curvature.sum(axis=1)[:, None], np.float32(0))


def increments(bases: Bases, gradient: Floats, curvature: Floats, rate: float = 1.0) -> Floats:
    """The modelled loss increment f (G, I) float32 of dropping each coordinate, with H = curvature / rate; 0
    where there is none.
    """
    g, h = in_alpha_domain(bases, gradient, curvature)
    loss: Floats = bases.alphas * (np.float32(0.5 / rate) * h * bases.alphas - g)
    return loss


def smallest(
    increments: Sequence[Floats],
    used: Sequence[Mask],
    costs: Sequence[int],
    *,
    top: Sequence[int],
    bits: float,
) -> list[Mask]:
    """Which coordinates go to be rid of `bits` bits (the last one may be part of it): a mask (G, I) a layer.

    `used` (G, I): which exist; `costs`: bits of a coordinate with its basis, for each layer; equal costs rank
    by increment alone. The `top[l]` smallest increments a bit of a layer are candidates; all layers' are
    sorted again together, and the smallest go until enough bits are gone or no candidate is left.
    Errors: ValueError for increments that are not finite.
    """
    layers, places, values, bits_each = [], [], [], []
    for layer, (f, exists, cost, most) in enumerate(zip(increments, used, costs, top, strict=True)):
        at = np.flatnonzero(exists)
        worth = f.ravel()[at].astype(np.float64) / cost
        if not np.isfinite(worth).all():
            raise ValueError("increments are not finite: nothing to rank")
        least = np.argsort(worth, kind="stable")[:most]
        layers.append(np.full(len(least), layer))
        places.append(at[least])
        values.append(worth[least])
        bits_each.append(np.full(len(least), cost))
    order = np.argsort(np.concatenate(values), kind="stable")
    spent = np.concatenate(bits_each)[order]
    gone = order[np.cumsum(spent) - spent < bits]
    layer, place = np.concatenate(layers)[gone], np.concatenate(places)[gone]
    masks = [np.zeros(exists.shape, np.bool_) for exists in used]
    for number, mask in enumerate(masks):
        mask.ravel()[place[layer == number]] = True
    return masks


def drop(bases: Bases, mask: Mask) -> Bases:
    """`bases` without those in `mask` (G, I); the others move up, a group still uses its first ones."""
    keep = bases.used & ~mask
    bits = keep.sum(axis=1, dtype=np.uint8)
    order = np.argsort(~keep, axis=1, kind="stable")[:, : int(bits.max(initial=0))]
    kept = np.take_along_axis(keep, order, axis=1)
    return Bases(
        bits,
        np.where(kept, np.take_along_axis(bases.alphas, order, axis=1), np.float32(0)),
        np.where(kept[..., None], np.take_along_axis(bases.signs, order[..., None], axis=1), np.int8(0)),
    )
