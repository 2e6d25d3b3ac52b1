"""Bounds what one update may count for in its round, so that no board decides alone.

A plain average believes a board that sends ten times its update negated, or claims four billion samples. So
the length of a move is scaled down to a bound that the other boards set, and its samples are capped:

- `clip` times the median of the round's norms, and no more than the second largest norm;
- `clip_samples` times the median of the round's samples, no more than the second most, and never more than
  `max_samples`.

A negated move is no longer than the others. So of three answers or more, one that points against the sum of
the others counts for nothing if it is the only one that does (`odd_one`); where several do, boards differ in
what they learn, and nobody can say who is right. The only one that shares nothing with the others counts
half: noise has no direction, but an honest board that saw what nobody else saw must not be silenced.

The median is the lower one of two, so of two boards the smaller sets the bound. Honest boards are hardly
touched: five with ten digits each, or 0.3-Dirichlet parts of MNIST, moved 0.83 to 1.19 times their median in
each of six rounds (docs/results/benchmarks.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FEW = 3
"""Norms that a median needs; a round with fewer is judged with those of the rounds before it."""
AGAINST = -0.1
"""Cosine to the sum of the others below which an answer points against them. Honest ones had 0.09 to 0.66 in
six rounds, with like parts and Dirichlet ones; a board that alone held two of the ten classes 0.03 to 0.18 in
five. One that is turned has what it would have had, with the other sign."""
APART = 0.02
"""Cosine to the sum of the others below which an answer shares nothing with them: noise, and zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one board may count for: multiples of the round's median (0 for no bound) and `max_samples`
    images. `leave_out` applies `odd_one`."""

    clip: float = 2.0
    clip_samples: float = 2.0
    max_samples: int | None = None
    leave_out: bool = True


class Claim(NamedTuple):
    """What an update asks for."""

    norm: float  # L2 length of its move, over all weights
    samples: int


class Share(NamedTuple):
    """What an update gets: its move times `factor` (0 to 1), weighted by `samples`."""

    factor: float
    samples: int


@dataclass(frozen=True, slots=True)
class Outlier:
    """A claim that is not granted, and the median of its kind: "norm", "samples" or "cosine". `keeps` is the
    share, 0 to 1, of a cosine's samples that still counts."""

    node: int
    what: str
    value: float
    median: float
    keeps: float = 1.0

    def log_fields(self) -> dict[str, float]:
        """Returns fields for the log; `ratio` to the median is infinite if that is 0."""
        if self.what == "cosine":
            return {"cosine": round(self.value, 3), "median": round(self.median, 3), "counts": self.keeps}
        ratio = self.value / self.median if self.median else math.inf
        return {self.what: self.value, "median": self.median, "ratio": round(ratio, 2)}


def norm(move: Mapping[str, npt.NDArray[np.floating[Any]]]) -> float:
    """Returns the L2 length of all tensors together: float64, finite for any float32."""
    return math.sqrt(sum(float(np.square(values, dtype=np.float64).sum()) for values in move.values()))


def shares(
    claims: Mapping[int, Claim], bounds: Bounds, earlier: Sequence[float] = ()
) -> tuple[dict[int, Share], list[Outlier]]:
    """Decides what each node's update counts for, and which claims exceed a bound, if answers are few with
    the help of `earlier` norms."""
    norms = [claim.norm for claim in claims.values()]
    pool = [*norms, *earlier] if len(norms) < FEW else norms
    middle, longest, beyond = _bound(pool, bounds.clip)
    usual, most, too_many = _bound([float(claim.samples) for claim in claims.values()], bounds.clip_samples)
    most = max(most, 1.0) if bounds.max_samples is None else min(max(most, 1.0), bounds.max_samples)
    given: dict[int, Share] = {}
    outliers: list[Outlier] = []
    for node, claim in claims.items():
        factor = min(1.0, longest / claim.norm) if claim.norm else 1.0
        given[node] = Share(factor, int(min(claim.samples, most)))
        if claim.norm > beyond:
            outliers.append(Outlier(node, "norm", claim.norm, middle))
        if claim.samples > too_many:
            outliers.append(Outlier(node, "samples", claim.samples, usual))
    return given, outliers


class Part(NamedTuple):
    """One move in an average: its weight there, its length, and its scalar product with the average."""

    weight: float
    length: float
    product: float


def odd_one(parts: Mapping[int, Part], average_length: float) -> Outlier | None:
    """Finds the only one of three parts or more that points against the sum of the others, or else the only
    one that shares nothing with it."""
    if len(parts) < FEW:
        return None
    whole = sum(part.weight for part in parts.values())
    cosines = {node: _cosine(part, whole, average_length) for node, part in parts.items()}
    for below, keeps in ((AGAINST, 0.0), (APART, 0.5)):
        found = [node for node, cosine in cosines.items() if cosine < below]
        if len(found) == 1:
            return Outlier(found[0], "cosine", cosines[found[0]], median_low(cosines.values()), keeps)
    return None


def _cosine(part: Part, whole: float, average_length: float) -> float:
    """Compares with the sum of the others, which is the whole sum less this part."""
    along = whole * part.product - part.weight * part.length**2
    squared = (whole * average_length) ** 2 - 2 * whole * part.weight * part.product
    squared += (part.weight * part.length) ** 2
    lengths = part.length * math.sqrt(max(squared, 0.0))
    return along / lengths if lengths else 0.0


def _bound(values: Sequence[float], times: float) -> tuple[float, float, float]:
    """Returns the median, the most that counts, and the value above which one is reported."""
    if len(values) < 2 or not times:
        return values[0] if values else 0.0, math.inf, math.inf
    median = median_low(values)
    return median, min(times * median, sorted(values)[-2]), times * median
