"""Programs in a star of namespaces are counted by board, and nothing is left of them, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.claims.peers.star import StarSpec, address
from benchmarks.claims.peers.yard import Contest, Turns, Yard
from benchmarks.harness import process
from benchmarks.harness.lab import LabError
from hw_profiles import load_link

LINK = replace(load_link("bench-udp"), rate_up_bps=1e6, rate_down_bps=1e6, delay_s=0.001)
SPEC = StarSpec(link=LINK, queue_bytes=65536, boards=["board-1", "board-2"])
SAYS = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(bytes(972), ('{}', 7))"
# A program with a child, until SIGTERM.
WAITS = "import signal, subprocess, sys; signal.signal(15, sys.exit); subprocess.run(['sleep', '600'])"


def test_a_cut_is_the_first_boards_alone_and_begins_at_its_byte() -> None:
    spec = StarSpec(link=LINK, queue_bytes=65536, boards=["a", "b"], cut_after_bytes=2500, cut_s=60.0)
    for number, link in enumerate(spec.links(0.0)):
        for at in range(5):
            link.send("board", bytes(1000), 10.0 + at)
        link.send("board", bytes(1000), 80.0)
        assert len(link.due(1e6)) == (3 if number == 0 else 6)


def test_what_the_ground_says_first_is_carried_as_well() -> None:
    link, _ = SPEC.links(5.0)
    link.send("ground", bytes(100), 6.0)
    assert len(link.due(7.0)) == 1


@pytest.mark.usefixtures("namespaces")
def test_bytes_and_processes_are_those_of_the_board(tmp_path: Path) -> None:
    with closing(Contest(tmp_path)) as contest:
        yard = contest.yard("one", SPEC)

        def story() -> Turns[None]:
            yield from yard.up()
            yard.start("waits", "board-1", [sys.executable, "-c", WAITS], {})
            yard.start("says", "board-2", [sys.executable, "-c", SAYS.format(address(1, "ground"))], {})
            yield from yard.until(lambda: _boards(yard) == [2, 0] and yard.cpu_s("board-1") > 0, 10.0, "no")
            carried = lambda: yard.carried(time.monotonic())  # noqa: E731
            yield from yard.until(
                lambda: (
                    carried()["board-2"]["board"] == 1000 and carried()["board-2"]["ground"] > 0
                ),  # port unreachable, which comes back a moment later
                10.0,
                f"{carried()}",
            )
            assert carried()["board-1"] == {"ground": 0, "board": 0}
            assert 1e6 < yard.share_bytes("board-1") <= yard.resident_bytes("board-1") < 100e6

        contest.play({"": story()}, lambda left: None)
        (star,) = (pid for pid in process.children(os.getpid()) if "star" in _command(pid))
        pids = process.in_namespace(f"/proc/{star}/ns/net")
        assert star in pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.usefixtures("namespaces")
def test_a_program_that_fails_ends_the_benchmark_with_its_last_words(tmp_path: Path) -> None:
    with closing(Contest(tmp_path)) as contest:
        yard = contest.yard("one", SPEC)

        def story() -> Turns[None]:
            yield from yard.up()
            yard.start("fails", "ground", [sys.executable, "-c", "raise SystemExit('it broke')"], {})
            yield from yard.until(lambda: False, 10.0, "it did not fail")

        with pytest.raises(LabError, match=r"^one:fails ended: it broke$"):
            contest.play({"": story()}, lambda left: None)


@pytest.mark.usefixtures("namespaces")
def test_nothing_is_left_of_a_program_whose_launcher_is_killed() -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ends.inside", "/proc/self/ns/net", sys.executable, "-c", WAITS]
    )
    try:
        _until(lambda: "sleep" in {_command(pid).partition("\0")[0] for pid in _below(launcher.pid)})
        below = _below(launcher.pid)
        assert len(below) == 2
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    _until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in below))


def _boards(yard: Yard) -> list[int]:
    """Processes of each board."""
    return [len(yard.processes(board)) for board in SPEC.boards]


def _below(pid: int) -> list[int]:
    return [each for child in process.children(pid) for each in (child, *_below(child))]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def _until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10.0
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
