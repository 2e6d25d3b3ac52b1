"""Programs that are killed, stopped and told another time are real ones, and what breaks a rule is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.claims.resilience import kills
from benchmarks.claims.resilience.besieged import KINDS
from benchmarks.claims.resilience.kills import FaultSchedule, KillFindings
from benchmarks.claims.resilience.witnessed import MissionWitness
from benchmarks.ends import stepped_clock
from benchmarks.harness.progress import ProgressLine
from firmware_sim.runs.processes import ProcessGroup
from groundstation.cli import main
from groundstation.store.store import Store

TELL = ProgressLine("kills")


def test_a_short_siege_of_one_mission_breaks_nothing(tmp_path: Path) -> None:
    sieges, found = kills.run([KINDS[0]], tmp_path, 5, 3, TELL)
    assert found == KillFindings([], [], [], [])
    assert sieges[0].faults == 5
    assert len(sieges[0].witness.closed) >= 2
    assert sieges[0].witness.acknowledged
    assert all(row.holds for row in kills._rows(sieges, found))


def test_a_program_that_ends_by_itself_is_named_with_its_last_words(tmp_path: Path) -> None:
    """A board that loses its key cannot start again."""
    crew = ProcessGroup(tmp_path / "logs")
    try:
        siege = FaultSchedule(KINDS[0], crew, tmp_path / "udp", 1, lambda *_: None)
        besieged = siege.besieged
        besieged.start()
        (besieged.mission / "boards" / "one" / "node.key").unlink()
        besieged.kill("one", 0.0, 0.0)
        besieged.turn(0.0)
        crew.members["udp:one:2"].process.wait(30.0)
        besieged.turn(1.0)
        (why,) = besieged.ended
        assert "udp:one:2 ended with 2" in why
        assert "node.key" in why
        besieged.end()
    finally:
        list(crew.stop())


def heard(*events: tuple[str, dict[str, Any]]) -> MissionWitness:
    witness = MissionWitness()
    for program, event in events:
        witness.hear(program, event, event.get("up_s", 0.0))
    return witness


DELIVERED = ("one", {"event": "delivered", "round": 1})
CLOSED = ("ground", {"event": "closed", "round": 1, "answered": ["two"]})
LATE = ("ground", {"event": "update-discarded", "node": "one", "round": 1})


@pytest.fixture
def mission(tmp_path: Path) -> Path:
    """A folder with a board, `one`, that nobody serves."""
    folder = tmp_path / "mission"
    done = CliRunner().invoke(main, ["init", str(folder), "--node", "one,port=udp://127.0.0.1:9"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize(
    ("state", "events", "lost"),
    [
        ("asked", [DELIVERED], "stored as asked"),
        ("answered", [DELIVERED], "stored as answered"),  # without its payload, of a round that is open
        ("answered", [DELIVERED, CLOSED], "left out of the average"),
        ("asked", [DELIVERED, LATE], ""),
        ("asked", [], ""),
    ],
)
def test_an_acknowledged_update_that_is_nowhere_is_lost(
    state: str, events: list[tuple[str, dict[str, Any]]], lost: str, mission: Path
) -> None:
    store = Store(mission / "mission.sqlite")
    store.enter_node(1, "one")
    store.open_round(1, b"model", [1], 0.0, 60.0)
    store.mark(1, 1, state, 1.0)
    if CLOSED in events:
        store.close_round(1, b"packed", 0.5, 1.0, 0.1, 2.0)
    store.close()
    found = heard(*events).lost(mission)
    assert len(found) == bool(lost)
    assert all(lost in line for line in found)


def test_a_round_is_as_long_as_the_ground_served_in_it() -> None:
    def opened(number: int, up_s: float) -> tuple[str, dict[str, Any]]:
        return "ground", {"event": "round", "number": number, "up_s": up_s}

    witness = heard(opened(1, 5.0), opened(1, 20.0), opened(2, 31.0), CLOSED, opened(2, 40.0))
    assert (witness.longest_s, witness.longest_round) == (26.0, 1)
    witness.pass_time(70.0)
    assert (witness.longest_s, witness.longest_round) == (39.0, 2)


def test_a_stepped_clock_moves_while_the_program_runs_and_the_monotonic_one_does_not(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    stepped_clock.make(clock)
    (tmp_path / "told.py").write_text(
        "import time, logging\n"
        "for _ in range(2):\n"
        "    print(time.time(), logging.makeLogRecord({}).created, time.monotonic(), flush=True)\n"
        "    input()\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ends.stepped_clock", str(clock), "told"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[4]}"},
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdin is not None
    before = [float(word) for word in program.stdout.readline().split()]
    stepped_clock.step(clock, -3600.0)
    program.stdin.write("\n\n")
    program.stdin.close()
    after = [float(word) for word in program.stdout.readline().split()]
    program.wait(10.0)
    steps = [there - here for here, there in zip(before, after, strict=True)]
    assert steps[0] == pytest.approx(-3600.0, abs=5.0)
    assert steps[1] == pytest.approx(-3600.0, abs=5.0)
    assert 0.0 <= steps[2] < 5.0
