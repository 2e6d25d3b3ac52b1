"""A board whose memory is tight: the agent outlives every training, the ground hears why, and nothing is
kept."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.missions.bench import MissionBench, bench
from tests.programs import run_out_of_memory_by_signal


def budget(on: MissionBench, **keys: object) -> None:
    with on.node_toml.open("a") as toml:
        toml.write("\n[budget]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()))


def start(on: MissionBench) -> int:
    """All programs; returns the agent's process id."""
    on.start_cable()
    on.start_board()
    on.until(lambda: on.said("board", "port-open"))
    on.start_ground()
    return on.crew.members["board"].process.pid


def resident_kb(pid: int, field: str = "VmRSS") -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def training_of(pid: int) -> int | None:
    """The process that trains for the agent `pid`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def training_begun(on: MissionBench) -> int:
    """Starts the mission; returns the process that trains once it has done an epoch."""
    pid = start(on)
    on.until(lambda: on.said("board", "epoch"))
    child = training_of(pid)
    assert child is not None
    return child


@pytest.mark.parametrize("memory_mb", [1, 56])
def test_a_budget_below_the_need_is_heard_of_and_the_agent_stays(memory_mb: int, tmp_path: Path) -> None:
    with bench(tmp_path) as on:
        budget(on, memory_mb=memory_mb)
        pid = start(on)
        on.until(lambda: on.said("ground", "board-failed", round=1, failure="memory"))
        assert on.said("ground", "board-failed")[0]["why"]
        assert on.crew.members["board"].process.poll() is None
        assert training_of(pid) is None
        status = ("groundstation", "status", str(on.mission))
        on.until(lambda: "failed: " in on.run(*status).stdout)  # within 5 s
        assert on.crew.members["board"].errors.read_text() == ""


def test_a_budget_above_the_need_trains_every_round_whatever_libraries_reserve_and_all_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy 2.5.5 on aarch64 reserves 188 MiB at its import, and here every Python does: with a limit counted
    from zero no board of 128 MB trained."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import mmap\nkept = mmap.mmap(-1, 188 * 2**20, flags=mmap.MAP_PRIVATE)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    with bench(tmp_path) as on:
        budget(on, memory_mb=96)
        on.start_cable()
        on.start_board()
        on.until(lambda: on.said("board", "port-open"))
        pid = on.crew.members["board"].process.pid
        before_kb = resident_kb(pid)
        on.start_ground()
        on.until(lambda: len(on.said("board", "trained")) == 2)
        assert not on.said("board", "training-failed")
        assert all(40 < one["peak_mb"] < 96 for one in on.said("board", "trained"))
        assert resident_kb(pid) < 1.1 * before_kb
        assert before_kb < 32 * 1024  # neither numpy nor onnxruntime nor images
        on.finish()


def test_a_training_that_is_killed_is_heard_of_and_the_agent_stays(tmp_path: Path) -> None:
    with bench(tmp_path, epochs=500) as on:
        child = training_begun(on)
        os.kill(child, signal.SIGKILL)
        on.until(lambda: on.said("ground", "board-failed", round=1, failure="process"))
        assert "SIGKILL" in on.said("board", "training-failed")[0]["why"]
        assert on.crew.members["board"].process.poll() is None


def test_a_training_that_hangs_is_seen_and_stalls_no_radio(tmp_path: Path) -> None:
    with bench(tmp_path, epochs=500) as on:
        child = training_begun(on)
        os.kill(child, signal.SIGSTOP)
        on.until(lambda: on.doing()["step_s"] > 1.0)
        heard = on.doing()["link"]["frames_sent"] + on.doing()["link"]["frames_received"]
        assert '"phase":"training"' in on.run("onboard", "link", str(on.node_toml), "--once", "--json").stdout
        on.kill("ground")
        on.start_ground()  # says HELLO, and is answered in the middle of the step
        on.until(
            lambda: on.doing()["link"]["frames_sent"] + on.doing()["link"]["frames_received"] > heard + 1
        )
        assert on.doing()["step_s"] > 1.0
        asked_at = time.monotonic()
        on.crew.members["board"].process.terminate()
        on.until(lambda: on.crew.members["board"].process.poll() == 0, timeout_s=5)
        assert time.monotonic() - asked_at < 3.0
        assert not Path(f"/proc/{child}").exists()


def test_a_board_without_memory_for_the_agent_itself_gives_its_training_up_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in its loop the agent is when memory runs out: here a signal says that it does."""
    run_out_of_memory_by_signal(tmp_path, monkeypatch)
    with bench(tmp_path, epochs=500) as on:
        pid = start(on)
        on.until(lambda: on.said("board", "epoch"))
        for _ in range(5):
            os.kill(pid, signal.SIGUSR1)
            reports = len(on.said("board", "doing")) + 2
            on.until(partial(lambda least: len(on.said("board", "doing")) > least, reports))
        on.until(lambda: on.said("ground", "board-failed", round=1, failure="memory"))
        assert len(on.said("board", "memory-full")) == 1
        assert training_of(pid) is None
        assert on.crew.members["board"].process.poll() is None
