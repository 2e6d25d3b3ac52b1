"""A mission on the bench: the real programs as processes, an emulated cable between them, in one folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from firmware_sim.runs.processes import ProcessGroup
from onboard.data import loading
from onboard.data.images import save

Event = dict[str, Any]
JSON = ("--log", "json")

# Slow enough for a kill in mid-transfer: an update of 0.8 bit a weight takes 8 s, and 1 s on a quick line.
SLOW_BPS, QUICK_BPS = 57_600, 460_800
LINK = """\
kind = "link"
title = "Bench cable for tests, short frames"
rate_up_bps = { value = RATE, source = "c: a test's" }
rate_down_bps = { value = RATE, source = "c: a test's" }
bits_per_byte = { value = 10, source = "c: 8N1" }
mtu_bytes = { value = 256, source = "c: as on uhf-9k6" }
delay_s = { value = 0.002, source = "c: a test's" }
keying_s = { value = 0.0, source = "c: a wire" }
half_duplex = { value = false, source = "c: two wires" }
frame_loss = { value = 0.0, source = "c: clean; a test adds what it needs" }
bit_error_rate = { value = 0.0, source = "c: clean" }
availability = { value = 1.0, source = "c: a wire" }
tx_power_w = { value = 0.0, source = "c: a wire" }
"""


class MissionBench:
    """One ground station and one board, `pi`, on a serial cable at FOLDER/ground and FOLDER/board."""

    def __init__(self, folder: Path, rate_bps: int = SLOW_BPS, **train: object) -> None:
        self.folder = folder
        self.mission = folder / "mission"
        self.node_toml = self.mission / "boards" / "pi" / "node.toml"
        self.ground_port, self.board_port = folder / "ground", folder / "board"
        (folder / "link.toml").write_text(LINK.replace("RATE", str(rate_bps)))
        self.crew = ProcessGroup(folder / "logs")
        self.seen: dict[str, list[Event]] = {}
        node = f"pi,link={folder / 'link.toml'},port={self.ground_port},board-port={self.board_port}"
        run("groundstation", "init", str(self.mission), "--rounds", "2", "--deadline", "120", "--node", node)
        change(self.mission / "mission.toml", **{"epochs": 2} | train)  # a test may ask for more
        images = loading.load("digits", part="train").take(range(120))
        save(self.node_toml.parent / "data.npz", images)

    def start(self) -> None:
        """Starts all three."""
        self.start_cable()
        self.start_ground()
        self.start_board()

    def start_cable(self, *options: str) -> None:
        """Lays the cable and waits for its ports."""
        ends = ["--ground", str(self.ground_port), "--board", str(self.board_port)]
        self._start(
            "cable", "firmware_sim", "cable", "--link", str(self.folder / "link.toml"), *ends, *options
        )
        self.until(lambda: self.board_port.exists() and self.ground_port.exists())

    def start_ground(self, *options: str, ends: bool = True) -> None:
        """Starts the daemon, which `ends` with the mission or goes on."""
        serve = ("serve", str(self.mission), *(["--exit-when-finished"] if ends else []))
        self._start("ground", "groundstation", *serve, *options, *JSON)

    def start_board(self) -> None:
        """Starts the agent, the real one and not its emulation."""
        self._start("board", "onboard", "run", str(self.node_toml), "--wait", *JSON)

    def _start(self, name: str, module: str, *arguments: str) -> None:
        self.crew.start(name, module, *arguments, "--report-every", "0.1")

    def kill(self, name: str) -> None:
        """kill -9, as a power cut does."""
        self.crew.members[name].process.kill()
        self.crew.members[name].process.wait()
        list(self.crew.stop([name]))

    def until(self, met: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Listens until `met` or fails with what the processes said last."""
        deadline = time.monotonic() + timeout_s
        while not met():
            self.listen()
            assert time.monotonic() < deadline, f"not within {timeout_s} s; last: {self.last_words()}"

    def listen(self) -> None:
        """Takes what the processes have said: one whose pipe is full waits until somebody reads."""
        for name, event in self.crew.listen(0.05):
            self.seen.setdefault(name, []).append(event)

    def run(self, module: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs one of the programs to its end, and listens to the others meanwhile: with nobody to read them
        they write 24 kB, two seconds of reports, and then wait."""
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(run, module, *arguments, code=code)
            self.until(done.done, 70.0)
            return done.result()

    def finish(self, timeout_s: float = 90.0) -> None:
        """Waits for the daemon's own end and its exit code 0."""
        process = self.crew.members["ground"].process
        self.until(lambda: process.poll() is not None, timeout_s)
        assert process.returncode == 0, self.last_words()
        self.hear_out("ground")

    def hear_out(self, *names: str) -> None:
        """Stops processes and keeps what they still say."""
        for name, event in self.crew.stop(names or None):
            self.seen.setdefault(name, []).append(event)

    def said(self, name: str, event: str, **fields: Any) -> list[Event]:
        """The events of that name, and with these fields, that a process has logged."""
        return [
            one
            for one in self.seen.get(name, [])
            if one.get("event") == event and all(one.get(key) == value for key, value in fields.items())
        ]

    def doing(self) -> Event:
        """The board's last report."""
        return (self.said("board", "doing") or [{}])[-1]

    def link(self) -> Event:
        """The ground's last view of its link."""
        reports = self.said("ground", "links")
        return dict(reports[-1]["links"][0]) if reports else {}

    def status(self) -> dict[str, Any]:
        """`groundstation status --json`."""
        return dict(json.loads(self.run("groundstation", "status", str(self.mission), "--json").stdout))

    def last_words(self) -> dict[str, Any]:
        """For a test that fails: the end of every log, and of every process's errors."""
        errors = {path.name: path.read_text()[-2000:] for path in (self.folder / "logs").glob("*.err")}
        return {name: [e for e in events if e.get("event") not in ("doing", "links")][-5:]
                for name, events in self.seen.items()} | errors  # fmt: skip


@contextmanager
def bench(folder: Path, rate_bps: int = SLOW_BPS, **train: object) -> Iterator[MissionBench]:
    """A bench whose processes all end with the block. `train` changes [train] of mission.toml."""
    made = MissionBench(folder, rate_bps, **train)
    try:
        yield made
    finally:
        list(made.crew.stop())


def change(path: Path, **values: object) -> None:
    """Sets keys of a TOML file that are there already."""
    text = path.read_text()
    for key, value in values.items():
        text, times = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert times == 1, f"{path} has {key} {times} times"
    path.write_text(text)


def run(module: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """One of the programs, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done
