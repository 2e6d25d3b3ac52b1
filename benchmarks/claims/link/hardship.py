"""Two rounds close over lines that eat, double, spoil and stall bytes, for a few times a good line's bytes.

A ground daemon and two boards, all real processes, each board on an emulated line (`firmware-sim cable`) of
its own: a serial cable at 115,200 baud, a half-duplex radio at 9.6 kbit/s, or UDP. Every setting is `init`'s
but two rounds and few images. A line's bytes are counted where the programs' ports meet it, both ways, until
both boards hold the final model, and compared with the same mission on the same link with nothing wrong.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.harness.lab import KEEP, LabError, init_mission, share_digits
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from firmware_sim.bench.faults import FAULTS
from firmware_sim.runs.processes import ProcessGroup, free_ports
from firmware_sim.world.channel import SIDES

ROUNDS, BOARDS = 2, ("one", "two")
IMAGES = 60  # a board
WITHIN_S = 240.0
AT_ONCE = 3
LISTEN_S = 0.05
PORTS_WITHIN_S = 30.0
SETTLE_S = 1.0  # what was said last is read
SERIAL, RADIO, UDP = "bench-serial-115k2", "uhf-9k6", "bench-udp"


@dataclass(frozen=True)
class BadLine:
    """A link with something wrong. fault: of `firmware-sim cable`, or none; ber: in place of the profile's.
    times: so many times the bytes of the clean link are allowed. named: what an event that tells the cause
    says, as a pattern over its name and text."""

    name: str
    link: str
    fault: str = ""
    ber: float | None = None
    times: float = 4.0
    named: str = ""

    @property
    def options(self) -> list[str]:
        """What the cable is told."""
        fault = ["--fault", self.fault] if self.fault else []
        return fault + ([] if self.ber is None else ["--ber", str(self.ber)])

    @property
    def unit(self) -> str:
        """What is counted of what was done to the bytes."""
        return FAULTS[self.fault][2] if self.fault else "frames with wrong bits"


CLEAN = tuple(BadLine(f"clean {link}", link) for link in (SERIAL, RADIO, UDP))
LINES = (
    BadLine("eat-xonxoff", SERIAL, "eat-xonxoff", named=r"xon|xoff|0x11"),
    BadLine("double-ff", SERIAL, "double-ff", named=r"telnet|0xff|doubl"),
    BadLine("bit-errors", RADIO, ber=1e-4, times=8.0, named=r"bit error|noisier|noise"),
    BadLine("drop-long", UDP, "drop-long", named=r"mtu|longer|long frames|too long|large"),
    BadLine("spoil-bursts", RADIO, "spoil-bursts", named=r"burst|keying|keys late|first bytes|preamble"),
    BadLine("noise", SERIAL, "noise", named=r"noise|squelch"),
    BadLine("echo", SERIAL, "echo", named=r"echo"),
    BadLine(
        "stall", SERIAL, "stall", named=r"stall|takes nothing|took nothing|flow control|not taken|blocked"
    ),
)

OPTIONS = (
    click.Option(
        ["--line", "names"], multiple=True, type=click.Choice([line.name for line in LINES]),
        help="Only this line, and the clean one of its link; repeatable.",
    ),
    click.Option(
        ["--within"], type=click.FloatRange(10.0), default=WITHIN_S, show_default=True, metavar="S",
        help="A line has so many seconds.",
    ),
    click.Option(
        ["--at-once"], type=click.IntRange(1, 32), default=AT_ONCE, show_default=True,
        help="Missions that run side by side; nearly all they do is to wait.",
    ),
    click.Option(["--seed"], type=int, default=1, show_default=True, help="Of the lines' faults."),
    KEEP,
)  # fmt: skip


@dataclass
class HardshipOutcome:
    """What one mission came to. `hits`: by board and side, what the line did to the bytes that it sent."""

    closed: int = 0
    sent_bytes: int = 0
    took_s: float = 0.0
    hits: list[int] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # warnings and errors, by program

    def naming(self, pattern: str) -> list[str]:
        """Those that tell the cause: the program, the event and its text, each once."""
        texts = (f"{who}: {_text(event)}" for who, event in self.events)
        return [text for text in dict.fromkeys(texts) if pattern and re.search(pattern, text, re.IGNORECASE)]

    def others(self) -> dict[str, int]:
        """How often each warning and error was told."""
        names = [f"{event['event']}" for _, event in self.events]
        return {name: names.count(name) for name in sorted(set(names))}


def measure(
    tell: ProgressLine, *, names: Sequence[str], within: float, at_once: int, seed: int, keep: Path | None
) -> list[Row]:
    """Runs the missions; returns the rows. Takes about five minutes, nearly all waiting. Raises LabError."""
    lines = [line for line in LINES if not names or line.name in names]
    clean = [line for line in CLEAN if any(line.link == other.link for other in lines)]
    with TemporaryDirectory(prefix="spacedml-hardship-") as scratch:
        outcomes = run_all([*lines, *clean], keep or Path(scratch), within, at_once, seed, tell)
    return [row for line in [*clean, *lines] for row in _rows(line, outcomes)]


def _rows(line: BadLine, outcomes: dict[str, HardshipOutcome]) -> Iterator[Row]:
    outcome, clean = outcomes[line.name], outcomes[f"clean {line.link}"]
    yield Row(f"{line.name}: rounds closed", outcome.closed, "", ROUNDS, at_least=True)
    yield Row("  seconds", outcome.took_s, "s")
    yield Row("  bytes, both ways", outcome.sent_bytes, "B")
    if not line.named:
        return
    ratio = outcome.sent_bytes / clean.sent_bytes if clean.sent_bytes else 0.0
    yield Row("  bytes, of the clean line's", ratio, "times", line.times)
    yield Row(f"  {line.unit}, of each end at least", min(outcome.hits, default=0), "", 1, at_least=True)
    naming = outcome.naming(line.named)
    yield Row("  events that name the cause", len(naming), "", 1, at_least=True)
    for text in naming:
        yield Row(f"    {text}", 1, "")
    for name, count in outcome.others().items():
        yield Row(f"    {name}, of all warnings and errors", count, "")


class HardshipMission:
    """One line's mission: its folder and programs, and what they said so far."""

    def __init__(
        self, crew: ProcessGroup, folder: Path, number: int, line: BadLine, seed: int, within_s: float
    ) -> None:
        self.line, self.outcome = line, HardshipOutcome()
        self.name = str(number)
        self._crew, self._folder, self._seed, self._within_s = crew, folder, seed, within_s
        self._cables: dict[str, dict[str, Any]] = {}
        self._ground_up = False
        self._began_s = time.monotonic()
        self._over_s = self._began_s + PORTS_WITHIN_S
        self._ends = {board: _ends(folder, board, line.link) for board in BOARDS}

    def start(self) -> None:
        """Founds the mission and lays its lines; the programs follow when their ports are there."""
        (self._folder / "ports").mkdir(parents=True)
        mission = self._folder / "mission"
        nodes = []
        for board, ends in self._ends.items():
            ports = f"port={ends['ground']},board-port={ends['board']}"
            nodes.append(f"{board},link={self.line.link},{ports}")
        init_mission(mission, nodes, "--rounds", str(ROUNDS))
        share_digits(mission, BOARDS, IMAGES)
        for nth, (board, ends) in enumerate(self._ends.items()):
            self._crew.start(
                f"{self.name}:cable:{board}", "firmware_sim", "cable", "--link", self.line.link, "--seed",
                str(self._seed + nth), "--ground", ends["ground"], "--board", ends["board"],
                "--report-every", "0.5", *self.line.options,
            )  # fmt: skip

    def hear(self, program: str, event: dict[str, Any]) -> None:
        """One of its programs said something."""
        kind, _, board = program.partition(":")
        if kind == "cable":
            self._cables[board] = event
            if not self._ground_up and len(self._cables) == len(BOARDS):
                self._start_programs()
            return
        if event.get("event") == "closed":
            self.outcome.closed += 1
        if event.get("level") in ("warning", "error"):
            self.outcome.events.append((program, event))

    def over(self, now: float) -> bool:
        """Whether the mission is finished, or time is up. Raises LabError for a program that ended."""
        finished = False
        for member in self._crew.ended():
            if member.name == f"{self.name}:ground" and member.process.returncode == 0:
                finished = True
            elif member.name.partition(":")[0] == self.name:
                raise LabError(f"{self.line.name}: {member.name} ended: {member.last_words()}")
        if now > self._over_s and not self._ground_up:
            raise LabError(f"{self.line.name}: no ports after {PORTS_WITHIN_S:.0f} s")
        return finished or now > self._over_s

    def stop(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Ends its programs, the cables last, which count to the end; yields what all missions say."""
        self.outcome.took_s = time.monotonic() - self._began_s
        mine = [name for name in self._crew.members if name.partition(":")[0] == self.name]
        cables = [name for name in mine if name.split(":")[1] == "cable"]
        yield from self._crew.stop([name for name in mine if name not in cables])
        yield from self._crew.stop(cables)

    def count(self) -> HardshipOutcome:
        """Once all has ended."""
        for cable in self._cables.values():
            for side in SIDES:
                sent = cable[side]
                self.outcome.sent_bytes += sent["bytes"]
                hits = sent["faults"].values() if self.line.fault else [sent["flipped"]]
                self.outcome.hits.append(sum(hits))
        return self.outcome

    def _start_programs(self) -> None:
        self._ground_up = True
        self._began_s = time.monotonic()
        self._over_s = self._began_s + self._within_s
        mission = self._folder / "mission"
        for board in BOARDS:
            node_toml = mission / "boards" / board / "node.toml"
            self._crew.start(f"{self.name}:{board}", "onboard", "run", str(node_toml), "--log", "json")
        serve = ("serve", str(mission), "--exit-when-finished", "--log", "json")
        self._crew.start(f"{self.name}:ground", "groundstation", *serve)


def run_all(
    lines: Sequence[BadLine], folder: Path, within_s: float, at_once: int, seed: int, tell: ProgressLine
) -> dict[str, HardshipOutcome]:
    """A mission for each line; their outcomes by the lines' names. Raises LabError. Nothing is left of it."""
    waiting = list(enumerate(lines))
    running: dict[str, HardshipMission] = {}
    outcomes: dict[str, HardshipOutcome] = {}
    crew = ProcessGroup(folder / "logs")

    def hear(said: Iterator[tuple[str, dict[str, Any]]]) -> None:
        for who, event in said:
            name, _, program = who.partition(":")
            running[name].hear(program, event)

    try:
        while waiting or running:
            if waiting and len(running) < at_once:
                number, line = waiting.pop(0)
                mission = HardshipMission(
                    crew, folder / line.name.replace(" ", "-"), number, line, seed, within_s
                )
                running[mission.name] = mission
                mission.start()
            hear(crew.listen(LISTEN_S))
            for mission in [each for each in running.values() if each.over(time.monotonic())]:
                hear(mission.stop())
                outcomes[mission.line.name] = mission.count()
                del running[mission.name]
            doing = (f"{each.line.name} {each.outcome.closed}/{ROUNDS}" for each in running.values())
            tell(f"{len(outcomes)} of {len(lines)} are over; rounds closed: {', '.join(doing)}")
    finally:
        for _ in crew.stop():
            pass
    return outcomes


def _ends(folder: Path, board: str, link: str) -> dict[str, str]:
    """The two ports of a line, at which the cable is and the programs call."""
    if link == UDP:
        return {side: f"udp://127.0.0.1:{port}" for side, port in zip(SIDES, free_ports(2), strict=True)}
    return {side: str(folder / "ports" / f"{board}.{side}") for side in SIDES}


def _text(event: dict[str, Any]) -> str:
    """An event for a reader."""
    fields = {key: value for key, value in event.items() if key not in ("at", "level", "from", "event")}
    return f"{event['event']} " + " ".join(f"{key}={json.dumps(value)}" for key, value in fields.items())
