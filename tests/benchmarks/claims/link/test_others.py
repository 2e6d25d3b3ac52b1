"""Rows say who ended and how soon, with ours beside each of the others; who is not there is left out."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.claims.link import others
from benchmarks.harness.race import Course, RaceOutcome

COURSE = Course("a link", 8000.0, 0.0, 1052, 1000)


def test_rows_are_means_of_what_ended_and_ours_beside_it() -> None:
    found = {
        "ours": [RaceOutcome(2.0, 1500), RaceOutcome(2.0, 2500)],
        "another": [RaceOutcome(4.0, 2000), RaceOutcome(None, 4000)],
        "a third": [RaceOutcome(None, 3000), RaceOutcome(None, 3000)],
    }
    rows = {name: list(others._rows(COURSE, name, found)) for name in found}
    told = {name: [(row.what.strip(), row.value, row.bound) for row in rows[name]] for name in found}
    assert told["ours"] == [
        ("a link: ours", 2, 2), ("bytes on the air", 2.0, None), ("until the last byte", 2.0, None),
        ("goodput", 0.5, None),
    ]  # fmt: skip
    assert told["another"] == [
        ("a link: another", 1, None), ("bytes on the air", 3.0, None), ("until the last byte", 4.0, None),
        ("goodput", 0.25, None), ("ours over it", 2.0, None),
    ]  # fmt: skip
    assert told["a third"] == [("a link: a third", 0, None), ("bytes on the air", 3.0, None)]
    found["ours"][0] = RaceOutcome(None, 1500)
    assert not next(others._rows(COURSE, "ours", found)).holds


def test_time_without_contact_does_not_count_against_goodput() -> None:
    course = Course("a link", 8000.0, 0.0, 1052, 1000, outage_s=60.0)
    assert others._goodput(course, [RaceOutcome(64.0, 0)]) == 0.25


def test_every_link_is_named_once_with_each_loss() -> None:
    names = [course.name for course in others.COURSES]
    assert len(set(names)) == len(names) == 10
    assert {course.loss for course in others.COURSES} == {0.0, 0.05, 0.2}
    assert [course.name for course in others.COURSES if course.outage_s] == ["9.6 kbit/s, an outage of 60 s"]


def test_a_name_that_no_link_has_is_refused() -> None:
    done = CliRunner().invoke(main, ["others", "--only", "9.7"])
    assert done.exit_code == 2
    assert "--only '9.7': no link begins so" in done.output


def test_an_interpreter_without_cfdp_is_refused_with_its_reason() -> None:
    for python, why in (("/no/such/python", "No such file"), (sys.executable, "cfdppy")):
        if python == sys.executable and others._cfdp_version(None) is not None:
            continue
        done = CliRunner().invoke(main, ["others", "--cfdp-python", python])
        assert done.exit_code == 2
        (line,) = done.output.strip().splitlines()
        assert line.startswith(f"others: --cfdp-python {python}: ")
        assert why in line


def test_timers_of_cfdp_follow_the_link() -> None:
    assert others.cfdp_timer_s(others.SLOW) == pytest.approx(0.04 + 8 * 0.48)
    assert others.cfdp_timer_s(others.FAR) == pytest.approx(0.6 + 8 * 0.1315)


def test_time_to_go_follows_those_that_have_ended() -> None:
    entries = [(COURSE, others.ours(), seed) for seed in range(4)]
    bound_s = COURSE.airtime_s / others.AT_ONCE
    assert others._expected_s(entries, {}) == pytest.approx(4 * others.USUAL_RATIO * bound_s)
    ended = {entries[0]: RaceOutcome(2 * COURSE.airtime_s, 0), entries[1]: RaceOutcome(None, 0)}
    assert others._expected_s(entries, ended) == pytest.approx(4 * 2 * bound_s)
