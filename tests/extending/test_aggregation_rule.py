"""An aggregation rule is one class and one row: a toy one makes the rounds of a real mission."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from groundstation.config import load_mission
from onboard.codec.layout import Floats, Weights, layout
from onboard.console.toml import ConfigError
from onboard.learn.federated.rounds import RULES
from tests.missions.clockwork import Clockwork

SMALL = layout({"w": (2, 3)})


class LastComer:
    """The update that came last is the outcome."""

    calls = 0

    def __init__(self, layout: object) -> None:
        self._last: dict[str, Floats] = {}

    def add(self, weights: Weights, samples: int, scale: float = 1.0) -> None:
        LastComer.calls += 1
        self._last = dict(weights)

    def mean(self) -> dict[str, Floats]:
        if not self._last:
            raise ValueError("no update has been added")
        return self._last


def test_a_toy_rule_makes_the_rounds_of_a_mission(
    clockwork: Callable[..., Clockwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "last", LastComer)
    monkeypatch.setattr(LastComer, "calls", 0)
    on = clockwork(rule='"last"')
    on.boot()
    on.run(lambda: on.over)
    assert LastComer.calls == 2  # one board, two rounds


def test_without_its_row_there_is_no_such_rule(clockwork: Callable[..., Clockwork]) -> None:
    on = clockwork(rule='"last"')
    with pytest.raises(
        ConfigError, match=r"mission\.rule = 'last': must be one of mean, median, sparse-mean$"
    ):
        load_mission(on.folder)


def test_the_median_takes_no_notice_of_one_hostile_board_of_five() -> None:
    draw = np.random.default_rng(0)
    honest = [draw.normal(1.0, 0.1, (2, 3)).astype(np.float32) for _ in range(4)]
    hostile = np.full((2, 3), -1000.0, np.float32)
    outcomes = {}
    for name in ("mean", "median"):
        outcome = RULES[name](SMALL)
        for weights in (*honest[:2], hostile, *honest[2:]):
            outcome.add({"w": weights}, 10)
        outcomes[name] = outcome.mean()["w"]
    assert (outcomes["mean"] < -100).all()
    assert (outcomes["median"] >= np.min(honest, axis=0)).all()
    assert (outcomes["median"] <= np.max(honest, axis=0)).all()
    with pytest.raises(ValueError, match="no update"):
        RULES["median"](SMALL).mean()


def test_the_table_of_rules_is_complete() -> None:
    assert list(RULES) == ["mean", "median", "sparse-mean"]
    for begin in RULES.values():
        outcome = begin(SMALL)
        with pytest.raises(ValueError, match="shape"):
            outcome.add({"w": np.zeros(3, np.float32)}, 1)
        outcome.add({"w": np.ones((2, 3), np.float32)}, 1)
        assert outcome.mean()["w"].tolist() == [[1.0] * 3] * 2
