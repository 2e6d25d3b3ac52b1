"""The rows of `frame` are the issue's four bounds, measured on frames that really cross."""

from __future__ import annotations

import io

from benchmarks.frame import BOUNDS, measure
from benchmarks.progress import Progress


def test_every_bound_is_a_row_and_encoding_costs_more_than_its_hash() -> None:
    rows = [row for row in measure(Progress("frame", io.StringIO()), repeats=3) if row.bound is not None]
    assert [row.bound for row in rows] == [bound for bound in BOUNDS.values() for _ in ("encoded", "decoded")]
    assert all(row.at_least and 0 < row.value < 1 for row in rows)
