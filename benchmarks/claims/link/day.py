"""Twenty-four hours of passes with four nodes: no leak, no stuck object, airtime within the budget.

A ground station and three boards, each with a `uhf-9k6` link, a contact plan and allowances of its own.
Models go down and updates up, with pictures that no contact carries whole and more of them than a day does,
quick looks whose deadlines pass, health, commands. Passes are missed or cut, frames lost in bursts and played
again, ends killed in passes and between them, the ground's all at once, and a board loses its disk. Then
traffic and trouble are over, and all that was offered must come to an end. Journal, spool, pump and session
are the programs' own, on the virtual clock.
"""

from __future__ import annotations

import heapq
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from itertools import count

import click

from benchmarks.harness.held import Held, held
from benchmarks.harness.leg import LOOK_S, Leg
from benchmarks.harness.pair import Broken
from benchmarks.harness.passes import ORBIT_S, gaps
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from firmware_sim.world.channel import SIDES, Side
from firmware_sim.world.disk import scratch

HOURS, BOARDS = 24.0, 3
DRAIN_S = 36 * 3600.0  # until the allowance of another day is there, and was used
PICTURES, PICTURE_BYTES = 6, 170_000  # so many wait at each board, and one is more than a contact may carry
HEALTH_S = 60.0
WARM_S = 2 * ORBIT_S
STUCK_S = 180.0  # of contact in which something must have gone on: nine turns of ten seconds
RULES = (
    "every object arrives identical",
    "nothing is delivered twice",
    "what is said to be delivered has arrived",
    "what was saved is there",
)
GROWN_BYTES, GROWN_OBJECTS = 64 << 10, 1000  # six ends; a day's allowance and 256 digests each take that
TABLE = 1024  # the largest of a session's: the peer's object ids
JOURNAL_BYTES = 32 << 10

OPTIONS = (
    click.Option(["--seeds"], type=click.IntRange(1), default=1, help="How many days, each with a seed."),
    click.Option(["--hours"], type=click.FloatRange(1.0), default=HOURS, help="Of traffic and trouble."),
    click.Option(["--boards"], type=click.IntRange(1, 20), default=BOARDS, help="Of the one ground."),
)


class Day:
    """One seed's day; `play` it once."""

    def __init__(self, seed: int, *, hours: float = HOURS, boards: int = BOARDS) -> None:
        self.seed, self.boards, self.calm_s = seed, boards, hours * 3600
        self.held: list[tuple[float, Held]] = []
        self.left = self.idle_bytes = self.stray_files = self.journal_bytes = 0
        self.legs: list[Leg] = []
        self._random = random.Random(seed)
        self._script: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    @property
    def tally(self) -> Counter[str]:
        """Of all links."""
        return sum((leg.tally for leg in self.legs), Counter())

    def play(self, tell: Callable[[float], None] = lambda hours: None) -> None:
        """Raises Broken."""
        with ExitStack() as stack:
            folder = stack.enter_context(scratch())
            tracemalloc.start()
            stack.callback(tracemalloc.stop)
            until_s = self.calm_s + DRAIN_S
            for nth in range(self.boards):
                name = folder / f"board-{nth}"
                self.legs.append(Leg(nth, name, seed=self.seed, calm_s=self.calm_s, until_s=until_s))
            self._write()
            self._run(self.calm_s, tell)
            for leg in self.legs:
                for side in SIDES:
                    leg.boot(side)
            self._run(until_s, tell, stop=lambda: not any(leg.wanted for leg in self.legs))
            self.left = sum(len(leg.wanted) for leg in self.legs)
            self._rest()

    @property
    def grown(self) -> Held:
        """From after two orbits to when all had ended."""
        last_s, last = self.held[-1]
        warm = next(each for at_s, each in self.held if at_s >= min(WARM_S, last_s))
        return Held(*(getattr(last, f.name) - getattr(warm, f.name) for f in fields(Held)))

    # -- the script ------------------------------------------------------------------------------------

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._script, (when, next(self._order), act))

    def _write(self) -> None:
        """All that will happen."""
        for leg in self.legs:
            for orbit in range(int(self.calm_s / ORBIT_S) + 1):
                self._traffic(leg, orbit * ORBIT_S)
            for window in leg.plan:
                looks = int((window.set - window.rise) / LOOK_S) + 1
                for nth in range(looks):
                    self._at(window.rise + nth * LOOK_S, leg.look)
                if window.rise < self.calm_s:
                    self._pass(leg, window.rise, window.set)
        orbits = int(self.calm_s / ORBIT_S) + 1
        for leg in self.legs[1:]:  # the first one's board runs through: what leaks may add up
            for _ in range(orbits // 2):
                self._outage("board", [leg], self.calm_s)
        for _ in range(orbits // 3):
            self._outage("ground", self.legs, self.calm_s / 2)
        self._at(0.4 * self.calm_s, self.legs[-1].lose_disk)
        for gap_s in gaps([leg.plan for leg in self.legs], self.calm_s):
            self._at(gap_s, self._measure)

    def _traffic(self, leg: Leg, from_s: float) -> None:
        """What is offered in an orbit."""
        rnd = self._random
        until_s = min(from_s + ORBIT_S, self.calm_s)

        def offer(side: Side, size_bytes: int, priority: int, deadline_s: float | None = None) -> None:
            act = lambda: leg.offer(side, size_bytes, priority=priority, deadline_s=deadline_s)  # noqa: E731
            self._at(rnd.uniform(from_s, until_s), act)

        offer("board", rnd.randrange(3_000, 20_000), 4)
        for _ in range(2):
            offer("board", rnd.randrange(500, 5_000), 2, rnd.uniform(5, 90))
        for _ in range(2):
            self._at(rnd.uniform(from_s, until_s), lambda: self._picture(leg))
        if rnd.random() < 0.4:
            offer("ground", rnd.randrange(20_000, 40_000), 4)
        if rnd.random() < 0.3:
            offer("ground", rnd.randrange(80_000, 160_000), 6, rnd.uniform(1_000, 4_000))
        if rnd.random() < 0.15:
            self._at(rnd.uniform(from_s, until_s), leg.take_back)

    def _picture(self, leg: Leg) -> None:
        """One more, if there is room in the board's memory."""
        if sum(wanted.size_bytes >= PICTURE_BYTES for wanted in leg.wanted.values()) < PICTURES:
            size_bytes = self._random.randrange(PICTURE_BYTES, 2 * PICTURE_BYTES)
            leg.offer("board", size_bytes, priority=6, deadline_s=self._random.uniform(1_000, 4_000))

    def _pass(self, leg: Leg, rise: float, set_: float) -> None:
        """Health every minute, some commands, some replays."""
        rnd = self._random
        for nth in range(int((set_ - rise) / HEALTH_S) + 1):
            self._at(rise + nth * HEALTH_S, lambda: leg.tell("board", bytes(30)))
        for _ in range(3):
            self._at(rnd.uniform(rise, set_), lambda: leg.tell("ground", b"command"))
        for _ in range(6):
            self._at(rnd.uniform(rise, set_), leg.replay)

    def _outage(self, side: Side, legs: list[Leg], before_s: float) -> None:
        """One program is down for a while: most often killed in a pass, if not for all of it."""
        rnd = self._random
        begin = rnd.uniform(0, before_s)
        windows = [window for leg in legs for window in leg.plan if window.rise < before_s]
        if windows and rnd.random() < 0.6:
            window = rnd.choice(windows)
            begin = rnd.uniform(window.rise, window.set)
        lasts_s = rnd.choice((rnd.uniform(0.2, 5), rnd.uniform(5, 200), rnd.uniform(200, 7200)))
        for leg in legs:
            self._at(begin, lambda leg=leg: leg.kill(side))  # type: ignore[misc]
            self._at(begin + lasts_s, lambda leg=leg: leg.boot(side))  # type: ignore[misc]

    # -- the clock -------------------------------------------------------------------------------------

    def _run(
        self, until_s: float, tell: Callable[[float], None], stop: Callable[[], bool] = lambda: False
    ) -> None:
        while self._script and self._script[0][0] <= until_s and not stop():
            when, _, act = heapq.heappop(self._script)
            for leg in self.legs:
                leg.run(when)
            act()
            tell(when / 3600)

    def _measure(self) -> None:
        """A moment without any contact; if a program is down, it is left out."""
        pumps = [end.pump for leg in self.legs for end in leg.pair.ends.values() if end.pump is not None]
        if len(pumps) == 2 * len(self.legs):
            self.held.append((self.legs[0].pair.now, held(pumps)))

    def _rest(self) -> None:
        """Nothing is left to say, and nothing of what was said is left."""
        for leg in self.legs:
            sent = leg.pair.bytes_sent()
            leg.run(leg.pair.now + 2 * ORBIT_S)
            self.idle_bytes += leg.pair.bytes_sent() - sent
            self.stray_files += leg.stray_files()
            self.journal_bytes = max(self.journal_bytes, leg.journal_bytes())
        self._measure()


def measure(tell: ProgressLine, *, seeds: int, hours: float, boards: int) -> list[Row]:
    """Takes about a minute on one core for 24 hours with three boards."""
    days: list[Day] = []
    broken: Counter[str] = Counter()
    for seed in range(seeds):
        day = Day(seed, hours=hours, boards=boards)
        try:
            day.play(lambda at_h, seed=seed: tell(f"day {seed + 1} of {seeds}, hour {at_h:.0f}"))  # type: ignore[misc]
        except Broken as found:
            broken[found.rule] += 1
            click.echo(f"seed {seed}: {found}", err=True)
        else:
            days.append(day)
    rows = [Row(f"days in which it is broken that {rule}", broken[rule], "", 0) for rule in RULES]
    return rows + (rows_of(days) if days else [])


def rows_of(days: list[Day]) -> list[Row]:
    """The worst of all days; counts are of all of them."""
    legs = [leg for day in days for leg in day.legs]
    tally = sum((day.tally for day in days), Counter())
    rows = [
        Row("objects that never came to an end", sum(day.left for day in days), "", 0),
        Row(
            "longest contact in which nothing went on", max(leg.longest_stall_s for leg in legs), "s", STUCK_S
        ),
        Row("replays taken", tally["replays taken"], "frames", 0),
        Row("sent outside of contacts", tally["bytes outside of contacts"], "B", 0),
        Row("sent when nothing was left to say", sum(day.idle_bytes for day in days), "B", 0),
    ]
    for side in SIDES:
        most = max(leg.of_contact(side) for leg in legs)
        rows.append(Row(f"most that a {side} used of a contact's allowance", most, "", 1.0))
        most = max(leg.of_day(side) for leg in legs)
        rows.append(Row(f"most that a {side} used of a day's, in any 24 hours", most, "", 1.0))
    rows += [
        Row("memory of flight code, at most", max(h.bytes_ for day in days for _, h in day.held), "B"),
        Row("  bytes grown since two orbits", max(day.grown.bytes_ for day in days), "B", GROWN_BYTES),
        Row("objects of it, at most", max(h.objects for day in days for _, h in day.held), ""),
        Row("  objects grown since two orbits", max(day.grown.objects for day in days), "", GROWN_OBJECTS),
        Row("file descriptors grown since two orbits", max(day.grown.files for day in days), "", 0),
        Row("longest table", max(h.longest for day in days for _, h in day.held), "entries", TABLE),
        Row("files of objects that are over", sum(day.stray_files for day in days), "", 0),
        Row("journal, at most", max(day.journal_bytes for day in days), "B", JOURNAL_BYTES),
    ]
    return rows + [Row(f"  {what}", number, "") for what, number in sorted(tally.items()) if number]
