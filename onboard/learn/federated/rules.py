"""The table of aggregation rules: what the updates of a round come to.

What one update may count for is decided before (`learn.federated.clipping`), whatever the rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from onboard.codec.layout import Floats, Layout, Weights
from onboard.learn.federated.rounds import PartialAverage


class AggregationRule(Protocol):
    """The outcome of one round, fed one update at a time."""

    def add(self, weights: Weights, samples: int, scale: float = 1.0) -> None:
        """Takes one node's weights, name -> float32 in the tensor's shape, trained on `samples` images, of
        which each counts `scale`. Errors: ValueError for what cannot be added; nothing has changed then."""
        ...

    def mean(self) -> dict[str, Floats]:
        """The outcome so far, float32. Errors: ValueError without an update."""
        ...


class CoordinateMedian(PartialAverage):
    """The median of the updates at each coordinate, where all count alike: fewer than half of them, whatever
    they say, move it no further than the others reach (Yin et al., "Byzantine-robust distributed learning:
    towards optimal statistical rates", ICML 2018). Holds all updates of a round in memory.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._added: list[Weights] = []

    def add(self, weights: Weights, samples: int, scale: float = 1.0) -> None:
        """See `AggregationRule.add`."""
        super().add(weights, samples, scale)
        self._added.append(weights)

    def mean(self) -> dict[str, Floats]:
        """See `AggregationRule.mean`."""
        return {
            name: np.median([weights[name] for weights in self._added], axis=0).astype(np.float32)
            for name in super().mean()
        }


RULES: dict[str, Callable[[Layout], AggregationRule]] = {
    "mean": PartialAverage,
    "median": CoordinateMedian,
}
"""Every rule by the name that a mission gives it. docs/extending.md says how to add one."""
