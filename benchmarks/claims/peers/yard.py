"""The programs of one contender in a star of network namespaces, and what they cost there.

The processes of a board are all those in its namespace, whoever started them; its bytes are those of all IP
packets on its link.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from benchmarks.claims.peers.star import StarSpec
from benchmarks.harness import process
from benchmarks.harness.lab import LabError
from firmware_sim.runs.processes import ProcessGroup
from firmware_sim.world.channel import SIDES, Side

LISTEN_S = 0.02
UP_WITHIN_S = 120.0
IDLE_SHARE, IDLE_S = 0.05, 3.0  # a board that uses less than this share of a core for so long has started

T = TypeVar("T")
N = TypeVar("N", int, float)
Turns = Generator[None, None, T]
"""Something that goes on beside others: a turn ends where there is nothing to do but to wait."""
Carried = dict[str, dict[Side, int]]
"""Bytes of IP packets, by board and by the side that sent them."""


class Yard:
    """One star, the programs in its namespaces, and what they said."""

    def __init__(self, crew: ProcessGroup, name: str, folder: Path, spec: StarSpec) -> None:
        self.name, self.folder, self.spec = name, folder, spec
        self.said: dict[str, list[dict[str, Any]]] = defaultdict(list)  # by program, its log's JSON lines
        self._crew = crew
        self._namespaces: dict[str, str] = {}
        self._carried: list[tuple[float, Carried]] = []
        folder.mkdir()
        crew.start(f"{name}:star", "benchmarks.claims.peers.star", msgspec.json.encode(spec).decode())

    def hear(self, role: str, event: dict[str, Any]) -> None:
        """One of its programs said something."""
        if role != "star":
            self.said[role].append(event)
        elif event["event"] == "Up":
            self._namespaces = event["namespaces"]
        else:
            self._carried.append((event["at_s"], event["carried"]))

    def until(self, is_so: Callable[[], bool], within_s: float, otherwise: str) -> Turns[None]:
        """Waits for it. Raises LabError after `within_s`."""
        deadline_s = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > deadline_s:
                raise LabError(f"{self.name}: {otherwise} after {within_s:.0f} s")
            yield

    def up(self) -> Turns[None]:
        """Waits for the namespaces. Raises LabError."""
        yield from self.until(lambda: bool(self._namespaces), UP_WITHIN_S, "no namespaces")

    def start(self, role: str, where: str, command: Sequence[str], settings: Mapping[str, str]) -> None:
        """Starts a program in the ground's or a board's namespace, with these environment variables."""
        words = ["env", *(f"{key}={value}" for key, value in settings.items()), *command]
        self._crew.start(f"{self.name}:{role}", "benchmarks.ends.inside", self._namespaces[where], *words)

    def listens(self, where: str, port: int) -> bool:
        """Whether a TCP server listens there."""
        for pid in process.in_namespace(self._namespaces[where]):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
                sockets = (line.split() for line in lines)  # proc(5): local address, remote address, state
                return any(each[1].endswith(f":{port:04X}") and each[3] == "0A" for each in sockets)
        return False

    def processes(self, board: str) -> list[int]:
        """Those of a board, without what put the first of them there."""
        launchers = {member.process.pid for member in self._crew.members.values()}
        return [pid for pid in process.in_namespace(self._namespaces[board]) if pid not in launchers]

    def cpu_s(self, board: str) -> float:
        """CPU time of a board's processes so far, and of their children that have ended."""
        return sum(self._of(board, process.cpu_s))

    def share_bytes(self, board: str) -> int:
        """Proportional set sizes of a board's processes."""
        return sum(self._of(board, process.share_bytes))

    def resident_bytes(self, board: str) -> int:
        """Resident memory of a board's processes; a page that several of them have counts for each."""
        return sum(self._of(board, lambda pid: process.memory(pid).resident_bytes))

    def carried(self, at_s: float) -> Carried:
        """The last count before `at_s`."""
        none: Carried = {board: dict.fromkeys(SIDES, 0) for board in self.spec.boards}
        return next((carried for told_s, carried in reversed(self._carried) if told_s <= at_s), none)

    def settled(self) -> Turns[None]:
        """Waits until the boards have started and do little. Raises LabError."""
        deadline_s = time.monotonic() + UP_WITHIN_S
        busy = True
        while busy:
            before = [self.cpu_s(board) for board in self.spec.boards]
            yield from wait(IDLE_S)
            after = [self.cpu_s(board) for board in self.spec.boards]
            used_s = max(late - early for early, late in zip(before, after, strict=True))
            busy = not all(after) or used_s > IDLE_SHARE * IDLE_S
            if busy and time.monotonic() > deadline_s:
                raise LabError(f"{self.name}: its boards are not idle after {UP_WITHIN_S:.0f} s")

    def _of(self, board: str, measured: Callable[[int], N]) -> Iterator[N]:
        for pid in self.processes(board):
            with contextlib.suppress(ProcessLookupError):
                yield measured(pid)


class Contest:
    """Yards side by side, on one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._crew = ProcessGroup(folder / "logs")
        self._yards: dict[str, Yard] = {}

    def yard(self, name: str, spec: StarSpec) -> Yard:
        """A new one, whose namespaces follow."""
        self._yards[name] = Yard(self._crew, name, self._folder / name, spec)
        return self._yards[name]

    def play(self, stories: Mapping[str, Turns[Any]], tell: Callable[[list[str]], None]) -> dict[str, Any]:
        """Runs all of them to their ends, and returns what they do; `tell` hears now and then which still
        go on. Raises LabError."""
        outcomes = dict[str, Any]()
        while left := [name for name in stories if name not in outcomes]:
            tell(left)
            self._hear(self._crew.listen(LISTEN_S))
            for member in self._crew.ended():
                if member.process.returncode:
                    raise LabError(f"{member.name} ended: {member.last_words()}")
            for name in left:
                try:
                    next(stories[name])
                except StopIteration as end:
                    outcomes[name] = end.value
        return outcomes

    def stop(self, yard: Yard) -> None:
        """Ends a yard's programs, the boards and the ground first, then the links."""
        names = [name for name in self._crew.members if name.partition(":")[0] == yard.name]
        star = f"{yard.name}:star"
        for some in ([name for name in names if name != star], [star]):
            self._hear(self._crew.stop(some))
        del self._yards[yard.name]

    def close(self) -> None:
        """Ends all programs."""
        for yard in [*self._yards.values()]:
            self.stop(yard)

    def _hear(self, said: Iterator[tuple[str, Any]]) -> None:
        for who, event in said:
            name, _, role = who.partition(":")
            if name in self._yards and isinstance(event, dict) and "event" in event:
                self._yards[name].hear(role, event)


def wait(wait_s: float) -> Turns[None]:
    """For so long."""
    until_s = time.monotonic() + wait_s
    while time.monotonic() < until_s:
        yield
