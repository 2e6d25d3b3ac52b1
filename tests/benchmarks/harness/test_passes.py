"""Passes are as a low satellite's are, what is heard of them lies within, and gaps are without any."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.passes import LONGEST_S, ORBIT_S, SHORTEST_S, gaps, heard, passes

DAY_S = 86_400.0


@given(st.integers(0, 2**32), st.floats(3600.0, 4 * DAY_S))
def test_a_pass_an_orbit_at_most_each_some_minutes_long(seed: int, until_s: float) -> None:
    plan = passes(random.Random(seed), until_s)
    assert len(plan) <= until_s / ORBIT_S + 1
    assert all(SHORTEST_S <= window.set - window.rise <= LONGEST_S for window in plan)
    assert all(later.rise - one.set > ORBIT_S - LONGEST_S for one, later in pairwise(plan))
    assert all(window.rise >= 0 and window.set < until_s for window in plan)
    assert plan == passes(random.Random(seed), until_s)


@given(st.integers(0, 2**32))
def test_what_is_heard_is_within_what_is_planned(seed: int) -> None:
    source = random.Random(seed)
    plan = passes(source, 20 * DAY_S)
    times = heard(source, plan)
    for opens, closes in times:
        assert opens < closes
        assert any(window.rise <= opens and closes <= window.set for window in plan)
    assert all(one[1] < later[0] for one, later in pairwise(times))
    planned_s = sum(window.set - window.rise for window in plan)
    assert 0.75 < sum(closes - opens for opens, closes in times) / planned_s < 0.98


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_gaps_are_outside_of_every_pass(seed: int, boards: int) -> None:
    plans = [passes(random.Random(seed + nth), DAY_S) for nth in range(boards)]
    found = gaps(plans, DAY_S / 2)
    assert found == sorted(found)
    assert all(gap_s < DAY_S / 2 for gap_s in found)
    for gap_s in found:
        for plan in plans:
            assert not [window for window in plan if window.rise - 60 < gap_s < window.set + 60]
