"""No clock that is wrong, set or stopped ends a round early, keeps it open for ever, or throws work away."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from groundstation.cli import main
from onboard.mission.health import State
from onboard.wire.events import QuotaUsage
from onboard.wire.medium.contact_gate import DAY_S, ByteQuota
from tests.missions.bench import bench, change
from tests.missions.clockwork import Clockwork

Make = Callable[..., Clockwork]
YEAR_S = 365.25 * DAY_S


@pytest.mark.parametrize("step_s", [50 * YEAR_S, -15 * YEAR_S, 15 * YEAR_S, -3600.0])
@pytest.mark.parametrize("restarts", [True, False])
def test_a_wall_clock_that_is_set_changes_no_deadline(step_s: float, restarts: bool, clockwork: Make) -> None:
    on = clockwork(boards=2, quorum=2)
    on.boot()
    on.boards[2].kill()
    began = on.now
    on.run(lambda: on.states(1).get(1) == "answered")
    on.pass_time(began + 60.0 - on.now)
    on.wall_ahead_s += step_s
    if restarts:
        on.kill_ground()
        on.boot_ground()
    on.run(lambda: on.said("closed", round=1))
    assert 119.0 < on.now - began < 151.0  # what was not noted yet when it was killed is given again
    shown = CliRunner().invoke(main, ["status", str(on.folder)])
    assert shown.exit_code == 0
    assert "-" not in "".join(word for word in shown.output.split() if word.lstrip("-").isdecimal())


def test_a_round_s_time_stands_still_while_the_ground_is_down(clockwork: Make) -> None:
    on = clockwork(boards=2, quorum=2)
    on.boot()
    for board in on.boards.values():
        board.kill()
    on.pass_time(100.0)
    on.kill_ground()
    on.pass_time(10_000.0)
    on.boot_ground()
    for board in on.boards.values():
        board.boot(on.now)
    assert not on.said("nobody-answered")
    took_s = on.run(lambda: on.said("closed", round=1))
    assert took_s < 50.0


@pytest.mark.parametrize("life_s", [0.3, 1.5, 7.0, 50.0])
def test_a_ground_that_is_killed_ever_again_keeps_no_round_open(life_s: float, clockwork: Make) -> None:
    on = clockwork(deadline_s=60.0)
    served_s = 0.0
    while not on.said("nobody-answered"):
        assert served_s < 1.13 * 60.0 + 1.0
        on.boot_ground()
        began = on.now
        on.run(lambda began=began: on.now - began >= life_s or on.said("nobody-answered"))
        served_s += on.now - began
        on.kill_ground()
        on.pass_time(0.5)
    assert served_s > 0.25 * 60.0


@pytest.mark.parametrize("left_s", [1e18, math.inf, -5.0, None, 0.0])
def test_a_time_left_that_makes_no_sense_is_bounded(left_s: float | None, clockwork: Make) -> None:
    on = clockwork()
    on.boot_ground()
    on.run(lambda: on.states(1) == {1: "asked"})
    on.kill_ground()
    with on.store.transaction():
        on.store.db.execute("UPDATE round SET left_s = ?", (left_s,))
    on.boot_ground()
    assert on.run(lambda: on.said("nobody-answered")) <= 120.1
    on.boards[1].boot(on.now)
    on.run(lambda: on.over)


def test_a_deadline_that_was_made_shorter_bounds_the_round_in_hand(clockwork: Make) -> None:
    on = clockwork()
    on.boot_ground()
    on.run(lambda: on.states(1) == {1: "asked"})
    on.kill_ground()
    change(on.folder / "mission.toml", deadline_s=20.0)
    on.boot_ground()
    assert on.run(lambda: on.said("nobody-answered")) <= 20.1


def test_updates_that_came_while_the_ground_stood_still_are_taken(clockwork: Make) -> None:
    on = clockwork(boards=2, quorum=2)
    on.boot()
    on.run(lambda: on.states(1) == {1: "delivered", 2: "delivered"})
    rounds, on.rounds = on.rounds, None  # SIGSTOP
    on.run(lambda: all(b.agent and b.agent.known.phase is State.OFFERING for b in on.boards.values()))
    on.pass_time(1000.0)  # far past the deadline
    on.rounds = rounds  # SIGCONT
    on.run(lambda: on.said("closed", round=1), 30.0)
    assert on.states(1) == {1: "answered", 2: "answered"}
    assert not on.said("update-discarded")
    assert len(on.said("trained", round=1)) == 2
    on.run(lambda: on.over)


def test_the_time_in_which_the_ground_stood_still_is_nobody_s_delay(clockwork: Make) -> None:
    on = clockwork(boards=2, quorum=2)
    on.boot()
    on.boards[2].kill()
    on.run(lambda: on.states(1).get(1) == "answered")
    assert on.rounds is not None
    on.now += 1000.0
    on.rounds.paused(1000.0)
    on.boards[2].boot(on.now)
    on.run(lambda: on.said("closed", round=1))
    assert on.states(1) == {1: "answered", 2: "answered"}


def test_a_daemon_that_is_stopped_past_its_deadline_takes_what_was_on_its_way(tmp_path: Path) -> None:
    with bench(tmp_path) as on:
        change(on.mission / "mission.toml", deadline_s=4.0)
        on.start()
        on.until(lambda: on.said("board", "heard", round=1))
        ground = on.crew.members["ground"].process
        ground.send_signal(signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            on.until(lambda: on.said("board", "trained", round=1))
            on.until(lambda: time.monotonic() > stopped + 5.0)
        finally:
            ground.send_signal(signal.SIGCONT)
        on.finish()
        assert [row["state"] for row in on.status()["rounds"]] == ["closed", "closed"]
        assert len(on.said("board", "trained", round=1)) == 1
        assert not on.said("ground", "update-discarded")


@pytest.mark.parametrize("age_s", [-1e9, -1.0, 1e12, math.inf])
def test_what_was_spent_in_the_future_is_over_within_a_day(age_s: float) -> None:
    allowance = ByteQuota(math.inf, 64_000.0, QuotaUsage(0, ((age_s, 64_000),)), now=100.0)
    assert allowance.opens_at(100.0, 500) <= 100.0 + DAY_S + 900.0
    assert allowance.left_bytes(100.0 + DAY_S + 900.0) == 64_000.0
