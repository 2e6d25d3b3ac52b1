"""One end of a link that holds its key and keeps to no rule ends no program, starves nobody, decides nothing.

A hostile board, a hostile ground and a hostile neighbour do what is in `insider_kinds`, one kind at a time,
against the programs' own loops (a ground with an honest board beside the hostile one; a board; a node that
gossips with an honest neighbour too), on a virtual clock to which the CPU time of the program under attack is
charged, and 10 ms for each fsync. Measured is how long an honest update of 1.7 MB takes (LeNet-5 in float32)
beside the time that it takes where the other end is silent. What one hostile board of five does to a
mission's accuracy is measured in rounds without links.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from benchmarks.claims.resilience.insider_gossip import GOSSIP, Ringed
from benchmarks.claims.resilience.insider_kinds import ANY, FROM_BOARD, FROM_GROUND, Play, right_task
from benchmarks.claims.resilience.insider_learning import KINDS, accuracy
from benchmarks.claims.resilience.insider_world import Hostile, Siege
from benchmarks.harness.lab import LabError
from benchmarks.harness.missions import founded_in
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from benchmarks.harness.virtual import VirtualWorld
from firmware_sim.world.disk import scratch
from onboard.mission.objects import MODEL, encode_object

TIMES = 2.0
POINTS = 2.0
BEFORE_S, QUIET_S = 3.0, 60.0  # of what a hostile ground does, and until it asks what an honest one asks
LIMIT_S = 120.0  # for an update that takes 8 s
VICTIMS = ("ground", "board", "gossip", "accuracy")

OPTIONS = (
    click.Option(["--victim"], type=click.Choice(VICTIMS), multiple=True, help="Only this; repeatable."),
    click.Option(["--only"], multiple=True, metavar="KIND", help="Only this kind; repeatable."),
    click.Option(["--seeds"], type=click.IntRange(1), default=1, show_default=True, help="Of accuracies."),
    click.Option(["--each"], is_flag=True, help="A line for each kind."),
)  # fmt: skip


@dataclass(frozen=True)
class InsiderOutcome:
    """What became of one kind: how long the honest update took, inf if it never came, and how many programs
    ended."""

    victim: str
    kind: str
    seconds: float
    ended: tuple[str, ...]


def _silent(hostile: Hostile) -> None:
    """Does nothing."""


def measure(
    tell: ProgressLine,
    victim: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    seeds: int = 1,
    each: bool = False,
) -> list[Row]:
    """Plays each kind against each victim; takes some minutes."""

    def says(line: str) -> None:
        if each:
            click.echo(line)

    rows: list[Row] = []
    ended, count, worst = 0, 0, 0.0
    for name in [one for one in VICTIMS[:3] if not victim or one in victim]:
        kinds = {kind: play for kind, play in KINDS_OF[name].items() if not only or kind in only}
        if not kinds:
            continue
        plain_s = against(name, "", _silent).seconds
        slowest, which = 0.0, ""
        for kind, play in kinds.items():
            tell(f"{name}: {kind}")
            outcome = against(name, kind, play)
            count += 1
            ended += len(outcome.ended)
            times = min(outcome.seconds, LIMIT_S) / plain_s
            says(f"{name}: {kind}: {times:.2f} times {', '.join(outcome.ended)}")
            if times > slowest:
                slowest, which = times, kind
        worst = max(worst, slowest)
        rows.append(Row(f"slowest beside an honest end, {name} ({which})", slowest, "times", TIMES))
    if not victim or "accuracy" in victim:
        rows += _accuracies(tell, only, seeds, says)
    rows.append(Row(f"programs ended by {count} kinds", float(ended), "", 0.0))
    return rows


def _accuracies(
    tell: ProgressLine, only: tuple[str, ...], seeds: int, says: Callable[[str], None]
) -> Iterator[Row]:
    lowest, which = 0.0, "none"
    honest = [100 * accuracy("", seed) for seed in range(seeds)]
    yield Row("accuracy with five honest boards, worst seed", min(honest), "%")
    for kind in [kind for kind in KINDS if not only or kind in only]:
        for seed, before in enumerate(honest):
            tell(f"accuracy, seed {seed}: {kind}")
            after = 100 * accuracy(kind, seed)
            says(f"accuracy, seed {seed}: {kind}: {before:.2f} % to {after:.2f} %")
            if before - after > lowest:
                lowest, which = before - after, kind
    yield Row(f"accuracy lost to one of five ({which})", lowest, "points", POINTS)


def against(victim: str, kind: str, play: Play) -> InsiderOutcome:
    """Plays one kind."""
    with scratch() as folder, founded_in(folder / "first"):
        if victim == "gossip":
            return _gossip(Ringed(folder / "ring", kind), kind, play)
        siege = Siege(folder / "siege", kind, master=victim == "board")
        siege.hostile.play = play if victim == "ground" else _then_asks(play)
        with siege.on():
            siege.boot_all()
            siege.world.run(
                lambda: siege.is_answered() or any(map(siege.world.ended, siege.programs)),
                LIMIT_S + QUIET_S,
            )
            ended = _ended(siege.world, siege.programs, siege.hostile_name)
            began_s = (
                siege.offered_at() if victim == "ground" else siege.hostile.began_at + BEFORE_S + QUIET_S
            )
            seconds = siege.world.now - began_s if siege.is_answered() else LIMIT_S
        return InsiderOutcome(victim, kind, seconds, ended)


def _then_asks(play: Play) -> Play:
    """After a while nothing, until what it cost is paid, and then the right task, as an honest ground of
    another mission asks it: a board has no other ground to hear meanwhile."""
    asked: list[bytes] = []

    def both(hostile: Hostile) -> None:
        if hostile.now < hostile.began_at + BEFORE_S:
            play(hostile)
        elif hostile.now < hostile.began_at + BEFORE_S + QUIET_S:
            hostile.out.clear()
        elif not asked:
            asked.append(encode_object(right_task(0), b""))
            hostile.offer(MODEL, asked[0])

    return both


def _gossip(ring: Ringed, kind: str, play: Play) -> InsiderOutcome:
    ring.hostile.play = play
    with ring.on():
        ring.boot_all()
        ring.world.run(lambda: ring.has_exchanged() or any(map(ring.world.ended, ring.programs)), LIMIT_S)
        ended = _ended(ring.world, ring.programs, "node-3")
        return InsiderOutcome("gossip", kind, ring.seconds() if ring.has_exchanged() else LIMIT_S, ended)


def _ended(world: VirtualWorld, programs: Sequence[str], hostile: str) -> tuple[str, ...]:
    """Which programs have ended, and how. Raises LabError where the hostile one has: it did nothing."""
    if how := world.ended(hostile):
        raise LabError(f"the hostile end has ended: {how}")
    return tuple(f"{name}: {how}" for name in programs if (how := world.ended(name)))


KINDS_OF: Mapping[str, Mapping[str, Play]] = {
    "ground": {**ANY, **FROM_BOARD},
    "board": {**ANY, **FROM_GROUND},
    "gossip": {**ANY, **GOSSIP},
}
