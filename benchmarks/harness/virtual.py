"""The programs' own main loops on a virtual clock: each in a thread that runs only while all others wait.

A program is what a user starts (`groundstation serve`, `onboard run`), from reading its folder on; only the
clock, the wait for ports and signals, and the ports themselves are this file's. What one end writes crosses a
seeded channel. A kill takes all that is in memory: the folder is put back as it was at that instant, so that
nothing counts that a thread does while it is ended.
"""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from firmware_sim.world.channel import Channel, Side
from firmware_sim.world.world import TICK_S, AirPort
from hw_profiles import Link
from onboard.console.errors import where
from onboard.console.signals import Stop

SHORTEST_WAIT_S = 1e-4  # of a loop that has more to do at once
UNIX_S = 1.8e9  # what the wall's clock says when the virtual one begins


def _shut() -> threading.Lock:
    """A lock that somebody waits for, until another thread releases it: a turn that is handed over."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class ProgramKilled(BaseException):
    """Ends a program's thread where it waits."""


@dataclass(frozen=True)
class Said:
    """One line of a program's log: by which program in which of its lives, and when."""

    program: str
    life: int
    at_s: float
    level: int
    event: str
    fields: Mapping[str, Any]


class VirtualProgram(threading.Thread):
    """One life of a program. `ended`: how it came to its end, empty while it runs."""

    def __init__(self, world: VirtualWorld, name: str, life: int, main: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.life, self.ended, self.ended_at = life, "", 0.0
        self.wake_at = world.now
        self.is_killed = False
        self.stop: Stop | None = None  # once it can be stopped in order
        self._world, self._main = world, main
        self._turn = _shut()

    def run(self) -> None:
        self._turn.acquire()
        try:
            if not self.is_killed:
                self._main()
            self.ended = "by itself"
        except ProgramKilled:
            self.ended = "killed"
        except SystemExit as error:
            self.ended = f"exit {error.code}"
        except BaseException as error:
            self.ended = where(error)
        finally:
            self.ended_at = self._world.now
            self._world.turned.release()

    def resume(self) -> None:
        """Runs it until it waits again or has ended."""
        self._turn.release()
        self._world.turned.acquire()

    def park(self, wake_at: float) -> None:
        """Called in its own thread: lets others run until then. Raises Killed."""
        if not self.is_killed:
            self.wake_at = wake_at
            self._world.turned.release()
            self._turn.acquire()
        if self.is_killed:
            raise ProgramKilled

    def kill(self) -> None:
        """Ends its thread."""
        self.is_killed = True
        if not self.ended:
            self.resume()


@dataclass
class VirtualCable:
    """Between two programs; the one of `ground` sends at the link's downlink rate."""

    channel: Channel
    ends: Mapping[Side, str]  # names of programs
    ports: dict[Side, AirPort] = field(default_factory=dict)

    def side_of(self, program: str) -> Side:
        """Raises KeyError for a program that is not at this cable."""
        return {name: side for side, name in self.ends.items()}[program]


class VirtualWorld:
    """Programs, the cables between them by the URL of both their ports, and one clock."""

    def __init__(self, seed: str) -> None:
        self.now = 1000.0
        self.said: list[Said] = []
        self.turned = _shut()  # a program's turn is over
        self._random = random.Random(seed)
        self._programs: dict[str, VirtualProgram] = {}
        self._cables: dict[str, VirtualCable] = {}

    # programs

    def start(self, name: str, main: Callable[[], None]) -> None:
        """Begins a life of the program: it runs when the clock moves next."""
        before = self._programs.get(name)
        program = VirtualProgram(self, name, 1 if before is None else before.life + 1, main)
        self._programs[name] = program
        program.start()

    def kill(self, name: str, folder: Path) -> None:
        """As kill -9: `folder`, which is all that it writes to, stays as it is now."""
        kept = folder.with_name(f"{folder.name}.kept")
        shutil.copytree(folder, kept, symlinks=True)
        self._programs[name].kill()
        self._unplug(name)
        shutil.rmtree(folder)
        kept.rename(folder)

    def stop(self, name: str) -> None:
        """As SIGTERM, until the program has ended."""
        program = self._programs[name]
        if program.stop is not None:
            program.stop.caught.append(signal.SIGTERM)
        while not program.ended:
            program.resume()
        self._unplug(name)

    def close(self) -> None:
        """Ends all programs."""
        for program in self._programs.values():
            program.kill()
            program.join()

    def life(self, name: str) -> int:
        """Which life of a program is the present one, counted from 1."""
        return self._programs[name].life

    def ended(self, name: str) -> str:
        """How the program's present life ended; empty while it runs."""
        return self._programs[name].ended

    def ended_at(self, name: str) -> float:
        """When it did."""
        return self._programs[name].ended_at

    def current(self) -> VirtualProgram | None:
        """The program in whose thread this is called."""
        thread = threading.current_thread()
        return thread if isinstance(thread, VirtualProgram) and thread._world is self else None

    # ports

    def lay(self, url: str, link: Link, ground: str, board: str) -> None:
        """A cable between two programs, whose ports both are at `url`."""
        self._cables[url] = VirtualCable(
            Channel(link, seed=self._random.getrandbits(32)), {"ground": ground, "board": board}
        )

    def opener(self, url: str, link: Link, tap: object = None) -> Callable[[], AirPort]:
        """In place of `onboard.link.ports.schemes.opener`."""

        def opened() -> AirPort:
            program, cable = self.current(), self._cables[url]
            assert program is not None, "a port is opened by a program"
            side = cable.side_of(program.name)

            def send(wire: bytes) -> None:
                if not program.is_killed:
                    cable.channel.send(side, wire, self.now)

            port = cable.ports[side] = AirPort(side, link, send)
            return port

        return opened

    def _unplug(self, name: str) -> None:
        for cable in self._cables.values():
            for side, end in cable.ends.items():
                if end == name:
                    cable.ports.pop(side, None)

    # time

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Lets time pass until that holds; returns whether it does, after `limit_s` at most."""
        end_s = self.now + limit_s
        while not until():
            for cable in self._cables.values():
                for side, wire in cable.channel.due(self.now):
                    if (port := cable.ports.get(side)) is not None:
                        port.hear(wire)
                        self._programs[cable.ends[side]].wake_at = self.now
            for program in list(self._programs.values()):
                if not program.ended and program.wake_at <= self.now:
                    self.turn(program.name, program.resume)
                    if program.ended:
                        self._unplug(program.name)
            wakes = [program.wake_at for program in self._programs.values() if not program.ended]
            wake_at = min([*wakes, *(cable.channel.next_due() for cable in self._cables.values())])
            if wake_at > end_s:
                if until():
                    return True
                self.now = end_s
                return until()
            self.now = max(self.now + TICK_S, wake_at)
        return True

    def turn(self, name: str, resume: Callable[[], None]) -> None:
        """A program's turn; it takes no time."""
        resume()

    def wait(self, pumps: Iterable[object], timeout_s: float, also: Iterable[int] = ()) -> None:
        """In place of `onboard.link.pump.wait`: a port that brings something wakes its program."""
        program = self.current()
        assert program is not None, "only a program waits"
        program.park(self.now + max(timeout_s, SHORTEST_WAIT_S))

    def clock(self) -> float:
        """In place of `time.monotonic`."""
        return self.now

    def wall(self) -> float:
        """In place of `time.time`."""
        return self.now + UNIX_S

    @property
    def time(self) -> SimpleNamespace:
        """In place of the module `time`."""
        return SimpleNamespace(monotonic=self.clock, time=self.wall)

    @contextlib.contextmanager
    def stop_signals(self) -> Iterator[Stop]:
        """In place of `onboard.console.signals.stop_signals`."""
        program = self.current()
        assert program is not None, "only a program is stopped"
        program.stop = Stop(-1)
        yield program.stop

    # what is said

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block what the programs log is in `said`."""
        world = self

        class VirtualListener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                program = world.current()
                if program is not None and not program.is_killed:
                    fields = getattr(record, "fields", {})
                    world.said.append(
                        Said(
                            program.name, program.life, world.now, record.levelno, record.getMessage(), fields
                        )
                    )

        root, listener = logging.getLogger(), VirtualListener()
        level = root.level
        root.addHandler(listener)
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.removeHandler(listener)
            root.setLevel(level)
