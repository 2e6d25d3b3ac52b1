"""The demo as a person runs it, shortened to one round, with a board started by hand: what it writes, and
that nothing of it is left when it ends, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from firmware_sim.cli import main
from tests.images_made import mnist
from tests.missions.bench import run

COMMAND = [sys.executable, "-m", "firmware_sim", "demo", "--rounds", "1"]


def children(parent: int) -> set[int]:
    """Processes that a process has started and that still run."""
    try:
        listed = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    except FileNotFoundError:
        return set()
    return {int(child) for child in listed.split()}


def running(processes: set[int]) -> set[int]:
    """Those that have not ended, zombies left out: they have."""
    alive = set()
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                alive.add(process)
    return alive


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "--out", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def quietly(module: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.DEVNULL)


def test_a_round_with_a_board_started_by_hand(tmp_path: Path) -> None:
    out, ends = tmp_path / "out", [tmp_path / "one", tmp_path / "other"]
    # The pty pair that `socat pty,link=one pty,link=other` would make.
    link = ["--link", "bench-serial-115k2", "--ground", str(ends[0]), "--board", str(ends[1])]
    wire = quietly("firmware_sim", "cable", *link)
    try:
        with demo(out, "--real", f"raspberry-pi-4={ends[0]}") as process:
            node = out / "mission" / "boards" / "raspberry-pi-4" / "node.toml"
            deadline = time.monotonic() + 60
            while not (node.parent / "data.npz").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            agent = quietly("onboard", "run", node, "--port", ends[1], "--wait")
            while len(crew := children(process.pid)) < 5:  # two cables, two boards, the ground
                assert time.monotonic() < deadline, crew
                time.sleep(0.1)
            try:
                text, _ = process.communicate(timeout=180)
            finally:
                agent.terminate()
                assert agent.wait(timeout=5) == 0
        assert process.returncode == 0, text
    finally:
        wire.terminate()
        wire.wait()

    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds"] == len(summary["accuracy"]) == 1
    assert set(summary["boards"]) == {"raspberry-pi-4", "jetson-nano", "xiphos-q8s"}
    assert all(ways[way]["bytes"] > 2000 for ways in summary["boards"].values() for way in ("up", "down"))
    assert summary["bytes"] == sum(w["bytes"] for ways in summary["boards"].values() for w in ways.values())
    assert summary["fp32_fedavg_bytes"] == 1 * 3 * 2 * 4 * 431_080
    assert summary["ratio"] == pytest.approx(summary["fp32_fedavg_bytes"] / summary["bytes"])
    assert (out / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert "loss of signal" in text
    assert "in contact again" in text
    answers = json.loads(run("groundstation", "status", str(out / "mission"), "--json").stdout)["rounds"][0]
    assert [answer["state"] for answer in answers["answers"]] == ["answered"] * 3
    assert not running(crew)
    assert not (out / "ports").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_it_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with demo(out) as process:
        deadline = time.monotonic() + 60
        while len(crew := children(process.pid)) < 7:  # three cables, three boards, the ground
            assert time.monotonic() < deadline, crew
            time.sleep(0.1)
        process.send_signal(number)
        text, _ = process.communicate(timeout=20)
    deadline = time.monotonic() + 5
    while left := running(crew):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in text
        assert f"what the run wrote is in {out}" in text.replace("\n", "")
        assert not (out / "ports").exists()


def test_the_ground_takes_its_images_from_the_folder_that_the_demo_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPACEDML_DATA", raising=False)
    mnist(tmp_path / "data" / "mnist")
    monkeypatch.chdir(tmp_path)
    with demo(tmp_path / "out", "--data", "mnist", "--data-dir", "data", "--images", "10") as process:
        deadline, said = time.monotonic() + 60, tmp_path / "out" / "logs" / "ground.jsonl"
        while not (said.exists() and '"event": "round"' in said.read_text()):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    done = run("firmware_sim", "demo", "--out", str(tmp_path), code=2)
    assert (
        done.stderr
        == f"firmware-sim: {tmp_path}: exists and is no demo's folder; choose another with --out\n"
    )
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--real", "pi"], "--real pi: must be BOARD=PORT"),
        (["--data", "cifar"], "no data source 'cifar'"),
        (["--data", "mnist", "--data-dir", "/nowhere"], "/nowhere"),
        (["--model", "lenet"], "no model 'lenet'; nearest: lenet5"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_bad_wishes_get_one_line(options: list[str], complaint: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "out"), *options])
    assert done.exit_code == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
