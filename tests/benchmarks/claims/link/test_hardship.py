"""A mission over a line with a fault is a real one, the fault is there, and a row is what was measured."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.claims.link import hardship
from benchmarks.claims.link.hardship import CLEAN, LINES, BadLine, HardshipOutcome
from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from hw_profiles import load_link

TELL = ProgressLine("hardship")


def test_two_boards_close_two_rounds_on_an_echoing_line(tmp_path: Path) -> None:
    line = BadLine("echo", hardship.SERIAL, "echo", named="echo")
    outcome = hardship.run_all([line], tmp_path, 60.0, 1, 1, TELL)["echo"]
    assert outcome.closed == 2
    assert 2 * 2 * 2_000 < outcome.sent_bytes < 100_000
    assert len(outcome.hits) == 4  # two boards, both ends
    assert min(outcome.hits) > 1_000


def test_a_line_that_carries_nothing_has_no_more_than_its_time(tmp_path: Path) -> None:
    dead = BadLine("dead", hardship.SERIAL, "drop-long=1", named="mtu")
    began_s = time.monotonic()
    outcome = hardship.run_all([dead], tmp_path, 3.0, 1, 1, TELL)["dead"]
    assert outcome.closed == 0
    assert min(outcome.hits) > 0
    assert time.monotonic() - began_s < 30


def test_a_program_that_fails_ends_the_benchmark_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"nosuch.*must be one of"):
        hardship.run_all([BadLine("x", hardship.SERIAL, "nosuch")], tmp_path, 3.0, 1, 1, TELL)


def test_every_line_of_the_promise_is_there_with_its_bound() -> None:
    assert [line.name for line in LINES] == [
        "eat-xonxoff", "double-ff", "bit-errors", "drop-long", "spoil-bursts", "noise", "echo", "stall",
    ]  # fmt: skip
    assert all(line.named for line in LINES)
    assert {line.times for line in LINES if line.name != "bit-errors"} == {4.0}
    assert {line.link for line in LINES} == {line.link for line in CLEAN}
    errors = next(line for line in LINES if line.name == "bit-errors")
    assert errors.times == 8.0
    assert errors.ber == pytest.approx(10 * load_link(errors.link).bit_error_rate)


def test_rows_break_where_nothing_was_done_to_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ("ground", {"event": "stuck", "level": "warning", "at": 1.0, "why": "the line eats XON"})
    found = {
        "eat-xonxoff": HardshipOutcome(2, 900, 3.0, [5, 5, 5, 5], [said, said]),
        "echo": HardshipOutcome(2, 401, 3.0, [5, 0, 5, 5], []),
        "clean bench-serial-115k2": HardshipOutcome(2, 100, 3.0),
    }
    monkeypatch.setattr(hardship, "run_all", lambda *_: found)
    rows = hardship.measure(TELL, names=("eat-xonxoff", "echo"), within=3.0, at_once=1, seed=1, keep=None)
    assert [row.holds for row in rows if row.bound is not None] == [
        True,  # the clean line's rounds
        True, False, True, True,  # rounds, bytes (nine times as many), bytes eaten, an event
        True, False, False, False,  # bytes (a little more than four times), one end without an echo, no event
    ]  # fmt: skip
    assert [row.what.strip() for row in rows if "eats XON" in row.what] == [
        'ground: stuck why="the line eats XON"'
    ]
