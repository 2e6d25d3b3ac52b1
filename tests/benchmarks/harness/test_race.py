"""A race ends with what was measured, whether its object arrived or not, and no process is left of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.claims.link import others
from benchmarks.harness import race
from benchmarks.harness.lab import LabError
from benchmarks.harness.race import Course, RaceOutcome, Racer, run_all

TCP = "reno"  # no kernel is without
SMALL = Course("a test's", 500e3, 0.01, 1052, 30_000)


def children() -> set[str]:
    """Processes of this thread."""
    return set(Path("/proc/thread-self/children").read_text().split())


def outcomes(entries: list[tuple[Course, Racer, int]]) -> list[RaceOutcome]:
    """Of each, all run at once."""
    found = dict(ended for some in run_all(entries, len(entries)) for ended in some)
    return [found[number] for number in range(len(entries))]


@pytest.mark.usefixtures("namespaces")
def test_ours_and_tcp_bring_an_object_over() -> None:
    lossy = replace(SMALL, loss=0.1)
    racers = [others.ours(), others.tcp(TCP)]
    entries = [(course, racer, 1) for course in (SMALL, lossy) for racer in racers]
    for (course, racer, _), outcome in zip(entries, outcomes(entries), strict=True):
        assert outcome.arrived_s is not None, racer.name
        assert 8 * course.size_bytes / course.rate_bps < outcome.arrived_s < course.limit_s
        assert 1.02 < outcome.wire_bytes / course.size_bytes < 3  # IP's headers at the least


@pytest.mark.usefixtures("namespaces")
def test_cfdp_brings_an_object_over() -> None:
    pytest.importorskip("cfdppy", reason="cfdp-py is not installed")
    entries = [(SMALL, racer, 1) for racer in others.cfdp(sys.executable, "")]
    assert all(outcome.arrived_s is not None for outcome in outcomes(entries))


@pytest.mark.usefixtures("namespaces")
def test_what_cannot_arrive_did_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "LEAST_LIMIT_S", 2.0)
    dead = replace(SMALL, rate_bps=50e6, size_bytes=1000, loss=0.999)
    racers = (others.ours(), others.tcp(TCP))
    assert [outcome.arrived_s for outcome in outcomes([(dead, racer, 1) for racer in racers])] == [None, None]


@pytest.mark.usefixtures("namespaces")
def test_an_end_that_fails_ends_the_benchmark_with_its_last_words() -> None:
    broken = Racer(
        "broken", "benchmarks.ends.tcp_end", sys.executable,
        lambda course, side: {"address": "10.0.0.1", "congestion": "nosuch", "size_bytes": 1},
    )  # fmt: skip
    with pytest.raises(LabError, match=r"a test's, broken: 0:ground ended: FileNotFoundError"):
        outcomes([(SMALL, broken, 1)])


@pytest.mark.usefixtures("namespaces")
def test_nothing_is_left_of_races_that_are_not_waited_for() -> None:
    turns = run_all([(SMALL, others.ours(), seed) for seed in range(3)], 3)
    assert next(turns) == []
    started = children()
    assert len(started) >= 3
    turns.close()
    assert not children() & started


def test_an_outage_lies_in_the_middle_half_and_in_the_limit() -> None:
    course = replace(SMALL, outage_s=60.0)
    assert course.limit_s == pytest.approx(6 * (course.airtime_s + 60))
    begins = []
    for seed in range(20):
        outage = course.outage(seed)
        assert outage is not None
        begin_s, end_s = outage
        assert end_s - begin_s == pytest.approx(60)
        begins.append(begin_s / course.airtime_s)
    assert 0.25 <= min(begins) < 0.4 < 0.6 < max(begins) <= 0.75
    assert SMALL.outage(1) is None


def test_a_frame_of_ours_fills_a_packet_and_the_queue_holds_two_round_trips() -> None:
    assert SMALL.link.mtu_bytes == 1052 - 28
    assert SMALL.airtime_s == pytest.approx(30_000 * 8 / 500e3 * 1052 / (1052 - 28 - 22))
    assert SMALL.queue_bytes == 10 * 1052
    assert replace(SMALL, rate_bps=16e6, delay_s=0.02).queue_bytes == 2 * 80_000
