"""Checks of what an update may hold: the form that its method makes, within the budget that was asked for,
and only weights that a training can make.

Whoever holds a board's key can send anything. So a server checks an update before it stores it: what is
stored is read again at each start.
"""

from __future__ import annotations

import numpy as np

from onboard.codec.model import Budget, Model
from onboard.codec.pack import CODECS
from onboard.codec.quantized import HALF_MAX
from onboard.learn.training import BoardTraining

MAX_WEIGHT = HALF_MAX
"""No weight moves by more, and none that is sent whole is larger. A coordinate on the way down holds no more
(float16), and float32 can still hold the sum of 400,000 such squares."""
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
    codec = CODECS[model.format]
    if model.format != asked.rule.format:
        raise ValueError(f"{codec.name} weights, asked for was {asked.method}")
    codec.check(model, Budget(asked.bits_up, asked.max_bases))
    for name, values in model.reconstruct().items():
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= MAX_WEIGHT:
            raise ValueError(f"{name} has a weight of {largest:.3g}, none is beyond {MAX_WEIGHT:g}")
