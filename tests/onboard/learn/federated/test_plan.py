"""A plan is checked when it is made, and says what each epoch does."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.onboard.learn.federated.plans import PLAN, changed

TWO = changed(PLAN, epochs=2)


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
def test_phases(method: str, round_number: int, expected: str) -> None:
    plan = changed(TWO, method=method, round=round_number)
    assert [phase.value for phase in plan.phases] == expected.split()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pretrain_epochs": 0}, "int` >= 1 - at `$.pretrain_epochs"),
        ({"method": "sgd"}, "method: must be one of fedavg, fedavg-zstd, spacedml, spacedml-fast"),
        ({"learning_rate": 0.0}, "float` > 0.0 - at `$.learning_rate"),
        ({"batch_size": 0}, "int` >= 1 - at `$.batch_size"),
        ({"prune_epochs": -1}, "int` >= 0 - at `$.prune_epochs"),
        ({"bits_up": float("nan")}, "float` > 0.0 - at `$.bits_up"),
        ({"bits_up": -0.1}, "float` > 0.0 - at `$.bits_up"),
        ({"max_bases": 9}, "int` <= 8 - at `$.max_bases"),
        ({"epochs": -1}, "int` >= 1 - at `$.epochs"),
        ({"prune_ratio": 1.1}, "float` <= 1.0 - at `$.prune_ratio"),
        ({"prune_ratio": float("nan")}, "float` >= 0.0 - at `$.prune_ratio"),
    ],
)
def test_plans_that_cannot_be_run(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        changed(TWO, **change)
