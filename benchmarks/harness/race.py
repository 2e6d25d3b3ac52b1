"""One object from a board to the ground by one protocol, over one emulated link between two namespaces.

Three processes: the link (`air`) and an end at either side of it. Times are those that the ends tell, all by
this computer's monotonic clock; bytes are the link's. Many races go on at once: nearly all that they do on
slow links is to wait.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.claims.link.transfer import payload_of
from benchmarks.harness.lab import LabError
from firmware_sim.runs.processes import ProcessGroup
from firmware_sim.world.channel import SIDES, Side
from hw_profiles import Link, load_link
from onboard.link.ports.udp import IPV4_UDP_BYTES
from onboard.wire.framing.frame import OVERHEAD_BYTES

LIMIT = 6.0  # times what the bound takes: then it did not end
LEAST_LIMIT_S = 20.0
QUEUE_PACKETS = 10  # of a modem on a slow link; twice the bandwidth-delay product where that is more
STARTS_WITHIN_S = 60.0  # three times Python with all its imports, for every race at once
LISTEN_S = 0.05


@dataclass(frozen=True)
class Course:
    """A link with its losses and an object to bring over it; IP packets of at most `mtu_bytes`.

    outage_s: so long nothing passes, from a moment in the middle half of the bound's time.
    alone: too fast for other races beside it.
    """

    name: str
    rate_bps: float
    delay_s: float
    mtu_bytes: int
    size_bytes: int
    loss: float = 0.0
    outage_s: float = 0.0
    alone: bool = False

    @property
    def link(self) -> Link:
        """The profile, with frames that fit a packet."""
        return replace(
            load_link("bench-udp"), rate_up_bps=self.rate_bps, rate_down_bps=self.rate_bps,
            mtu_bytes=self.mtu_bytes - IPV4_UDP_BYTES, delay_s=self.delay_s,
        )  # fmt: skip

    @property
    def airtime_s(self) -> float:
        """Of the object in frames of full packets, those that are lost included."""
        payload_bytes = self.mtu_bytes - IPV4_UDP_BYTES - OVERHEAD_BYTES
        return 8 * self.size_bytes * self.mtu_bytes / payload_bytes / (self.rate_bps * (1 - self.loss))

    @property
    def limit_s(self) -> float:
        """Whoever takes longer did not end."""
        return max(LEAST_LIMIT_S, LIMIT * (self.airtime_s + self.outage_s))

    @property
    def queue_bytes(self) -> int:
        """Of the modem at either end."""
        return max(QUEUE_PACKETS * self.mtu_bytes, int(2 * 2 * self.delay_s * self.rate_bps / 8))

    def outage(self, seed: int) -> tuple[float, float] | None:
        """When nothing passes, seconds from the first packet."""
        if not self.outage_s:
            return None
        begin_s = random.Random(seed).uniform(0.25, 0.75) * self.airtime_s
        return begin_s, begin_s + self.outage_s


@dataclass(frozen=True)
class Racer:
    """A protocol: the module that is an end of it, who runs that, and what each end is told besides."""

    name: str
    module: str
    interpreter: str
    spec: Callable[[Course, Side], dict[str, Any]]


@dataclass(frozen=True)
class RaceOutcome:
    """`arrived_s`: from the start until the last byte was there, None if it was not in time, or wrong.
    `wire_bytes`: of all IP packets on the air, both ways, until the sender knew, or all was over."""

    arrived_s: float | None
    wire_bytes: int


class Race:
    """The three processes of one transfer, and what they said."""

    def __init__(
        self, crew: ProcessGroup, folder: Path, name: str, course: Course, racer: Racer, seed: int
    ) -> None:
        self.name, self.course, self.racer, self.seed = name, course, racer, seed
        self._crew, self._folder = crew, folder
        self._said: dict[tuple[str, str], dict[str, Any]] = {}
        self._namespaces: dict[str, str] = {}
        self._over_s = time.monotonic() + STARTS_WITHIN_S
        self._title = f"{course.name}, {racer.name}"

    @cached_property
    def object(self) -> bytes:
        """What is sent."""
        return payload_of(self.course.size_bytes, 1)

    def start(self) -> None:
        """Starts the link; its ends follow as the processes tell that they are ready."""
        self._folder.mkdir()
        (self._folder / "object").write_bytes(self.object)
        course = self.course
        spec = {
            "link": asdict(course.link), "mtu_bytes": course.mtu_bytes, "queue_bytes": course.queue_bytes,
            "loss": course.loss, "seed": self.seed, "outage_s": course.outage(self.seed),
        }  # fmt: skip
        self._crew.start(self._member("air"), "benchmarks.harness.air", json.dumps(spec))

    def hear(self, role: str, event: dict[str, Any]) -> None:
        """One of the three said something."""
        self._said.setdefault((role, event["event"]), event)
        if event["event"] == "Up":
            self._namespaces = event["namespaces"]
            self._start_end("ground")
        elif (role, event["event"]) == ("ground", "PortUp"):
            self._start_end("board")
        elif event["event"] == "Offered":
            self._over_s = event["at_s"] + self.course.limit_s

    def over(self, now: float) -> bool:
        """Whether the sender knows, an end has given up, or time is up. Raises LabError for a process that
        ended."""
        for member in self._crew.ended():
            if member.name.partition(":")[0] == self.name:
                raise LabError(f"{self._title}: {member.name} ended: {member.last_words()}")
        if now > self._over_s and ("board", "Offered") not in self._said:
            raise LabError(f"{self._title}: not started in {STARTS_WITHIN_S:.0f} s")
        gave_up = any((side, "Failed") in self._said for side in SIDES)
        done = ("board", "Delivered") in self._said and ("ground", "Whole") in self._said
        return done or gave_up or now > self._over_s

    def stop(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Ends the three; yields what all races say until they have ended. The link's last word is what it
        carried."""
        names = (self._member(role) for role in ("air", *SIDES))
        return self._crew.stop([name for name in names if name in self._crew.members])

    def outcome(self) -> RaceOutcome:
        """Once all three have ended."""
        carried = self._said["air", "Carried"]
        arrived = self._said.get(("ground", "Arrived"))
        whole = self._said.get(("ground", "Whole"))
        right = whole is not None and whole["sha256"] == hashlib.sha256(self.object).hexdigest()
        arrived_s = None
        if arrived is not None and right:
            arrived_s = arrived["at_s"] - self._said["board", "Offered"]["at_s"]
        return RaceOutcome(arrived_s, sum(carried[side]["bytes"] for side in SIDES))

    def _start_end(self, side: Side) -> None:
        spec = {
            "side": side, "namespace": self._namespaces[side], "folder": str(self._folder / side),
            "path": str(self._folder / "object"),
            **self.racer.spec(self.course, side),
        }  # fmt: skip
        self._crew.start(
            self._member(side), self.racer.module, json.dumps(spec), interpreter=self.racer.interpreter
        )

    def _member(self, role: str) -> str:
        return f"{self.name}:{role}"


def run_all(
    entries: Sequence[tuple[Course, Racer, int]], at_once: int
) -> Generator[list[tuple[int, RaceOutcome]], None, None]:
    """Runs a race for each (course, racer, seed), the longest first. Yields again and again those that have
    ended since, each with its entry's number. Raises LabError. Nothing is left when it ends or is closed."""
    waiting = sorted(range(len(entries)), key=lambda entry: entries[entry][0].limit_s)
    running: dict[str, Race] = {}

    def hear(said: Iterator[tuple[str, dict[str, Any]]]) -> None:
        for who, event in said:
            name, _, role = who.partition(":")
            running[name].hear(role, event)

    with TemporaryDirectory(prefix="spacedml-race-") as folder:
        crew = ProcessGroup(Path(folder) / "logs")
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    number = waiting.pop()
                    race = Race(crew, Path(folder) / str(number), str(number), *entries[number])
                    running[race.name] = race
                    race.start()
                hear(crew.listen(LISTEN_S))
                ended = [race for race in running.values() if race.over(time.monotonic())]
                for race in ended:
                    hear(race.stop())
                    del running[race.name]
                yield [(int(race.name), race.outcome()) for race in ended]
        finally:
            for _ in crew.stop():
                pass
