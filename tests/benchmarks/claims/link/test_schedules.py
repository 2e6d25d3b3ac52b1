"""A few random schedules keep every rule, and a schedule is its seed and nothing else."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.claims.link.schedules import RULES, Schedule
from benchmarks.harness.pair import PairedEnd


@pytest.mark.parametrize("seed", range(20))  # `python -m benchmarks schedules` plays as many as one likes
def test_a_schedule_breaks_no_rule(seed: int) -> None:
    schedule = Schedule(seed)
    schedule.play()  # raises Broken
    assert schedule.tally["objects identical"] + schedule.tally["objects ended by their deadline"] > 0


def test_a_turn_that_a_contacts_end_cuts_off_is_not_waited_for() -> None:
    schedule = Schedule(456)  # a POLL without OVER was its last frame, and was never followed by another
    schedule.play()
    assert schedule.tally["objects identical"] == 5


def test_a_schedule_is_its_seed() -> None:
    one, again, other = Schedule(5), Schedule(5), Schedule(6)
    for schedule in (one, again, other):
        schedule.play()
    assert (one.tally, one.waits) == (again.tally, again.waits)
    assert one.tally != other.tally


def test_a_broken_rule_is_counted_and_told_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairedEnd, "_save", lambda end: None)  # an end that keeps nothing loses its objects
    done = CliRunner().invoke(main, ["schedules", "--first", "0", "--count", "10"])
    assert done.exit_code == 1
    assert "seed " in done.output
    assert any(f"broken that {rule}" in done.output for rule in RULES)
    assert "BROKEN" in done.output
