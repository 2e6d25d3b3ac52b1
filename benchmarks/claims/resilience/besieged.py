"""A mission whose programs are killed, stopped and lied to about the time: a ground daemon and two boards.

They are the programs that a user starts, each a process, on UDP or on emulated cables. What was done to one
is undone after a while: killed it starts again, stopped it goes on. Nobody else may end them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ends import stepped_clock
from benchmarks.harness.lab import LabError, init_mission, share_digits
from firmware_sim.runs.processes import ProcessGroup, free_ports

BOARDS = ("one", "two")
GROUND = "ground"
PROGRAMS = (GROUND, *BOARDS)
IMAGES = 30  # a board
ROUNDS = 60_000  # more than anybody waits for
PORTS_WITHIN_S = 30.0
UDP, SERIAL = "bench-udp", "bench-serial-115k2"


Said = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class FaultKind:
    """A mission by its links, a profile for each board."""

    name: str
    links: tuple[str, str]
    encrypted: bool = False


KINDS = (
    FaultKind("udp", (UDP, UDP)),
    FaultKind("serial", (SERIAL, SERIAL)),
    FaultKind("encrypted", (UDP, SERIAL), encrypted=True),
)


@dataclass
class BesiegedProgram:
    """One of the three, over all its lives. `due_at`: when what was done to it is undone."""

    name: str
    command: tuple[str, ...]
    clock: Path
    life: int = 0
    state: str = "down"  # or up, stopped
    due_at: float = 0.0
    started_at: float = 0.0
    unlinked: set[str] = field(default_factory=set)  # links that this life has not agreed on a salt for


class Besieged:
    """The mission in `folder`, which is made. Its programs belong to `crew`; `said` is told what its members
    say while one of them ends."""

    def __init__(
        self, kind: FaultKind, crew: ProcessGroup, folder: Path, deadline_s: float, said: Said
    ) -> None:
        self.kind, self.folder, self._crew, self._said = kind, folder, crew, said
        self.mission = folder / "mission"
        self.up_s = 0.0  # in which the ground served, and a board ran
        self.undisturbed_since = 0.0
        self.link_s: list[float] = []  # from a start to an agreed salt, where nothing else was done meanwhile
        self.ended: list[str] = []  # programs that nobody had killed, with their last words
        self._serves = False
        self._turned_at = time.monotonic()
        self._cables: list[Path] = []
        self._found(deadline_s)
        self.programs = {name: self._program(name) for name in PROGRAMS}

    # what it takes

    def _found(self, deadline_s: float) -> None:
        (self.folder / "ports").mkdir(parents=True)
        nodes = []
        for board, link in zip(BOARDS, self.kind.links, strict=True):
            ends = self._ends(board, link)
            encrypt = ",encrypt=true" if self.kind.encrypted else ""
            nodes.append(f"{board},link={link},cpu-share=1,port={ends[0]},board-port={ends[1]}{encrypt}")
        init_mission(self.mission, nodes, "--rounds", str(ROUNDS), "--deadline", str(deadline_s))
        share_digits(self.mission, BOARDS, IMAGES)

    def _ends(self, board: str, link: str) -> tuple[str, str]:
        """The ground's port and the board's; a serial one is an emulated cable's, which is laid here."""
        if link == UDP:
            (port,) = free_ports(1)
            return f"udp://?bind=127.0.0.1:{port}", f"udp://127.0.0.1:{port}"
        ends = [self.folder / "ports" / f"{board}.{side}" for side in ("ground", "board")]
        self._crew.start(
            f"{self.kind.name}:cable-{board}:1", "firmware_sim", "cable", "--link", link,
            "--ground", str(ends[0]), "--board", str(ends[1]),
        )  # fmt: skip
        self._cables += ends
        return str(ends[0]), str(ends[1])

    def _program(self, name: str) -> BesiegedProgram:
        clock = self.folder / f"{name}.clock"
        stepped_clock.make(clock)
        if name == GROUND:
            command: tuple[str, ...] = ("groundstation", "serve", str(self.mission), "--log", "json")
        else:
            toml = self.mission / "boards" / name / "node.toml"
            command = ("onboard", "run", str(toml), "--wait", "--log", "json")
        return BesiegedProgram(name, command, clock)

    def start(self) -> None:
        """Starts all three. Raises LabError where a cable is not there in time."""
        until = time.monotonic() + PORTS_WITHIN_S
        while not all(path.exists() for path in self._cables):
            if time.monotonic() > until:
                raise LabError(f"{self.kind.name}: no ports after {PORTS_WITHIN_S:.0f} s")
            time.sleep(0.05)
        for program in self.programs.values():
            self._start(program, time.monotonic())

    # what is done to it

    def kill(self, name: str, now: float, off_s: float) -> None:
        """kill -9; it starts again after `off_s`."""
        program = self.programs[name]
        member = self._member(program)
        member.process.kill()
        member.process.wait()
        self._done_to(program, "down", now, off_s)
        self._take_leave([member.name])

    def stop(self, name: str, now: float, for_s: float) -> None:
        """SIGSTOP; it goes on after `for_s`."""
        program = self.programs[name]
        self._member(program).process.send_signal(signal.SIGSTOP)
        self._done_to(program, "stopped", now, for_s)

    def is_off_for(self, name: str, now: float) -> float:
        """Seconds until what was done to it is undone; 0 while it is up."""
        program = self.programs[name]
        return 0.0 if program.state == "up" else program.due_at - now

    def step(self, name: str, ahead_s: float) -> None:
        """Its wall clock is ahead by so much."""
        stepped_clock.step(self.programs[name].clock, ahead_s)

    def _done_to(self, program: BesiegedProgram, state: str, now: float, for_s: float) -> None:
        self._pass(now)
        program.state, program.due_at = state, now + for_s
        self.undisturbed_since = now + for_s
        if state == "down" and program.name == GROUND:
            self._serves = False

    # time

    def turn(self, now: float, *, undo: bool = False) -> None:
        """Undoes what is due, or with `undo` all; notes who ended."""
        self._pass(now)
        for program in self.programs.values():
            if program.state == "up" and (why := self._death(program)):
                self.ended.append(why)
                self._serves &= program.name != GROUND
                program.state, program.due_at = "down", now + 1.0
                self._take_leave([self._member_name(program)])
            if program.state != "up" and (undo or now >= program.due_at):
                self._undo(program, now)

    def _death(self, program: BesiegedProgram) -> str:
        member = self._member(program)
        if member.process.poll() is None:
            return ""
        code = member.process.returncode
        return f"{member.name} ended with {code}: {member.last_words()} ({member.errors})"

    def _undo(self, program: BesiegedProgram, now: float) -> None:
        self.undisturbed_since = now
        if program.state == "down":
            self._start(program, now)
        else:
            self._member(program).process.send_signal(signal.SIGCONT)
            program.state = "up"

    def _pass(self, now: float) -> None:
        up = [name for name, program in self.programs.items() if program.state == "up"]
        if self._serves and GROUND in up and len(up) > 1:
            self.up_s += now - self._turned_at
        self._turned_at = now

    def _start(self, program: BesiegedProgram, now: float) -> None:
        program.life += 1
        program.state, program.started_at = "up", now
        program.unlinked = set(BOARDS) if program.name == GROUND else {GROUND}
        self._crew.start(
            self._member_name(program), "benchmarks.ends.stepped_clock", str(program.clock), *program.command
        )

    # what they say

    def hear(self, program: str, event: dict[str, Any], now: float) -> None:
        """One of them said something."""
        name = event.get("event")
        if program == GROUND and name == "serving":
            self._pass(now)
            self._serves = True
        if name == "rekeyed" and program in self.programs:
            this = self.programs[program]
            peer = str(event.get("node", GROUND))
            if peer in this.unlinked:
                this.unlinked.discard(peer)
                if self.undisturbed_since <= this.started_at:
                    self.link_s.append(now - this.started_at)

    # its end

    def end(self) -> None:
        """Ends its programs in order (SIGTERM), the cables last."""
        mine = [name for name in self._crew.members if name.partition(":")[0] == self.kind.name]
        cables = [name for name in mine if ":cable-" in name]
        programs = {name: self._crew.members[name] for name in mine if name not in cables}
        self._take_leave(list(programs))
        self.ended += [
            f"{name} ended with {member.process.returncode} when it was asked to ({member.errors})"
            for name, member in programs.items()
            if member.process.returncode != 0
        ]
        self._take_leave(cables)

    def _take_leave(self, names: Sequence[str]) -> None:
        for member, event in self._crew.stop(names):
            self._said(member, event)

    def tracebacks(self, logs: Path) -> list[str]:
        """Files in which a program that was started here wrote one."""
        found = sorted(logs.glob(f"{self.kind.name}-*.err"))
        return [str(path) for path in found if "Traceback" in path.read_text(errors="replace")]

    def _member_name(self, program: BesiegedProgram) -> str:
        return f"{self.kind.name}:{program.name}:{program.life}"

    def _member(self, program: BesiegedProgram) -> Any:
        return self._crew.members[self._member_name(program)]
