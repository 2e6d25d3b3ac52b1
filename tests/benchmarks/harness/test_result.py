"""A row judges its number by its bound, and both forms of the outcome say the same."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.result import Row, json_line, machine, table

NUMBERS = st.floats(-1e9, 1e9)


@given(NUMBERS, NUMBERS)
def test_a_bound_is_kept_up_to_and_with_itself(value: float, bound: float) -> None:
    assert Row("w", value, "s", bound).holds == (value <= bound)
    assert Row("w", value, "s", bound, at_least=True).holds == (value >= bound)
    assert Row("w", bound, "s", bound).holds
    assert Row("w", bound, "s", bound, at_least=True).holds
    assert Row("w", value, "s").holds


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_was_not_measured_is_no_row(value: float) -> None:
    with pytest.raises(ValueError, match=r"start: .* s is no measurement"):
        Row("start", value, "s", 1.0)


def test_the_json_line_carries_every_row_and_the_machine() -> None:
    rows = [Row("memory", 65.5, "MB", 64), Row("ratio", 70, "x", 60, at_least=True), Row("noted", 3, "ms")]
    line = json_line("footprint", rows)
    assert "\n" not in line
    assert json.loads(line) == {
        "benchmark": "footprint",
        "machine": machine(),
        "rows": [
            {"what": "memory", "value": 65.5, "unit": "MB", "bound": 64, "holds": False},
            {"what": "ratio", "value": 70, "unit": "x", "bound": 60, "holds": True},
            {"what": "noted", "value": 3, "unit": "ms", "bound": None, "holds": True},
        ],
    }


def test_the_machine_is_described() -> None:
    described = machine()
    assert described.keys() == {"arch", "cpu", "cores", "system", "python"}
    assert described["cores"] >= 1
    assert all(described[key] for key in ("arch", "cpu", "system", "python"))


def test_the_table_shows_bounds_and_verdicts_in_columns() -> None:
    rows = [Row("memory", 65.54, "MB", 64), Row("noted", 3, "ms"), Row("ratio", 70, "x", 60, at_least=True)]
    assert table(rows).splitlines() == [
        "memory  65.54 MB  at most 64   BROKEN",
        "noted   3 ms",
        "ratio   70 x      at least 60  holds",
    ]
