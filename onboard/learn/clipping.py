"""What one update may count for beside the others of its round, so that no board decides alone.

A server that averages takes what it is told: one board that sends ten times its update with the sign turned,
or claims four billion samples, is the average. So the length of a move is scaled down, and the samples are
counted, up to a bound that the other boards make:

- `clip` times the median of the round's norms, and no more than the second largest norm;
- `clip_samples` times the median of the round's samples, no more than the second most, and never more than
  `max_samples`.

The median is the lower one of two: among two boards, the smaller says what is much. Boards that do as they
are asked are hardly touched: five with ten digits each, or 0.3-Dirichlet parts of MNIST, moved 0.83 to 1.19
times their median in each of six rounds (docs/benchmarks.md). Robust rules beyond that are another matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FEW = 3
"""Norms that a median wants. A round with fewer is judged with those of the rounds before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one board may count for: multiples of the round's median, 0 for no bound; `max_samples` in
    images."""

    clip: float = 2.0
    clip_samples: float = 2.0
    max_samples: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What an update asks for: the length of its move (L2, over all weights), and its samples."""

    norm: float
    samples: int


@dataclass(frozen=True, slots=True)
class Share:
    """What it gets: its move times `factor` (0 to 1), weighed by `samples`."""

    factor: float
    samples: int


@dataclass(frozen=True, slots=True)
class Outlier:
    """A claim beyond its multiple of the median; `what` is "norm" or "samples"."""

    node: int
    what: str
    value: float
    median: float

    @property
    def ratio(self) -> float:
        """How many times the median; infinite where that is 0."""
        return self.value / self.median if self.median else math.inf


def norm(move: Mapping[str, npt.NDArray[np.floating[Any]]]) -> float:
    """The L2 length of all tensors together; float64, finite for any float32."""
    return math.sqrt(sum(float(np.square(values, dtype=np.float64).sum()) for values in move.values()))


def shares(
    claims: Mapping[int, Claim], bounds: Bounds, earlier: Sequence[float] = ()
) -> tuple[dict[int, Share], list[Outlier]]:
    """What each node's update counts for, and whose claim was beyond. `earlier`: norms of rounds before,
    for a round with fewer than FEW answers."""
    norms = [claim.norm for claim in claims.values()]
    pool = [*norms, *earlier] if len(norms) < FEW else norms
    lengths = _Bound.of(pool, bounds.clip)
    counts = _Bound.of([float(claim.samples) for claim in claims.values()], bounds.clip_samples)
    most = math.inf if bounds.max_samples is None else bounds.max_samples
    given: dict[int, Share] = {}
    outliers: list[Outlier] = []
    for node, claim in claims.items():
        factor = min(1.0, lengths.most / claim.norm) if claim.norm else 1.0
        given[node] = Share(factor, int(min(claim.samples, max(counts.most, 1.0), most)))
        if claim.norm > lengths.beyond:
            outliers.append(Outlier(node, "norm", claim.norm, lengths.median))
        if claim.samples > counts.beyond:
            outliers.append(Outlier(node, "samples", claim.samples, counts.median))
    return given, outliers


@dataclass(frozen=True, slots=True)
class _Bound:
    """Of values: their median, what counts at most, and from where a value is worth telling."""

    median: float
    most: float
    beyond: float

    @classmethod
    def of(cls, values: Sequence[float], times: float) -> _Bound:
        if len(values) < 2 or not times:
            return cls(values[0] if values else 0.0, math.inf, math.inf)
        ranked = sorted(values)
        median = ranked[(len(ranked) - 1) // 2]
        return cls(median, min(times * median, ranked[-2]), times * median)
