"""What the answers of many images say together: counts, confidence, and drift against the training images.

Drift is the population stability index of the score (`Answer.score`: confidence, error or the first number)
over the tenths of the training images' scores: PSI = sum over tenths of (a - e) ln(a / e), a and e being the
shares of the answered and the training images (Siddiqi, "Credit Risk Scorecards", 2006; it is the symmetric
divergence of Jeffreys, 1946). Below 0.1 the two are alike, above 0.25 they differ. By chance alone it is
about 9 (1 / N + 1 / M) for N and M images (Yurdakul and Naranjo, "Statistical properties of the population
stability index", 2020), so it is told from LEAST images on."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from onboard.inference.ring import AnswerRecord
from onboard.mission.health import MOST_CLASSES, AnswerHealth

LEAST = 100  # images: by chance their PSI is some 0.1
TENTHS = 10
_FLOOR = 1e-4  # of a share: a tenth without images would make the index infinite


class ReferenceScores(msgspec.Struct, frozen=True, kw_only=True):
    """The scores of training images by the model with this digest. `edges`: the inner ones between `shares`;
    `high`: the score that 99 % of them do not exceed."""

    model: str
    images: int
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    high: float


def reference_of(model: str, scores: Sequence[float]) -> ReferenceScores:
    """Cuts scores into tenths; equal scores fall into one. Raises ValueError for none."""
    if not scores:
        raise ValueError("no scores")
    ordered = sorted(scores)
    edges = tuple(sorted({ordered[len(ordered) * tenth // TENTHS] for tenth in range(1, TENTHS)}))
    high = ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)]
    counts = _counts(edges, ordered)
    shares = tuple(count / len(ordered) for count in counts)
    return ReferenceScores(model=model, images=len(ordered), edges=edges, shares=shares, high=high)


def stability(edges: Sequence[float], expected: Sequence[float], scores: Iterable[float]) -> float:
    """The population stability index of `scores` against the `expected` shares between `edges`."""
    counts = _counts(edges, scores)
    total = max(sum(counts), 1)
    pairs = [
        (max(count / total, _FLOOR), max(share, _FLOOR))
        for count, share in zip(counts, expected, strict=True)
    ]
    return sum((a - e) * math.log(a / e) for a, e in pairs)


def _counts(edges: Sequence[float], scores: Iterable[float]) -> list[int]:
    counts = [0] * (len(edges) + 1)
    for score in scores:
        counts[bisect_left(edges, score)] += 1
    return counts


class Population:
    """The answers of one model, as they come."""

    def __init__(self, model: str, records: Iterable[AnswerRecord]) -> None:
        self.model = model
        self.images = self.doubtful = 0
        self._confidence = 0.0
        self._labels = Counter[int]()
        self._scores = array("d")
        for record in records:
            self.add(record)

    def add(self, record: AnswerRecord) -> None:
        """Counts an answer, if it is this model's."""
        if record.model != self.model or record.why or record.score is None:
            return
        self.images += 1
        self.doubtful += record.doubtful
        self._confidence += record.confidence or 0.0
        self._scores.append(record.score)
        if record.label is not None:
            self._labels[record.label] += 1

    def health(self, reference: ReferenceScores | None) -> AnswerHealth | None:
        """What the ground is told; None where there is nothing."""
        if not self.images:
            return None
        drift = None
        if reference is not None and reference.model == self.model and self.images >= LEAST:
            drift = stability(reference.edges, reference.shares, self._scores)
        most = self._labels.most_common(MOST_CLASSES)
        return AnswerHealth(
            images=self.images, doubtful=self.doubtful, drift=drift,
            confidence=self._confidence / self.images if self._labels else None,
            classes=tuple((label, count / self.images) for label, count in most),
        )  # fmt: skip
