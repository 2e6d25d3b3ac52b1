"""`train` sets a step by the graph beside torch's and holds time and memory to their bounds."""

from __future__ import annotations

import io

import pytest

from benchmarks.claims.learning import train
from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine

pytest.importorskip("torch")


def test_a_network_is_trained_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SUBJECTS", (train.Subject("lenet5", 3, 1, 1.0),))
    rows = {row.what: row for row in train.measure(ProgressLine("train", io.StringIO()), turns=1)}
    ours, torch, ratio = (rows[f"lenet5, 3 images: {what}"] for what in (
        "a step by the graph", "a step by torch", "of torch's time"
    ))  # fmt: skip
    assert ratio.value == pytest.approx(ours.value / torch.value)
    assert ratio.bound == 1.0
    assert rows["lenet5, 3 images: of torch's memory"].holds


def test_a_network_that_is_not_measured_is_refused() -> None:
    with pytest.raises(LabError, match="'nose'"):
        train.measure(ProgressLine("train", io.StringIO()), network="nose")
