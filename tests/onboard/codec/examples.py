"""Small models to quantize: every kind of tensor, and hypothesis strategies for more of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from onboard.codec import alq
from onboard.codec.alq import AlqCodec
from onboard.codec.layout import Floats, Layout, Weights, layout
from onboard.codec.model import Budget
from onboard.codec.quantized import MAX_BASES, Quantized

VECTORS = Path(__file__).parent.parent.parent / "vectors"
LENET5 = {
    "conv1.weight": (20, 1, 5, 5),
    "conv1.bias": (20,),
    "conv2.weight": (50, 20, 5, 5),
    "conv2.bias": (50,),
    "fc1.weight": (500, 800),
    "fc1.bias": (500,),
    "fc2.weight": (10, 500),
    "fc2.bias": (10,),
}
SMALL = layout({"conv": (3, 2, 3, 3), "conv.bias": (3,), "dense": (4, 24), "tiny": (2, 3), "scale": ()})
# As the files of golden bytes have it, which are older than the rule for small kernels.
SMALL_BY_KERNEL = Layout(tuple(replace(t, group=9) if t.name == "conv" else t for t in SMALL.tensors))
SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.integers(1, 6), st.integers(1, 40)),
        st.tuples(st.integers(1, 9)),
        st.just(()),
    ),
    min_size=1,
    max_size=5,
)
LAYOUTS = SHAPES.map(lambda shapes: layout({f"t{i}": shape for i, shape in enumerate(shapes)}))


def weights(layout: Layout, seed: int) -> dict[str, Floats]:
    """Weights whose size differs from group to group, as trained ones do; some are exactly 0."""
    rng = np.random.default_rng(seed)
    out = {}
    for t in layout.tensors:
        rows = t.shape[:1] + (1,) * (len(t.shape) - 1)
        values = rng.normal(size=t.shape) * np.exp(2 * rng.normal(size=rows)) * (rng.random(t.shape) > 0.1)
        out[t.name] = np.asarray(values, np.float32)
    return out


def quantized(layout: Layout, seed: int, max_bits: int = MAX_BASES) -> Quantized:
    """A model with random bit-widths from 0 to `max_bits`."""
    rng = np.random.default_rng(seed + 1)
    bits = {t.name: rng.integers(0, max_bits + 1, t.groups).astype(np.uint8) for t in layout.grouped}
    return alq.quantize(layout, weights(layout, seed), bits)


def quantize_average(layout: Layout, weights: Weights, bits_per_weight: float) -> Quantized:
    """A global model as a server quantizes it for the way down."""
    return AlqCodec().quantize(layout, weights, Budget(bits_per_weight, MAX_BASES, whole=True))
