"""Two brown-outs and a flipped bit, as the claim plays a hundred."""

from __future__ import annotations

from benchmarks.claims.resilience import installs
from benchmarks.harness.progress import ProgressLine


def test_a_board_comes_back_with_a_whole_network() -> None:
    rows = {row.what: row for row in installs.measure(ProgressLine("installs"), cuts=2, flips=1)}
    assert rows["brown-outs"].value == 2
    assert rows["flipped bits"].value == 1
    assert all(row.holds for row in rows.values())
