"""A model's tensors as one flat float32 vector and back, without a copy."""

from __future__ import annotations

import numpy as np

from onboard.codec.layout import Floats, Layout, Weights


def flat(layout: Layout, weights: Weights, out: Floats | None = None) -> Floats:
    """All tensors one after the other in one float32 vector (P,), a copy (into `out` if given)."""
    out = np.empty(layout.parameters, np.float32) if out is None else out
    for name, view in views(layout, out).items():
        if weights[name].shape != view.shape:
            raise ValueError(f"{name} has shape {weights[name].shape}, the layout says {view.shape}")
        view[...] = weights[name]
    return out


def flat_gradient(layout: Layout, gradients: Weights, buffers: Weights, out: Floats) -> Floats:
    """As `flat`, with 0 for the tensors that have no gradient (`TrainGraph.buffers`)."""
    still = {name: np.zeros_like(values) for name, values in buffers.items()}
    return flat(layout, {**gradients, **still}, out)


def views(layout: Layout, vector: Floats) -> dict[str, Floats]:
    """The tensors of a vector (P,) by name, in their shapes; writing to one writes to the vector."""
    ends = np.cumsum([t.size for t in layout.tensors])[:-1]
    parts = np.split(vector, ends)
    return {t.name: part.reshape(t.shape) for t, part in zip(layout.tensors, parts, strict=True)}
