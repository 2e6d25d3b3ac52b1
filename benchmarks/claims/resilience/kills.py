"""1,000 kills, stops and clock steps of ground and boards: nothing acknowledged is lost, no round stalls.

Three missions run side by side, each of a ground daemon and two boards, all real processes: over UDP, over
emulated serial cables, and encrypted over one of each. Somebody is killed (SIGKILL) and starts again, or is
stopped (SIGSTOP), at times past the round's deadline, and goes on, or has the wall clock set, at a random
moment or just after a line of somebody's log, where a kill is sharpest. Nobody may end by itself. No update
that a board was told to be safe may be missing at the ground. A round, while the ground serves, may last for
its deadline and one asking more.
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import mkdtemp
from typing import Any

import click

from benchmarks.claims.resilience.besieged import BOARDS, GROUND, KINDS, PROGRAMS, Besieged, FaultKind
from benchmarks.claims.resilience.witnessed import MissionWitness
from benchmarks.harness.lab import KEEP
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from firmware_sim.runs.processes import ProcessGroup
from groundstation.station import FIRST_PAUSE_S

FAULTS = 1000
DEADLINE_S = 15.0
GAP_S = 2.5  # between two faults of a mission, on average
SETTLE_S = 3 * DEADLINE_S + 30.0  # afterwards every mission closes one more round within this
WORK_S = 5.0  # a round's end takes so long on a busy computer: averaging, and judging on 360 images
LISTEN_S = 0.02
STALL_S = 2 * DEADLINE_S + FIRST_PAUSE_S + WORK_S
HOUR_S, YEAR_S = 3600.0, 365.25 * 86_400.0
STEPS_S = (1.0, -1.0, HOUR_S, -HOUR_S, 86_400.0, -86_400.0, 15 * YEAR_S, -15 * YEAR_S, -50 * YEAR_S)
SHARP = {  # lines of a round are waited for more often than those of a start or of a trouble
    GROUND: (
        *("round", "answered", "closed") * 3,
        "serving",
        "rekeyed",
        "update-discarded",
        "nobody-answered",
    ),
    "board": (*("heard", "trained", "delivered") * 3, "rekeyed", "resumed", "epoch"),
}
LONG = 0.1  # of all stops: past the deadline, of the ground or of both boards
LET_BE_S = 4.0  # whoever is stopped for longer yet is not killed meanwhile
BOTH = 0.1  # of all kills: another program's power goes at the same moment

OPTIONS = (
    click.Option(["--faults"], type=click.IntRange(1), default=FAULTS, show_default=True),
    click.Option(["--seed"], type=int, default=1, show_default=True, help="Of whom what befalls when."),
    click.Option(
        ["--link", "names"], multiple=True, type=click.Choice([kind.name for kind in KINDS]),
        help="Only this mission; repeatable.",
    ),
    KEEP,
)  # fmt: skip


@dataclass
class FaultPlan:
    """The next fault of a mission: at a time, or `lag_s` after `speaker` has logged `event`."""

    deed: str  # kill, stop, step
    victim: str
    at: float
    speaker: str = ""
    event: str = ""
    lag_s: float = 0.0
    heard: bool = False


class FaultSchedule:
    """One mission and what befalls it."""

    def __init__(self, kind: FaultKind, crew: ProcessGroup, folder: Path, seed: int, said: Any) -> None:
        self.kind, self.random = kind, random.Random(f"{seed} {kind.name}")
        self.besieged = Besieged(kind, crew, folder, DEADLINE_S, said)
        self.witness = MissionWitness()
        self.done: Counter[str] = Counter()
        self._plan: FaultPlan | None = None

    def hear(self, program: str, event: dict[str, Any], now: float) -> None:
        """One of the programs said something."""
        self.besieged.hear(program, event, now)
        self.witness.hear(program, event, self.besieged.up_s)
        plan = self._plan
        if plan and not plan.heard and (program, event.get("event")) == (plan.speaker, plan.event):
            plan.heard, plan.at = True, now + plan.lag_s

    def turn(self, now: float, *, more: bool) -> None:
        """Undoes what is due, and does what is, if there are to be `more` faults."""
        self.besieged.turn(now, undo=not more)
        self.witness.pass_time(self.besieged.up_s)
        if not more:
            self._plan = None
            return
        if self._plan is None:
            self._plan = self._next(now)
        if now >= self._plan.at:
            self._do(self._plan, now)
            self._plan = None

    def _next(self, now: float) -> FaultPlan:
        source = self.random
        deed = source.choices(("kill", "stop", "step"), (65, 25, 10))[0]
        plan = FaultPlan(deed, source.choice(PROGRAMS), now + source.expovariate(1 / GAP_S))
        if source.random() < 0.65:  # at a sharp moment, if it comes before long
            plan.speaker = source.choice(PROGRAMS)
            plan.event = source.choice(SHARP[GROUND if plan.speaker == GROUND else "board"])
            plan.lag_s = source.choice((0.0, source.expovariate(50.0), source.uniform(0.0, 0.3)))
            plan.at = now + source.uniform(1.0, 4 * GAP_S)
            if source.random() < 0.6:
                plan.victim = plan.speaker
        return plan

    def _do(self, plan: FaultPlan, now: float) -> None:
        source, besieged, victims = self.random, self.besieged, [plan.victim]
        if besieged.programs[plan.victim].state == "down" or besieged.is_off_for(plan.victim, now) > LET_BE_S:
            return
        if plan.deed == "step":
            besieged.step(plan.victim, source.choice(STEPS_S))
        elif plan.deed == "stop" and besieged.programs[plan.victim].state == "up":
            for_s = source.expovariate(1.0)
            if source.random() < LONG:
                for_s = source.uniform(1.05, 1.5) * DEADLINE_S
                ups = [each for each in BOARDS if besieged.programs[each].state == "up"]
                victims = victims if plan.victim == GROUND else ups  # so that nobody answers
                self.done["stop past the deadline"] += len(victims)
            for each in victims:
                besieged.stop(each, now, for_s)
        else:
            plan.deed = "kill"
            if source.random() < BOTH:
                others = [each for each in PROGRAMS if besieged.programs[each].state != "down"]
                victims = list(dict.fromkeys((plan.victim, source.choice(others))))
            for each in victims:
                besieged.kill(each, now, source.choice((0.0, 0.0, source.uniform(0.0, 3.0))))
        for each in victims:
            self.done[plan.deed] += 1
            self.done[f"{plan.deed} {'ground' if each == GROUND else 'board'}"] += 1
        self.done["sharp"] += plan.heard

    @property
    def faults(self) -> int:
        """So far."""
        return self.done["kill"] + self.done["stop"] + self.done["step"]


def measure(
    tell: ProgressLine, *, faults: int, seed: int, names: Sequence[str], keep: Path | None
) -> list[Row]:
    """Runs the missions until so many faults are done, then in peace until each has closed another round;
    returns the rows. Raises LabError. What the programs wrote is kept where a bound is broken."""
    kinds = [kind for kind in KINDS if not names or kind.name in names]
    folder = keep or Path(mkdtemp(prefix="spacedml-kills-"))
    rows: list[Row] = []
    try:
        sieges, findings = run(kinds, folder, faults, seed, tell)
        rows = list(_rows(sieges, findings))
    finally:
        if keep is None and rows and all(row.holds for row in rows):
            shutil.rmtree(folder)
        elif keep is None:
            print(f"kills: what the programs wrote is in {folder}", file=sys.stderr)
    return rows


@dataclass
class KillFindings:
    """What broke a rule, a line each."""

    ended: list[str]
    lost: list[str]
    tracebacks: list[str]
    unfinished: list[str]


def run(
    kinds: Sequence[FaultKind], folder: Path, faults: int, seed: int, tell: ProgressLine
) -> tuple[list[FaultSchedule], KillFindings]:
    """All missions side by side. Nothing that was started is left. Raises LabError."""
    crew = ProcessGroup(folder / "logs")
    sieges: dict[str, FaultSchedule] = {}

    def said(member: str, event: dict[str, Any]) -> None:
        name, program, _ = member.split(":")
        if name in sieges:
            sieges[name].hear(program, event, time.monotonic())

    def listen(*, more: bool) -> None:
        for member, event in crew.listen(LISTEN_S):
            said(member, event)
        for siege in sieges.values():
            siege.turn(time.monotonic(), more=more)

    try:
        for kind in kinds:
            sieges[kind.name] = FaultSchedule(kind, crew, folder / kind.name, seed, said)
            sieges[kind.name].besieged.start()
        while (done := sum(siege.faults for siege in sieges.values())) < faults:
            listen(more=True)
            tell(f"{faults} faults, of which {done - done % 20} are done")
        unfinished = _peace(list(sieges.values()), listen, tell)
        for siege in sieges.values():
            siege.besieged.end()
    finally:
        for _ in crew.stop():
            pass
    findings = KillFindings(
        ended=[f"{s.kind.name}: {why}" for s in sieges.values() for why in s.besieged.ended],
        lost=[
            f"{s.kind.name}: {what}" for s in sieges.values() for what in s.witness.lost(s.besieged.mission)
        ],
        tracebacks=[path for s in sieges.values() for path in s.besieged.tracebacks(folder / "logs")],
        unfinished=unfinished,
    )
    return list(sieges.values()), findings


def _peace(sieges: list[FaultSchedule], listen: Any, tell: ProgressLine) -> list[str]:
    """Nothing more befalls anybody; returns the missions that close no further round in time."""
    before = {siege.kind.name: siege.witness.closed.copy() for siege in sieges}
    until = time.monotonic() + SETTLE_S
    waits = list(sieges)
    while waits and time.monotonic() < until:
        listen(more=False)
        waits = [
            siege for siege in waits
            if len(siege.witness.closed - before[siege.kind.name]) < 2  # one may have been closing
        ]  # fmt: skip
        tell("in peace: each mission closes another round", until - time.monotonic())
    return [f"{siege.kind.name}: no further round closed in {SETTLE_S:.0f} s of peace" for siege in waits]


def _rows(sieges: Sequence[FaultSchedule], findings: KillFindings) -> Iterator[Row]:
    done = sum((siege.done for siege in sieges), Counter[str]())
    yield Row("faults", sum(siege.faults for siege in sieges), "")
    for deed in ("kill", "stop", "step"):
        told = f"{done[f'{deed} ground']} of grounds, {done[f'{deed} board']} of boards"
        yield Row(f"  {deed}s ({told})", done[deed], "")
    yield Row("  stops past the deadline", done["stop past the deadline"], "")
    yield Row("  within 0.3 s of a line of a log that was waited for", done["sharp"], "")
    yield Row("programs that ended by themselves", len(findings.ended), "", 0)
    yield Row("tracebacks", len(findings.tracebacks), "", 0)
    yield Row("updates acknowledged", sum(len(s.witness.acknowledged) for s in sieges), "", 1, at_least=True)
    yield Row("  lost", len(findings.lost), "", 0)
    yield Row("  too late for their round, and told so", sum(len(s.witness.discarded) for s in sieges), "")
    for siege in sieges:
        witness = siege.witness
        yield Row(f"{siege.kind.name}: rounds closed", len(witness.closed), "", 1, at_least=True)
        yield Row(f"  longest, in which the ground served ({witness.longest_round})", witness.longest_s, "s",
                  STALL_S)  # fmt: skip
    yield Row("missions that closed no round in peace", len(findings.unfinished), "", 0)
    link_s = [seconds for siege in sieges for seconds in siege.besieged.link_s]
    if len(link_s) > 1:
        yield Row(f"from a start to its link's use, median of {len(link_s)}", median(link_s), "s")
        yield Row("  95 %", quantiles(link_s, n=20)[-1], "s")
        yield Row("  longest", max(link_s), "s")
    events = sum((siege.witness.events for siege in sieges), Counter[str]())
    yield Row("links that failed for no known reason", events["ground: link-failed"], "", 0)
    for name, count in sorted(events.items()):
        yield Row(f"  {name}, of all warnings and errors", count, "")
    for line in (*findings.ended, *findings.lost, *findings.tracebacks, *findings.unfinished):
        print(f"kills: {line}", file=sys.stderr)
