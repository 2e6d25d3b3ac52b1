"""A plan is checked when it is made, and says what each epoch does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from onboard.learn.federated.plan import Method, Plan

PLAN = Plan(
    epochs=2, pretrain_epochs=1, batch_size=10, learning_rate=2e-3, bits_up=0.04, max_bases=8, shift_pixels=1,
    seed=5, round=1, node=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "round_number", "expected"),
    [
        ("fedavg", 1, "plain plain"),
        ("fedavg-zstd", 4, "plain plain"),
        ("spacedml-fast", 1, "plain straight straight"),
        ("spacedml-fast", 4, "plain straight straight"),
        ("spacedml", 1, "plain prune prune prune prune bases coordinates straight straight"),
        ("spacedml", 4, "prune prune prune prune bases coordinates straight straight"),
    ],
)
def test_phases(method: Method, round_number: int, expected: str) -> None:
    plan = dataclasses.replace(PLAN, method=method, round=round_number)
    assert [phase.value for phase in plan.phases] == expected.split()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pretrain_epochs": 0}, "pretrain_epochs is 0"),
        ({"method": "sgd"}, "method is 'sgd', must be one of fedavg, fedavg-zstd, spacedml, spacedml-fast"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"batch_size": 0}, "cannot be run"),
        ({"prune_epochs": -1}, "cannot be run"),
        ({"bits_up": float("nan")}, "not a budget"),
        ({"bits_up": -0.1}, "not a budget"),
        ({"max_bases": 9}, "not a budget"),
        ({"epochs": -1}, "cannot be run"),
        ({"prune_ratio": 1.1}, "prune_ratio is 1.1"),
        ({"prune_ratio": float("nan")}, "prune_ratio is nan"),
    ],
)
def test_plans_that_cannot_be_run(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(PLAN, **change)
