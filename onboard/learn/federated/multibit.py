"""A whole model's steps as a multi-bit network: sketched, pruned, its bases and coordinates optimized.

ALQ's procedure (Qu et al., CVPR 2020, sections 3.1 to 3.3) for all grouped tensors of a layout at once, as
pure functions: name -> `Bases` in, name -> `Bases` or bit-widths out. Weights, gradients and curvatures are
name -> float32 in the tensors' shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onboard.codec import alq, optimize, prune
from onboard.codec.alq import COORDINATE_BITS, Bases
from onboard.codec.layout import Floats, Layout, Weights, from_groups, in_groups

Widths = Mapping[str, npt.NDArray[np.uint8]]
MultiBit = Mapping[str, Bases]


def sketched(layout: Layout, weights: Weights, widths: Widths) -> dict[str, Bases]:
    """The structured sketch of `weights` with `widths[name]` (G,) bases a group, coordinates rounded."""
    return {t.name: alq.sketch(in_groups(t, weights[t.name]), widths[t.name]) for t in layout.grouped}


def rebuilt(layout: Layout, model: MultiBit) -> dict[str, Floats]:
    """The weights that the bases stand for."""
    return {t.name: from_groups(t, model[t.name].reconstruct()) for t in layout.grouped}


def bits(layout: Layout, widths: Widths) -> int:
    """Bits of bases and coordinates."""
    return sum(int(widths[t.name].sum(dtype=np.int64)) * (t.group + COORDINATE_BITS) for t in layout.grouped)


def pruned(
    layout: Layout,
    model: MultiBit,
    gradient: Weights,
    curvature: Weights,
    *,
    rate: float,
    remove_bits: float,
    top: Mapping[str, int],
) -> dict[str, npt.NDArray[np.uint8]]:
    """Bit-widths without the coordinates whose modelled loss increments a bit, with H = curvature / rate, are
    the smallest; of each tensor at most the `top[name]` smallest go.
    """
    models = [model[t.name] for t in layout.grouped]
    loss = [
        prune.increments(bases, in_groups(t, gradient[t.name]), in_groups(t, curvature[t.name]), rate)
        for t, bases in zip(layout.grouped, models, strict=True)
    ]
    masks = prune.smallest(
        loss,
        [bases.used for bases in models],
        [t.group + COORDINATE_BITS for t in layout.grouped],
        top=[top[t.name] for t in layout.grouped],
        bits=remove_bits,
    )
    return {
        t.name: bases.bits - mask.sum(axis=1, dtype=np.uint8)
        for t, bases, mask in zip(layout.grouped, models, masks, strict=True)
    }


def optimized(layout: Layout, model: MultiBit, target: Weights, curvature: Weights) -> dict[str, Bases]:
    """Bases and coordinates nearer to `target` (`optimize.optimized`)."""
    return {
        t.name: optimize.optimized(
            in_groups(t, target[t.name]), model[t.name], in_groups(t, curvature[t.name])
        )
        for t in layout.grouped
    }


def stepped(
    layout: Layout, model: MultiBit, gradient: Weights, curvature: Weights, rate: float
) -> dict[str, Bases]:
    """Coordinates a step of length `rate` on (`optimize.stepped`)."""
    return {
        t.name: optimize.stepped(
            model[t.name], in_groups(t, gradient[t.name]), in_groups(t, curvature[t.name]), rate
        )
        for t in layout.grouped
    }


def split_widths(layout: Layout, widths: npt.ArrayLike) -> dict[str, npt.NDArray[np.uint8]]:
    """All groups' bit-widths in one row, by name. Errors: ValueError for another number of them."""
    row = np.array(widths, np.uint8)
    if row.shape != (sum(t.groups for t in layout.grouped),):
        raise ValueError(f"the checkpoint has {row.size} bit-widths, not one for each group")
    ends = np.cumsum([t.groups for t in layout.grouped])[:-1]
    return {t.name: part for t, part in zip(layout.grouped, np.split(row, ends), strict=True)}


def arrays(layout: Layout, model: MultiBit) -> dict[str, npt.NDArray[Any]]:
    """Coordinates and signs (a bit each) for a checkpoint; with the bit-widths `from_arrays` undoes it."""
    models = [model[t.name] for t in layout.grouped]
    signs = np.concatenate([bases.signs[bases.used].ravel() > 0 for bases in models])
    return {"alphas": np.concatenate([b.alphas[b.used] for b in models]), "signs": np.packbits(signs)}


def from_arrays(layout: Layout, widths: Widths, state: Mapping[str, npt.NDArray[Any]]) -> dict[str, Bases]:
    """Errors: ValueError where a checkpoint's coordinates or signs are not as many as the bit-widths say."""
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
