"""A model is judged by its task's metric, whatever the batches, and in the memory of one."""

from __future__ import annotations

import numpy as np
import pytest

from onboard.learn.graph import GraphError, InferGraph, TrainGraph, prepare
from onboard.learn.objectives import METRICS, Kind, Objective
from onboard.learn.scoring import TALLIES, Score, evaluate
from tests.networks import IGNORE, tiny

RNG = np.random.default_rng(3)
X = RNG.integers(0, 256, (23, 3, 8, 8), dtype=np.uint8)
LABELS = {
    "classify": RNG.integers(0, 3, 23),
    "segment": np.where(RNG.random((23, 8, 8)) < 0.1, IGNORE, RNG.integers(0, 2, (23, 8, 8))).astype(
        np.uint8
    ),
    "regress": RNG.normal(5, 2, (23, 3)).astype(np.float32),
    "reconstruct": np.empty((23, 0), np.float32),
}


def scored(kind: Kind, batch: int | None) -> tuple[Score, np.ndarray]:
    graph = InferGraph.load(tiny(kind))
    weights = graph.initial(1)
    *_, score = evaluate(graph, weights, X, LABELS[kind], batch)
    return score, graph.logits(weights, prepare(X)).astype(np.float64)


@pytest.mark.parametrize("batch", [1, 7, 23, None])
def test_mean_iou_is_that_of_all_pixels_whose_label_counts(batch: int | None) -> None:
    score, logits = scored("segment", batch)
    answers, truth = logits.argmax(axis=1), LABELS["segment"]
    counts = truth != IGNORE
    shares = []
    for label in range(3):
        told, true = (answers == label) & counts, (truth == label) & counts
        if (told | true).any():
            shares.append((told & true).sum() / (told | true).sum())
    assert score.metric.key == "mean_iou"
    assert score.value == pytest.approx(np.mean(shares), abs=1e-12)
    assert score.details["pixel_accuracy"] == pytest.approx((answers == truth)[counts].mean(), abs=1e-12)


def test_a_class_that_nobody_sees_counts_for_nothing() -> None:
    tally = TALLIES["segment"](Objective(kind="segment", outputs=3))
    answers = np.zeros((1, 3, 2, 2))
    answers[0, 0, 0] = answers[0, 1, 1] = 1.0  # the upper half is 0, the lower is 1, nothing is 2
    tally.add(answers, np.array([[[0, 0], [1, 1]]]))
    assert tally.score().value == 1.0


@pytest.mark.parametrize("batch", [1, 7, None])
def test_numbers_are_judged_by_their_error(batch: int | None) -> None:
    score, answers = scored("regress", batch)
    truth = LABELS["regress"].astype(np.float64)
    errors = answers - truth
    assert score.metric.key == "rmse"
    assert score.value == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-6)
    assert score.details["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-6)
    spread = ((truth - truth.mean(axis=0)) ** 2).sum()
    assert score.details["r2"] == pytest.approx(1 - (errors**2).sum() / spread, rel=1e-6)


def test_images_are_judged_against_themselves() -> None:
    score, answers = scored("reconstruct", 5)
    assert score.value == pytest.approx(np.sqrt(((answers - prepare(X)) ** 2).mean()), rel=1e-6)
    assert "r2" not in score.details


@pytest.mark.parametrize("kind", METRICS)
def test_the_loss_is_that_of_training(kind: Kind) -> None:
    score, _ = scored(kind, 23)
    graph, y = TrainGraph.load(tiny(kind)), LABELS[kind]
    y = y.astype(np.int64) if kind == "segment" else y
    loss, gradients, _ = graph.step(graph.initial(1), prepare(X), y)
    assert loss == pytest.approx(score.loss, rel=1e-5)
    assert gradients.keys() == graph.shapes.keys()


@pytest.mark.parametrize(
    ("kind", "y", "why"),
    [
        ("classify", np.zeros((2, 8, 8), np.int64), r"labels are int64 \(2, 8, 8\), need int64 \(2,\)"),
        ("segment", np.zeros(2, np.int64), r"labels are int64 \(2,\), need int64 \(2, 8, 8\)"),
        ("segment", np.full((2, 8, 8), 7), r"labels 7..7, need 0..2"),
        ("regress", np.zeros((2, 2), np.float32), r"labels are float32 \(2, 2\), need float32 \(2, 3\)"),
    ],
)  # fmt: skip
def test_labels_of_another_form_are_refused(kind: Kind, y: np.ndarray, why: str) -> None:
    graph = TrainGraph.load(tiny(kind))
    with pytest.raises(GraphError, match=why):
        graph.step(graph.initial(1), prepare(X[:2]), y)


def test_pixels_that_are_ignored_teach_nothing() -> None:
    graph = TrainGraph.load(tiny("segment"))
    y = np.full((2, 8, 8), IGNORE, np.int64)
    y[:, :2] = 1
    weights = graph.initial(1)
    loss, *_ = graph.step(weights, prepare(X[:2]), y)
    assert np.isfinite(loss)


@pytest.mark.parametrize("kind", METRICS)
def test_a_metric_knows_which_way_is_better(kind: Kind) -> None:
    metric = METRICS[kind]
    good, bad = (0.9, 0.5) if metric.rises else (0.5, 0.9)
    assert metric.best([bad, good]) == good
    assert metric.worst([bad, good]) == bad
    assert metric.reaches(good, bad)
    assert metric.reaches(good, good)
    assert not metric.reaches(bad, good)


def test_a_metric_is_told_in_its_unit() -> None:
    assert METRICS["classify"].told(0.91249) == "91.25 %"
    assert METRICS["segment"].axis == "mean IoU, %"
    assert METRICS["regress"].told(0.031249) == "0.0312"
    assert METRICS["regress"].told(None) == "-"
