"""Beside Flower on the same link, with the same data and network: rounds, seconds, bytes, memory, CPU, cuts.

LeNet-5 on MNIST to 95 %, three boards of 600 images, 3 local epochs, the same variations of the images, the
same first weights; 256 kbit/s each way, 6.9 ms, a queue of 64 KiB at either end, every IP packet counted.
Each contender has network namespaces of its own, for a ground and three boards. Ours is `spacedml-fast`, and
`fedavg`, which sends what Flower sends: so transport and compression are told apart. Needs root, and a
virtual environment with flwr and torch (`--flower-python`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import click

from benchmarks.claims.peers.fleets import Contender, FlowerFleet, OurFleet, SharedTask, flower_version
from benchmarks.claims.peers.star import StarSpec
from benchmarks.claims.peers.stories import CutSeen, IdleSeen, RaceSeen, cut_off, idle, race
from benchmarks.claims.peers.yard import Contest, Turns, Yard
from benchmarks.claims.resilience.footprint import environment_of_a_user
from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from hw_profiles import load_link

OPTIONS = (
    click.Option(
        ["--flower-python"], metavar="PATH", default=None,
        help="The Python interpreter of a virtual environment with flwr and torch.",
    ),
    click.Option(
        ["--quick"], is_flag=True,
        help="On a link of 5 Mbit/s, one run each, no cuts, no slow link: under three minutes.",
    ),
)  # fmt: skip

BOARDS = ("board-1", "board-2", "board-3")
IMAGES, TARGET = 600, 0.95
RATE_BPS, SLOW_BPS, QUICK_BPS = 256e3, 64e3, 5e6
QUEUE_BYTES = 1 << 16
SEEDS = 3  # of our runs, whose medians count; one of Flower's takes minutes
CUT_S = 60.0
RACE_WITHIN_S = 900.0
LIMIT_S = 300.0  # of cuts and of the slow link
IDLE_S, QUICK_IDLE_S = 180.0, 60.0  # an agent reports every minute
LULL_S, SHORT_LULL_S = 110.0, 25.0  # before that: an end on UDP asks 15, 30 and 60 s after the last word

BYTES, SECONDS, MEMORY, IDLE, START = 200, 8, 5, 100, 5  # how many times better ours is at least
PREFIX = "spacedml-flower-"  # of folders
FLOWER, FAST, FEDAVG = "Flower", "spacedml-fast", "fedavg"
CUT_AFTER_BYTES = {FLOWER: 900_000, FEDAVG: 900_000, FAST: 2300}
"""A board's byte in the middle of its first update, what it said before included."""
Seen = dict[str, Any]
"""By name: a RaceSeen of Flower, of our fedavg and of each slow link, a list of them of `spacedml-fast`, an
IdleSeen of what is `idle`, a CutSeen of each `cut`."""


@dataclass(frozen=True)
class Entry:
    """A contender on a link. `cut_after_bytes`: see StarSpec."""

    who: str
    rate_bps: float
    seed: int = 0
    cut_after_bytes: int | None = None


def measure(tell: ProgressLine, *, flower_python: str | None, quick: bool) -> list[Row]:
    """Raises LabError, DataError."""
    try:
        version = version_of(flower_python)
    except LabError as error:
        return [Row(f"skipped: {error}", 0, "runs")]
    remove_left(Path(gettempdir()))
    with TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as name, environment_of_a_user():
        folder = Path(name)
        tasks = [
            SharedTask.create(folder / f"task-{seed}", BOARDS, IMAGES, TARGET, seed)
            for seed in range(1 if quick else SEEDS)
        ]
        with closing(Contest(folder)) as contest:
            meeting = Meeting(contest, tasks, Path(str(flower_python)), tell)
            seen = meeting.quick() if quick else meeting.whole()
    return [*rows(f"Flower {version}", seen, timed=not quick)]


def remove_left(folder: Path) -> None:
    """Removes what killed runs have left in `folder`; their processes and namespaces ended with them."""
    for left in folder.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)


def version_of(flower_python: str | None) -> str:
    """Flower's. Raises LabError where nothing can be measured."""
    if os.geteuid() != 0:
        raise LabError("network namespaces take root")
    if flower_python is None:
        raise LabError("--flower-python names no interpreter that has flwr and torch")
    return flower_version(flower_python)


class Meeting:
    """The contenders: one after the other where time counts, then side by side."""

    def __init__(
        self, contest: Contest, tasks: Sequence[SharedTask], python: Path, tell: ProgressLine
    ) -> None:
        self._contest, self._tasks, self._python, self._tell = contest, tasks, python, tell

    def whole(self) -> Seen:
        """What all stories saw, by name."""
        ours = list[RaceSeen]()
        for seed in range(SEEDS):
            own, seen = self._race(Entry(FAST, RATE_BPS, seed))
            ours.append(seen[FAST])
            if seed < SEEDS - 1:
                self._contest.stop(own)
        flower, theirs = self._race(Entry(FLOWER, RATE_BPS), idle(own, LULL_S, IDLE_S))
        stories: dict[str, Turns[Any]] = {
            f"{FLOWER}, idle": idle(flower, SHORT_LULL_S, IDLE_S),
            FEDAVG: race(*self._enter("dense", Entry(FEDAVG, RATE_BPS)), TARGET, RACE_WITHIN_S),
        }
        for who, after in CUT_AFTER_BYTES.items():
            entry = Entry(who, RATE_BPS, cut_after_bytes=after)
            stories[f"{who}, cut"] = cut_off(*self._enter(f"{who}-cut", entry), LIMIT_S)
        for who in (FLOWER, FAST):
            entry = Entry(who, SLOW_BPS)
            stories[f"{who}, slow"] = race(*self._enter(f"{who}-slow", entry), TARGET, LIMIT_S)
        return {**theirs, FAST: ours, **self._play(stories)}

    def quick(self) -> Seen:
        """The same of a fast link alone."""
        own, ours = self._race(Entry(FAST, QUICK_BPS))
        flower, theirs = self._race(Entry(FLOWER, QUICK_BPS), idle(own, SHORT_LULL_S, QUICK_IDLE_S))
        after = self._play({f"{FLOWER}, idle": idle(flower, 0.0, SHORT_LULL_S)})
        return {**theirs, FAST: [ours[FAST]], **after}

    def _race(self, entry: Entry, watched: Turns[IdleSeen] | None = None) -> tuple[Yard, Seen]:
        """A race with nobody beside it but idle boards that are watched. The programs stay. Raises LabError
        where it misses the target."""
        yard, fleet = self._enter(f"{entry.who}-{entry.seed}", entry)
        stories: dict[str, Turns[Any]] = {entry.who: race(yard, fleet, TARGET, RACE_WITHIN_S)}
        if watched is not None:
            stories[f"{FAST}, idle"] = watched
        seen = self._play(stories)
        if seen[entry.who].accuracy < TARGET:
            raise LabError(f"{entry.who}: {100 * seen[entry.who].accuracy:.1f} % after {RACE_WITHIN_S:.0f} s")
        return yard, seen

    def _enter(self, name: str, entry: Entry) -> tuple[Yard, Contender]:
        link = replace(
            load_link("sband-256k"), bit_error_rate=0.0,
            rate_up_bps=entry.rate_bps, rate_down_bps=entry.rate_bps,
        )  # fmt: skip
        spec = StarSpec(
            link=link, queue_bytes=QUEUE_BYTES, boards=[*BOARDS],
            cut_after_bytes=entry.cut_after_bytes, cut_s=CUT_S,
        )  # fmt: skip
        yard, task = self._contest.yard(name, spec), self._tasks[entry.seed]
        return yard, (
            FlowerFleet(yard, task, self._python) if entry.who == FLOWER else OurFleet(yard, task, entry.who)
        )

    def _play(self, stories: dict[str, Turns[Any]]) -> Seen:
        return self._contest.play(stories, lambda left: self._tell(f"waiting for {'; '.join(left)}"))


def rows(flower: str, seen: Seen, *, timed: bool) -> Iterator[Row]:
    """Of each quantity: Flower's, ours, and how many times better ours is. `timed`: on the link on which
    seconds are promised."""
    theirs, ours = seen[FLOWER], seen[FAST]
    idle_theirs, idle_ours = seen[f"{FLOWER}, idle"], seen[f"{FAST}, idle"]

    def both(
        what: str, unit: str, of: Callable[[RaceSeen], float], bound: float | None = None
    ) -> Iterator[Row]:
        yield from pair(what, unit, of(theirs), median(map(of, ours)), bound)

    def pair(what: str, unit: str, other: float, own: float, bound: float | None = None) -> Iterator[Row]:
        yield Row(f"{what}: {flower}", other, unit)
        yield Row("  ours", own, unit)
        yield Row("  Flower's over ours", other / own, "", bound, at_least=True)

    yield from both("rounds until 95 %", "rounds", lambda race: len(race.rounds))
    yield from both("seconds", "s", lambda race: race.seconds, SECONDS if timed else None)
    yield from both("bytes, both ways", "kB", lambda race: race.bytes_ / 1e3, BYTES)
    yield from both("  up", "kB", lambda race: race.up_bytes / 1e3)
    yield from both("  down", "kB", lambda race: race.down_bytes / 1e3)
    yield from both("a board's memory at most", "MB", lambda race: race.job.share_bytes / 1e6, MEMORY)
    yield from both("  as resident sets", "MB", lambda race: race.job.resident_bytes / 1e6)
    yield from both("idle before the job", "MB", lambda race: race.start.share_bytes / 1e6, MEMORY)
    yield from pair(
        "idle after the job",
        "MB",
        idle_theirs.after.share_bytes / 1e6,
        idle_ours.after.share_bytes / 1e6,
        MEMORY,
    )
    yield from pair(
        "idle link",
        "B a minute",
        idle_theirs.link_bytes,
        max(1.0, idle_ours.link_bytes),
        IDLE if timed else None,
    )
    yield from pair("idle CPU", "ms a minute", 1e3 * idle_theirs.cpu_s, max(0.1, 1e3 * idle_ours.cpu_s))
    yield from both("CPU to start a board", "s", lambda race: race.start.cpu_s, START)
    yield from both("a board's CPU for the job", "s", lambda race: race.job.cpu_s)
    if FEDAVG in seen:
        yield from _beside(seen)


def _beside(seen: Seen) -> Iterator[Row]:
    """What is seen on slow links alone."""
    dense: RaceSeen = seen[FEDAVG]
    yield Row("our fedavg: rounds until 95 %", len(dense.rounds), "rounds")
    yield Row("  seconds", dense.seconds, "s")
    yield Row("  bytes, both ways", dense.bytes_ / 1e3, "kB")
    yield Row("  best accuracy", 100 * dense.accuracy, "%", 100 * TARGET, at_least=True)
    for who in CUT_AFTER_BYTES:
        cut: CutSeen = seen[f"{who}, cut"]
        bound = None if who == FLOWER else len(BOARDS)
        yield Row(f"{CUT_S:.0f} s cut in mid-update, {who}: sent for it", cut.more_bytes / 1e3, "kB more")
        closed = "closed with" if cut.results else f"not closed in {LIMIT_S:.0f} s,"
        yield Row(f"  the round is {closed}", cut.results, "of 3 updates", bound, at_least=True)
        yield Row("  seconds", cut.seconds, "s")
    for who in (FLOWER, FAST):
        slow: RaceSeen = seen[f"{who}, slow"]
        reached = slow.accuracy >= TARGET
        what = "95 % after" if reached else f"95 % not reached in the limit of {LIMIT_S:.0f} s; stopped after"
        yield Row(f"64 kbit/s, {who}: {what}", slow.seconds, "s", None if who == FLOWER else LIMIT_S)
        yield Row("  rounds closed", len(slow.rounds), "rounds")
        yield Row("  updates in them", sum(each.results for each in slow.rounds), "updates")
        yield Row("  bytes, both ways", slow.bytes_ / 1e3, "kB")
