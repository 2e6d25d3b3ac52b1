"""A run's JSON lines call scores by the task's metric, and are read back."""

from __future__ import annotations

import json

import pytest

from firmware_sim.ring.result import EpochResult, line
from firmware_sim.runs.results import line_of, result_of
from onboard.learn.objectives import METRICS

RESULT = EpochResult(
    epoch=2, loss=0.4, score=0.25, test_loss=0.5, node_scores=(0.5, 0.125), distance=1.0, bytes_sent=9,
    exchanges=5, clock_s=9.0, ground_score=0.75, ground_bytes=7,
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("classify", {"accuracy": 0.25, "node_accuracies": [0.5, 0.125], "ground_accuracy": 0.75}),
        ("segment", {"mean_iou": 0.25, "node_mean_iou": [0.5, 0.125], "ground_mean_iou": 0.75}),
        ("regress", {"rmse": 0.25, "node_rmse": [0.5, 0.125], "ground_rmse": 0.75}),
    ],
)
def test_scores_are_called_by_their_metric(kind: str, keys: dict[str, object]) -> None:
    metric = METRICS[kind]  # type: ignore[index]
    told = line_of(RESULT, metric)
    assert keys.items() <= json.loads(told).items()
    assert not json.loads(told).keys() & {"score", "node_scores", "ground_score"}
    assert result_of(told.encode(), EpochResult, metric) == RESULT


def test_the_worst_node_has_the_largest_error() -> None:
    told = line(RESULT, METRICS["regress"]).split()
    assert (told[2], told[3], told[4]) == ("0.25", "0.5", "0.12")
    told = line(RESULT, METRICS["classify"]).split()
    assert (told[2], told[4], told[6]) == ("25.00", "12.5", "50.0")
