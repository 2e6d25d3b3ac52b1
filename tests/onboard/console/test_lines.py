"""No program waits for whoever reads its lines: a pager, a paused terminal, a full disk, nobody at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from firmware_sim.runs.processes import free_ports
from onboard.console.lines import Lines
from onboard.data import loading
from onboard.data.images import save
from tests.disks import small_disk
from tests.missions.bench import run

EVENTS = """
import logging, sys
from onboard.console.log import say, start
start("json")
log = logging.getLogger("x")
for number in range(int(sys.argv[1])):
    say(log, "event", number=number)
sys.stderr.write("all said")
sys.stderr.flush()
sys.stdin.readline()
say(log, "last")
"""


@contextlib.contextmanager
def pipe(size: int = 4096) -> Iterator[tuple[int, int]]:
    """A pipe with room for `size` bytes: where to read and where to write."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, size)
    try:
        yield ends
    finally:
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)


def quickly(act: Callable[[], object], within_s: float = 0.5) -> None:
    began_s = time.monotonic()
    act()
    assert time.monotonic() - began_s < within_s


def missed(count: int) -> str:
    return f"{count} missed\n"


def test_lines_come_in_order_and_those_without_room_are_counted_where_they_are_missing() -> None:
    with pipe() as (readable, writable):
        lines = Lines(writable, missed, most_bytes=2000)
        quickly(lambda: [lines.put(f"{number:09}\n") for number in range(5000)])
        lines.close(0.1)
        told, number, gaps = b"", 0, 0
        while number < 5000:
            *whole, told = (told + os.read(readable, 65536)).split(b"\n")
            for line in whole:
                gaps += b"missed" in line
                assert b"missed" in line or int(line) == number
                number += int(line.split()[0]) if b"missed" in line else 1
        assert (told, number) == (b"", 5000)
        assert gaps
        lines.put("afterwards\n")
        assert os.read(readable, 65536) == b"afterwards\n"
        assert os.get_blocking(writable)  # the mode is that of all who share it


def test_a_reader_that_is_gone_is_noticed_and_costs_nothing() -> None:
    with pipe() as (readable, writable):
        os.close(readable)
        lines = Lines(writable, missed)
        lines.put("unheard\n")
        lines.close()
        assert lines.unread
        quickly(lambda: [lines.put("unheard\n") for _ in range(5000)])
        quickly(lines.close)


def test_a_full_disk_costs_the_lines_that_found_it_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"), (disk / "log").open("wb", buffering=0) as log:
        (disk / "ballast").write_bytes(bytes(48 * 1024))
        lines = Lines(log.fileno(), missed)
        for number in range(3000):
            lines.put(f"{number:09}\n")
        lines.close(2.0)
        (disk / "ballast").unlink()
        lines.put("there is room again\n")
        lines.close(2.0)
        *_, cut, count, last = (disk / "log").read_text().splitlines()
        seen = [line for line in (disk / "log").read_text().splitlines() if len(line) == 9]
    assert last == "there is room again"
    assert int(count.split()[0]) in (3000 - len(seen), 3001 - len(seen))  # one may have been cut
    assert len(cut) <= 9  # and what was cut is not glued to another


def test_a_pager_that_reads_no_further_is_told_what_it_missed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", EVENTS, "20000"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stderr.read(8) == "all said"  # while nobody reads
        events = [json.loads(child.stdout.readline())]
        while events[-1]["event"] != "log-dropped":  # before that the queue may have no room for the last
            events.append(json.loads(child.stdout.readline()))
        child.stdin.close()
        events += [json.loads(line) for line in child.stdout]
    number = 0
    for event in events[:-1]:
        if event["event"] == "log-dropped":
            assert event["level"] == "warning"
            number += event["lines"]
        else:
            assert event["number"] == number
            number += 1
    assert number == 20000 > 2 * len(events)
    assert events[-1]["event"] == "last"


@pytest.mark.parametrize("form", ["no reader", "closed", "/dev/full"])
def test_no_reader_at_all_is_no_matter(form: str) -> None:
    command = [sys.executable, "-c", EVENTS, "2000"]
    if form == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    where = Path(form).open("w") if form.startswith("/") else subprocess.PIPE  # noqa: SIM115
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=where, stderr=subprocess.PIPE, text=True
    ) as child:
        if child.stdout is not None:
            child.stdout.close()
            child.stdout = None
        _, errors = child.communicate("\n", timeout=20)
    assert (child.returncode, errors) == (0, "all said")


@contextlib.contextmanager
def unread(kind: str) -> Iterator[int]:
    """What a program may have as its standard output, of which nothing is ever read."""
    if kind == "paused terminal":
        master, slave = pty.openpty()
        try:
            termios.tcflow(slave, termios.TCOOFF)  # what Ctrl-S does
            yield slave
        finally:
            os.close(slave)
            os.close(master)
    elif kind == "full disk":
        with Path("/dev/full").open("wb", buffering=0) as full:
            yield full.fileno()
    else:
        with pipe() as (readable, writable):
            if kind == "full pipe":
                os.write(writable, bytes(4096))
            else:
                os.close(readable)
            yield writable


@contextlib.contextmanager
def begun(out: int, module: str, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that reports often to `out`."""
    command = [sys.executable, "-m", module, *map(str, arguments), "--report-every", "0.05"]
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ends_when_told(process: subprocess.Popen[bytes]) -> None:
    """Within 3 s: half a second, and what a busy machine adds."""
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=3) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""


def frames_of(node: Path) -> int:
    """What the running agent has received, by its own word."""
    command = [sys.executable, "-m", "onboard", "link", str(node), "--once", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return json.loads(done.stdout)["link"]["frames_received"] if done.returncode == 0 else 0


@pytest.mark.parametrize("kind", ["full pipe", "gone reader"])
def test_a_link_lives_on_while_nobody_reads_either_log(kind: str, tmp_path: Path) -> None:
    mission = tmp_path / "mission"
    images = loading.load("digits", part="train").take(range(40))
    x, y = images.x, images.y
    np.savez(tmp_path / "test.npz", x=x, y=y, x_test=x, y_test=y, classes=np.array(images.classes))
    here, there = (f"127.0.0.1:{port}" for port in free_ports(2))
    node = f"pi,port=udp://{there}?bind={here},board-port=udp://{here}?bind={there}"
    run("groundstation", "init", str(mission), "--node", node, "--data", f"npz:{tmp_path / 'test.npz'}")
    board = mission / "boards" / "pi"
    save(board / "data.npz", images)
    with (
        unread(kind) as out,
        begun(out, "groundstation", "serve", mission) as ground,
        begun(out, "onboard", "run", board / "node.toml") as agent,
    ):
        deadline = time.monotonic() + 30
        while frames_of(board / "node.toml") < 3:
            assert time.monotonic() < deadline
        ends_when_told(agent)
        ends_when_told(ground)


@pytest.mark.parametrize("kind", ["full pipe", "paused terminal", "full disk"])
def test_a_cable_carries_on_while_nobody_reads_its_totals(kind: str, tmp_path: Path) -> None:
    ends = tmp_path / "a", tmp_path / "b"
    link = ("--link", "bench-serial-115k2", "--ground", ends[0], "--board", ends[1])
    with unread(kind) as out, begun(out, "firmware_sim", "cable", *link) as cable:
        deadline = time.monotonic() + 20
        while not ends[1].exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)  # six reports
        here, there = (os.open(end, os.O_RDWR | os.O_NOCTTY) for end in ends)
        os.write(here, b"\x05frame\0")
        assert select.select([there], [], [], 5)[0]
        os.close(here)
        os.close(there)
        ends_when_told(cable)


def test_a_demo_that_nobody_reads_ends_when_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with unread("full pipe") as full:
        demo = [sys.executable, "-m", "firmware_sim", "demo", "--plain", "--out", str(out)]
        process = subprocess.Popen(demo, stdout=full, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 30
            while not (out / "logs" / "ground.jsonl").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.terminate()
            assert process.wait(timeout=10) == 130
        finally:
            process.kill()
            process.communicate()


def test_a_simulation_that_nobody_reads_ends_when_told_and_tells_all_who_read_late(tmp_path: Path) -> None:
    fleet = [
        sys.executable,
        "-m",
        "firmware_sim",
        "fleet",
        "--data",
        "digits",
        "--images",
        "20",
        "--devices",
        "2",
    ]
    fleet += ["--select", "1", "--json", "--out", str(tmp_path / "out")]
    with unread("full pipe") as full:
        process = subprocess.Popen([*fleet, "--rounds", "500"], stdout=full, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 40
            lines = 0
            while lines < 3:  # and the first of them does not fit the pipe
                assert time.monotonic() < deadline
                time.sleep(0.05)
                with contextlib.suppress(FileNotFoundError):
                    lines = (tmp_path / "out" / "rounds.jsonl").read_text().count("\n")
            process.terminate()
            assert process.wait(timeout=5) == 130
        finally:
            process.kill()
            process.communicate()
    rounds = (tmp_path / "out" / "rounds.jsonl").read_text().count("\n")
    with subprocess.Popen([*fleet, "--rounds", str(rounds)], stdout=subprocess.PIPE, text=True) as again:
        time.sleep(0.5)
        assert again.stdout is not None
        assert len(again.stdout.readlines()) == rounds


@pytest.mark.parametrize("command", ["fleet", "ring"])
def test_a_run_without_a_standard_output_makes_its_files(command: str, tmp_path: Path) -> None:
    sized = {
        "fleet": ["--devices", "2", "--select", "1", "--rounds", "1"],
        "ring": ["--nodes", "3", "--epochs", "1"],
    }
    arguments = [
        command,
        "--data",
        "digits",
        "--images",
        "20",
        "--out",
        str(tmp_path / "out"),
        *sized[command],
    ]
    program = [sys.executable, "-m", "firmware_sim", *arguments]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *program], stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out" / {"fleet": "rounds.png", "ring": "ring.png"}[command]).exists()
