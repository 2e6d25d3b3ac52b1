"""Judges a model on images by its task's metric, batch by batch: no more than a batch's answers are held.

A daemon serves its links between two batches. Each kind of task has a tally, which takes the answers of a
batch and says at any time how the model did so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onboard.codec.layout import Floats
from onboard.learn.graph import GraphError, InferGraph, Labels, Parameters, prepare
from onboard.learn.objectives import METRICS, Kind, Metric, Objective

BATCH = 50
"""Images a pass: 50 of LeNet-5 are one of some 2 ms; batches of 250 take longer an image (their maps leave
the cache) and 20 MB more."""
MOST_ANSWERS = 1 << 20  # numbers a batch, 8 MB in float64: those of pixels are many


@dataclass(frozen=True, slots=True)
class Score:
    """How a model did on the images seen so far."""

    metric: Metric
    value: float  # of the metric
    loss: float  # mean cross-entropy in nats, or mean squared error; that of training may be weighted
    details: Mapping[str, float] = field(default_factory=dict)  # other measures, by name

    def log_fields(self) -> dict[str, Any]:
        """All that is told of it in an event, by name."""
        return {self.metric.key: self.value, "loss": self.loss, **self.details}


class Tally(Protocol):
    """What is known of a model's answers so far."""

    def add(self, answers: NDArray[np.float64], truth: NDArray[Any]) -> None:
        """Adds a batch: the graph's `logits` and, for each, its label, or the image that it stands for."""

    def score(self) -> Score:
        """Returns how the model did on all that was added."""


class _Classes:
    def __init__(self, objective: Objective) -> None:
        self._metric = objective.metric
        self._correct = self._seen = 0
        self._loss = 0.0

    def add(self, answers: NDArray[np.float64], truth: NDArray[Any]) -> None:
        self._loss += float(_cross_entropies(answers, truth).sum())
        self._correct += int((answers.argmax(axis=1) == truth).sum())
        self._seen += len(truth)

    def score(self) -> Score:
        return Score(self._metric, self._correct / self._seen, self._loss / self._seen)


class _Masks:
    """Counts pixels by label and answer: (classes, classes), whatever the number of images."""

    def __init__(self, objective: Objective) -> None:
        self._metric, self._ignore = objective.metric, objective.ignore
        self._counts: NDArray[np.int64] | None = None
        self._loss = 0.0

    def add(self, answers: NDArray[np.float64], truth: NDArray[Any]) -> None:
        classes = answers.shape[1]
        logits, labels = np.moveaxis(answers, 1, -1).reshape(-1, classes), truth.astype(np.int64).ravel()
        if self._ignore is not None:
            logits, labels = logits[labels != self._ignore], labels[labels != self._ignore]
        self._loss += float(_cross_entropies(logits, labels).sum())
        pairs = np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes**2)
        counts = pairs.reshape(classes, classes)
        self._counts = counts if self._counts is None else self._counts + counts

    def score(self) -> Score:
        assert self._counts is not None, "a score of no images"
        both, pixels = np.diagonal(self._counts), max(int(self._counts.sum()), 1)
        either = self._counts.sum(axis=0) + self._counts.sum(axis=1) - both
        there = either > 0
        mean_iou = float((both[there] / either[there]).mean()) if there.any() else 0.0
        details = {"pixel_accuracy": float(both.sum() / pixels)}
        return Score(self._metric, mean_iou, self._loss / pixels, details)


class _Numbers:
    """Sums what errors and their share of the spread are made of, by number."""

    def __init__(self, objective: Objective) -> None:
        self._metric = objective.metric
        self._has_spread = objective.kind == "regress"
        self._seen = 0  # numbers
        self._rows = 0
        self._squares = self._absolute = 0.0
        self._mean = self._spread = np.float64(0)  # of the labels, by number: Welford's, in batches

    def add(self, answers: NDArray[np.float64], truth: NDArray[Any]) -> None:
        errors = answers - truth
        self._squares += float(np.square(errors).sum())
        self._absolute += float(np.abs(errors).sum())
        self._seen += errors.size
        if self._has_spread:
            rows, mean = len(truth), truth.mean(axis=0, dtype=np.float64)
            apart, whole = mean - self._mean, self._rows + rows
            # Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
            # variances", 1979, equation 2.1.
            within = np.square(truth - mean).sum(axis=0, dtype=np.float64)
            self._spread = self._spread + within + np.square(apart) * self._rows * rows / whole
            self._mean, self._rows = self._mean + apart * rows / whole, whole

    def score(self) -> Score:
        mean_square = self._squares / self._seen
        details = {"mae": self._absolute / self._seen}
        spread = float(np.sum(self._spread))
        if spread > 0:  # of labels that are all alike nothing can be told
            details["r2"] = 1 - self._squares / spread
        return Score(self._metric, math.sqrt(mean_square), mean_square, details)


TALLIES: dict[Kind, Callable[[Objective], Tally]] = {
    "classify": _Classes,
    "segment": _Masks,
    "regress": _Numbers,
    "reconstruct": _Numbers,
}
assert TALLIES.keys() == METRICS.keys()


def evaluate(
    graph: InferGraph, parameters: Parameters, x: NDArray[np.uint8], y: Labels, batch: int | None = None
) -> Iterator[Score]:
    """Scores a model on x uint8 (N, C, H, W) with labels y (N, ...) as `onboard.data.images.Images` has them;
    the last score covers all images. `batch`: images a pass, by default what is fast and takes little memory.
    Raises GraphError."""
    if len(x) == 0 or len(x) != len(y):
        raise GraphError(f"{graph.name}: {len(x)} images, {len(y)} labels; need as many, and one or more")
    objective = graph.objective
    tally, answers = TALLIES[objective.kind](objective), _answers_an_image(graph)
    batch = batch or max(1, min(BATCH, MOST_ANSWERS // answers))
    for start in range(0, len(x), batch):
        images = prepare(x[start : start + batch])
        truth = images if objective.kind == "reconstruct" else y[start : start + batch]
        logits = graph.logits(parameters, images)
        if logits.size != len(images) * answers:
            raise GraphError(f"{graph.name}: logits are {logits.shape}, need {answers} numbers an image")
        tally.add(logits.astype(np.float64), truth)
        yield tally.score()


def _answers_an_image(graph: InferGraph) -> int:
    channels, height, width = graph.input_shape
    pixels = height * width
    return {
        "classify": graph.classes,
        "segment": graph.classes * pixels,
        "regress": graph.classes,
        "reconstruct": channels * pixels,
    }[graph.objective.kind]


def _cross_entropies(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> Floats | NDArray[np.float64]:
    """The cross-entropy of each row of logits (N, classes) with labels (N,), in nats."""
    peak = logits.max(axis=1, initial=-np.inf)
    log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
    found: NDArray[np.float64] = log_sum - logits[np.arange(len(labels)), labels]
    return found
