"""A folder or a file that one run uses is no other's, whatever marks lie in it; a run that is dead holds
nothing."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firmware_sim.runs.processes import free_ports
from tests.missions.bench import run

SMALL_RING = ("ring", "--data", "digits", "--images", "60", "--nodes", "3", "--every", "4")
SMALL_FLEET = ("fleet", "--data", "digits", "--images", "100", "--devices", "4", "--select", "2")
HELD = "another run is using it now; choose another with --out"


@contextlib.contextmanager
def running(module: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """One of the programs, killed at the end of the block if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(met: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_demo_in_a_folder_ends_and_leaves_the_first_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running("firmware_sim", "demo", "--out", out) as first:
        until((out / "mission" / "mission.toml").exists)
        before = (out / "mission" / "keys" / "jetson-nano.key").read_bytes()
        second = run("firmware_sim", "demo", "--out", str(out), code=2)
        assert second.stderr == f"firmware-sim: {out}: {HELD}\n"
        assert (out / "mission" / "keys" / "jetson-nano.key").read_bytes() == before
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.wait()
        with running("firmware_sim", "demo", "--out", out):  # the dead one's folder is free, and replaced
            until(
                lambda: (key := out / "mission/keys/jetson-nano.key").exists() and key.read_bytes() != before
            )


@pytest.mark.parametrize(
    ("first", "seconds"),
    [
        ((*SMALL_FLEET, "--rounds", "500"), [(*SMALL_FLEET, "--rounds", "500")]),
        ((*SMALL_RING, "--epochs", "500"), [(*SMALL_RING, "--epochs", "500")]),
        ((*SMALL_RING, "--epochs", "500", "--processes"), [(*SMALL_RING, "--epochs", "500", "--processes")]),
    ],
    ids=["fleet", "ring", "processes"],
)
def test_a_second_run_of_the_same_settings_waits_its_turn(
    first: tuple[str, ...], seconds: list[tuple[str, ...]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with running("firmware_sim", *first, "--out", out):
        until(lambda: list(out.glob("*.jsonl")) or list(out.glob("nodes")))
        for second in seconds:
            assert HELD in run("firmware_sim", *second, "--out", str(out), code=2).stderr


def test_a_ring_of_processes_replaces_no_folder_of_somebody_else(tmp_path: Path) -> None:
    precious = tmp_path / "nodes" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("mine")
    done = run("firmware_sim", *SMALL_RING, "--processes", "--epochs", "1", "--out", str(tmp_path), code=2)
    assert "exists and is no ring-processes's folder" in done.stderr
    assert precious.read_text() == "mine"


def test_an_end_of_a_running_cable_is_not_taken_from_it(tmp_path: Path) -> None:
    ends = ("--ground", tmp_path / "a", "--board", tmp_path / "b")
    cable = ("cable", "--link", "bench-serial-115k2", *ends, "--report-every", "0.05")
    with running("firmware_sim", *cable) as first:
        until((tmp_path / "b").exists)
        target = (tmp_path / "a").readlink()
        second = run("firmware_sim", *map(str, cable), code=2)
        assert second.stderr == f"firmware-sim: {tmp_path / 'a'}: another cable ends here\n"
        assert (tmp_path / "a").readlink() == target
        first.kill()
        first.wait()
        with running("firmware_sim", *cable):
            until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())


def test_a_link_to_a_device_is_no_cables(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/dev/null")  # as /dev/serial0 is one to a UART
    ends = ("--ground", str(tmp_path / "a"), "--board", str(tmp_path / "b"))
    done = run("firmware_sim", "cable", "--link", "bench-serial-115k2", *ends, code=2)
    assert done.stderr == f"firmware-sim: {tmp_path / 'a'}: File exists\n"
    assert (tmp_path / "a").readlink() == Path("/dev/null")


def test_two_programs_do_not_record_into_one_file(tmp_path: Path) -> None:
    record, mission = tmp_path / "pass.sdml", tmp_path / "mission"
    here, there = free_ports(2)
    node = f"pi,port=udp://127.0.0.1:{here},board-port=udp://127.0.0.1:{there},data=digits"
    run("groundstation", "init", str(mission), "--node", node)
    with running("groundstation", "serve", mission, "--record", record):
        until(record.exists)
        board = mission / "boards" / "pi" / "node.toml"
        done = run("onboard", "run", str(board), "--record", str(record), code=2)
        assert done.stderr == (
            f"--record {record}: another program records into it; give each its own file\n"
        )


def test_of_two_inits_at_once_one_makes_the_mission(tmp_path: Path) -> None:
    nodes = [word for number in range(12) for word in ("--node", f"b{number},port=/dev/tty{number}")]
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(running("groundstation", "init", tmp_path, *nodes)) for _ in range(2)]
        told = [process.communicate(timeout=30) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], told
    for number in range(12):
        assert (tmp_path / "keys" / f"b{number}.key").read_bytes() == (
            tmp_path / "boards" / f"b{number}" / "node.key"
        ).read_bytes()


def test_of_rolls_at_once_none_leaves_two_ends_with_different_keys(tmp_path: Path) -> None:
    run("groundstation", "init", str(tmp_path), "--node", "pi,port=/dev/ttyUSB0")
    with contextlib.ExitStack() as stack:
        rolls = [stack.enter_context(running("groundstation", "roll", tmp_path, "pi")) for _ in range(3)]
        told = [process.communicate(timeout=30)[1] for process in rolls]
    assert all(text == "" or text.count("\n") == 1 for text in told)
    assert {process.returncode for process in rolls} <= {0, 2}
    ground = (tmp_path / "keys" / "pi.key").read_bytes()
    assert ground == (tmp_path / "boards" / "pi" / "node.key").read_bytes()
    assert ground.count(b"\n") == 1 + [process.returncode for process in rolls].count(0)
