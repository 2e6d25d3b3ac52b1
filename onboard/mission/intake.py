"""What an update may hold: the form that its method makes, within the budget it was asked for, and no weight
that no training makes.

Whoever holds a board's key can send anything, so that a server checks all of it before it stores it: what is
stored is read again at each start.
"""

from __future__ import annotations

import numpy as np

from onboard.codec import alq
from onboard.codec.alq import HALF_MAX, RAW_LEVELS, Model
from onboard.codec.dense import Dense
from onboard.mission.training import BoardTraining

MAX_WEIGHT = HALF_MAX
"""No weight moves by more, and none that is sent whole is larger: a coordinate on the way down holds no more
(float16), and 400,000 of its square are far from what float32 cannot hold."""
MAX_DENSE_BYTES = 4  # a weight: what is larger than the same model in float32 was not compressed by a board
_HEADERS_BYTES = 2048


def check(model: Model, size: int, asked: BoardTraining) -> None:
    """Raises ValueError unless a packed model of `size` bytes can be what a board made that was `asked` so.

    These hold for every method: dense weights where these are asked for and only there; no more bases in a
    group, and no more bits of bases and coordinates in all, than a board allots; biases on the grid; no
    weight beyond MAX_WEIGHT.
    """
    layout = model.layout
    if size > MAX_DENSE_BYTES * layout.parameters + _HEADERS_BYTES:
        raise ValueError(f"{size} bytes for {layout.parameters} weights")
    is_dense = isinstance(model, Dense)
    if is_dense != asked.is_dense:
        raise ValueError(f"{'dense' if is_dense else 'quantized'} weights, asked for was {asked.method}")
    if not isinstance(model, Dense):
        most = max((int(bases.bits.max(initial=0)) for bases in model.grouped.values()), default=0)
        if most > asked.max_bases:
            raise ValueError(f"{most} bases in a group, asked for were {asked.max_bases} at most")
        if model.budget_bits > asked.bits_up * layout.parameters:  # as `alq.allocate` keeps it, to the bit
            bits = model.budget_bits / layout.parameters
            raise ValueError(f"{bits:.3g} bits a weight, asked for were {asked.bits_up:g} at most")
        if any(np.abs(raw.codes.astype(np.int16)).max(initial=0) > RAW_LEVELS for raw in model.raw.values()):
            raise ValueError(f"biases beside the grid of {2 * RAW_LEVELS + 1} values")
    for name, values in alq.reconstruct(model).items():
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= MAX_WEIGHT:
            raise ValueError(f"{name} has a weight of {largest:.3g}, none is beyond {MAX_WEIGHT:g}")
