"""The rows of `frame` are the issue's four bounds and an end's two, measured on frames that really cross."""

from __future__ import annotations

import io

from benchmarks.claims.link.frame import measure
from benchmarks.harness.progress import ProgressLine


def test_every_bound_is_a_row_and_each_costs_more_than_its_hash() -> None:
    rows = [row for row in measure(ProgressLine("frame", io.StringIO()), repeats=3) if row.at_least]
    assert [(row.what, row.bound) for row in rows if row.bound is not None] == [
        ("a frame of 200 B, encoded", 0.5),
        ("a frame of 200 B, decoded", 0.5),
        ("a frame of 1400 B, encoded", 0.4),
        ("a frame of 1400 B, decoded", 0.4),
        ("an end, 1400 B, encoded", 0.4),
        ("an end, 1400 B, decoded", 0.4),
    ]
    assert len(rows) == 12
    assert all(0 < row.value < 1 for row in rows)
