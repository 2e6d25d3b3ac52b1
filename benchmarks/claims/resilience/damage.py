"""Whatever becomes of a file of board, gossip node or ground, the program comes up and the mission ends.

A case is a mission (a ground and two boards, or three nodes that gossip; encrypted or not) of the programs'
own loops on a virtual clock. At a random moment one program is killed, or stopped, one of its files is
damaged (a bit, a cut, zeros, gone, another file's content, an older version; now and then a folder or a link
in its place), and it is started again. Nothing damaged may be used: models, updates, checkpoints and
exchanges are compared with what undamaged programs made, byte by byte. A damage that is read is told in
exactly one line of the program's log, which names the file. Some more missions are of real processes over
UDP, with real kills.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import click

from benchmarks.claims.resilience.damage_processes import PROCESSES, Raid, raids
from benchmarks.claims.resilience.harm import CANARY, KINDS, damaged
from benchmarks.claims.resilience.naming import DATABASE, names
from benchmarks.harness.lab import LabError
from benchmarks.harness.missions import MISSIONS, founded_in
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from benchmarks.harness.virtual import Said
from firmware_sim.world.disk import scratch

COUNT = 2000
LIMIT_S = 1200.0  # of virtual time, for a mission to end after its damage
STARTS = 3  # of a program that ends by itself
AGAIN_S = 5.0
STOPPED = 0.3  # share of the programs that are stopped in order and not killed
UP_S = 0.1  # what ends sooner has not come up
POINTS = (
    0.15  # that a mission's accuracy may be below the undamaged one's: a hundred images are a coarse measure
)
NAMED = ("model.bin", "update.bin", "deployed.bin")  # of which the journal knows that they are to be there
RULES = (
    "the program does not come up",
    "a program ends by itself",
    "something damaged is used",
    "the damage is not told",
    "the damage is told more than once",
    "the mission does not end at its target",
    "a number is used twice under one salt",
    "what a link leads to is written to",
)
VICTIMS = {"ground": "rounds", "board-1": "rounds", "node-2": "ring"}  # and the mission that each is in

OPTIONS = (
    click.Option(["--seed"], type=int, default=0, show_default=True, help="Of all cases."),
    click.Option(["--first"], type=click.IntRange(0), default=0, show_default=True, help="The first case."),
    click.Option(
        ["--count"], type=click.IntRange(1), default=COUNT, show_default=True,
        help="How many, one after another.",
    ),
    click.Option(
        ["--only"], type=click.IntRange(0), multiple=True,
        help="Only this case, and what was told of it; repeatable.",
    ),
    click.Option(
        ["--victim"], type=click.Choice(list(VICTIMS)), default=None,
        help="Only damages to this program's files.",
    ),
    click.Option(
        ["--file"], default=None, metavar="NAME",
        help="Only to this file, such as model.bin, spool/*.map or exchanges/*.sent.",
    ),
    click.Option(["--harm"], type=click.Choice(KINDS), default=None, help="Only damages of this kind."),
    click.Option(
        ["--processes"], type=click.IntRange(0), default=PROCESSES, show_default=True,
        help="Missions of real processes beside; none with --only.",
    ),
    click.Option(
        ["--out"], type=click.Path(dir_okay=False, path_type=Path), default=None,
        help="A file with a line for each case; a case that has one is not played again.",
    ),
)  # fmt: skip


class DamageRun:
    """Whether the damaged file was read as it is, before the program wrote another in its place."""

    def __init__(self) -> None:
        self.path, self.is_there, self.was_read = "", False, False
        sys.addaudithook(self._hear)

    def watch(self, path: Path) -> None:
        """From now on, this one."""
        self.path, self.is_there, self.was_read = str(path), True, False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_there:
            return
        if event == "open" and str(arguments[0]) == self.path:
            is_written = "w" in (arguments[1] or "") or (arguments[1] is None and arguments[2] & 3)
            self.was_read |= not is_written
            self.is_there = not is_written
        elif event in ("os.rename", "os.remove") and str(arguments[event == "os.rename"]) == self.path:
            self.is_there = False


@cache
def _opened() -> DamageRun:
    """One for the process, as a hook cannot be taken away."""
    return DamageRun()


@dataclass(frozen=True)
class Undamaged:
    """How a mission goes when nothing befalls it: for how long, how well, and when which kinds of files of
    which program were there."""

    seconds: float
    accuracy: float
    seen: dict[str, dict[str, list[float]]]


def kind_of(path: Path) -> str:
    """What sort of file it is, whatever its number, digest or neighbour."""
    text = re.sub(r"[0-9a-f]{16,}", "*", str(path))
    return re.sub(r"spool/[^/]+/", "spool/", re.sub(r"\b\d+-\d+\.", "*.", text)).removeprefix("state/")


@cache
def undamaged(what: str, encrypted: bool) -> Undamaged:
    """Played once."""
    seen: dict[str, dict[str, list[float]]] = {}
    with scratch() as folder:
        mission = MISSIONS[what](folder, "undamaged", encrypted=encrypted)
        with mission.on():
            for name in mission.programs:
                mission.boot(name)
                seen[name] = {}
            world, began_s = mission.world, mission.world.now

            def over() -> bool:
                for name, kinds in seen.items():
                    for path in mission.kept(name):
                        kinds.setdefault(kind_of(path), []).append(world.now - began_s)
                return mission.over()

            ended = world.run(over, LIMIT_S)
            assert ended, f"{what}: not over without damage: {mission.errors.getvalue()}"
            return Undamaged(world.now - began_s, mission.accuracy(), seen)


@dataclass(frozen=True)
class Wish:
    """Which damages are wanted; None for any."""

    victim: str | None = None
    file: str | None = None
    harm: str | None = None


@dataclass
class DamageCase:
    """One damage. `broken`: rules and how; `what` was done to which file; `told` of it by the program."""

    seed: int
    number: int
    wish: Wish = Wish()
    what: str = ""
    broken: list[tuple[str, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def play(self) -> None:
        """From a mission's start to its end."""
        self._random = rnd = random.Random(f"{self.seed}/{self.number}")
        self._victim = self.wish.victim or rnd.choice(list(VICTIMS))
        kind, encrypted = VICTIMS[self._victim], rnd.random() < 0.5
        self._undamaged = undamaged(kind, encrypted)
        with scratch() as folder:
            self._canary = folder / "canary"
            self._mission = mission = MISSIONS[kind](
                folder / "mission", f"{self.seed}/{self.number}", encrypted=encrypted
            )
            self.what = f"{self._victim}{', encrypted' if encrypted else ''}"
            with mission.on():
                for name in mission.programs:
                    mission.boot(name)
                self._until_the_moment()
                self._damage()
                self._go_on()
                self._judge()

    # what befalls it

    def _until_the_moment(self) -> None:
        """A random one at which a file of a random kind is there; some older versions are kept on the way."""
        rnd, mission, world = self._random, self._mission, self._mission.world
        kinds = self._undamaged.seen[self._victim]
        wanted = self.wish.file or rnd.choice(sorted(kinds))
        if wanted not in kinds:
            raise LabError(f"{self._victim} has no file {wanted!r}; there are {', '.join(sorted(kinds))}")
        moment_s = rnd.choice(kinds[wanted])
        self._older: dict[Path, bytes] = {}
        began_s, older_s = world.now, rnd.uniform(0.0, moment_s)
        world.run(lambda: world.now - began_s >= older_s or mission.over(), older_s + 1.0)
        root = mission.folder / self._victim
        self._older = {path: (root / path).read_bytes() for path in mission.kept(self._victim)}
        world.run(lambda: world.now - began_s >= moment_s or mission.over(), moment_s - older_s + 1.0)

        def there() -> bool:
            return mission.over() or any(kind_of(path) == wanted for path in mission.kept(self._victim))

        world.run(there, self._undamaged.seconds)
        self._wanted = wanted

    def _damage(self) -> None:
        rnd, mission, world = self._random, self._mission, self._mission.world
        root = mission.folder / self._victim
        self._life = world.life(self._victim)
        if rnd.random() < STOPPED and not self._wanted.startswith(f"{DATABASE}-"):  # which only a kill leaves
            world.stop(self._victim)
        else:
            world.kill(self._victim, root)
        files = mission.kept(self._victim)
        chosen = [path for path in files if kind_of(path) == self._wanted] or files
        self._file = path = rnd.choice(chosen)
        others = [(root / other).read_bytes() for other in files if other != path]
        before = _stored(root) if path.name.startswith(DATABASE) else ""
        kind = self.wish.harm
        self._harm = damaged(root / path, others, self._older.get(path), self._canary, rnd, kind)
        self._is_noticeable = self._harm.is_any
        if path.name.startswith(DATABASE):
            self._is_noticeable = _stored(root) != before
        self.what += f": {path}, {self._harm.kind}, at {world.now - 1000:.1f} s"
        _opened().watch(root / path)

    def _go_on(self) -> None:
        """To the mission's end, however often a program has to be started again."""
        rnd, mission, world = self._random, self._mission, self._mission.world
        off_s = rnd.choice((0.0, 0.5, 5.0, 30.0))
        world.run(lambda: False, off_s)
        mission.boot(self._victim)
        began_s, starts = world.now, Counter[str]()
        gone: dict[str, float] = {}

        def over() -> bool:
            for name in mission.programs:
                ended = world.ended(name)
                if ended and not (ended == "by itself" and mission.ends):
                    if name not in gone:
                        starts[name] += 1
                        self._note_end(name, ended, began_s)
                        gone[name] = world.now + AGAIN_S
                    elif world.now >= gone[name] and starts[name] < STARTS:
                        del gone[name]
                        mission.boot(name)
            return mission.over() or any(count >= STARTS for count in starts.values())

        self._ended = False
        while not self._ended and world.now - began_s < LIMIT_S:  # alone, a program that is gone wakes nobody
            self._ended = world.run(over, AGAIN_S)
        self._ended = self._ended and mission.over()

    def _note_end(self, name: str, how: str, began_s: float) -> None:
        words, after_s = self._mission.errors.getvalue().strip(), self._mission.world.ended_at(name) - began_s
        detail = f"{name}: {how} after {after_s:.1f} s {words.splitlines()[-1] if words else ''}"
        is_start = name == self._victim and after_s < UP_S
        self._break(RULES[0] if is_start and not self.broken else RULES[1], detail)

    # what must hold

    def _judge(self) -> None:
        genuine, mission = self._mission.genuine, self._mission
        for false in genuine.false[:1]:
            self._break(RULES[2], f"{len(genuine.false)} times, first {false}")
        for twice in genuine.twice[:1]:
            self._break(RULES[6], f"{len(genuine.twice)} times, first {twice}")
        if not self._ended:
            last = [f"{said.program} {said.event}" for said in mission.world.said[-3:]]
            self._break(RULES[5], f"not over after {LIMIT_S:.0f} s; last {', '.join(last)}")
        elif (accuracy := mission.accuracy()) < self._undamaged.accuracy - POINTS:
            self._break(RULES[5], f"accuracy {accuracy:.2f}, undamaged {self._undamaged.accuracy:.2f}")
        if self._harm.kind == "link" and self._canary.read_bytes() != CANARY:
            self._break(RULES[7], "")
        naming = [said for said in mission.world.said if self._names_it(said)]
        self.told = [f"{said.event} {dict(said.fields)}" for said in naming]
        if len(naming) > 1:
            self._break(RULES[4], "; ".join(self.told[:3]))
        if not naming and self._must_be_told():
            self._break(RULES[3], f"{len(self._harm.before)} B")

    def _must_be_told(self) -> bool:
        """Whether the program read what is not what it had written. What is gone, or is an older version
        which was whole, it can tell only where something else that it knows says so."""
        path = self._file
        if path.name.startswith(DATABASE):
            return self._is_noticeable and self._harm.kind not in ("gone", "older")
        if path.suffix == ".part":
            return (
                False  # bytes that its map does not count are read and not used; the rest, its digest tells
            )
        if not (self._is_noticeable and _opened().was_read):
            return False
        return self._harm.kind not in ("gone", "older") or path.name in NAMED

    def _names_it(self, said: Said) -> bool:
        """Whether the line is a warning or worse of the damaged program, and names the file."""
        if said.program != self._victim or said.life <= self._life or said.level < 30:
            return False
        return names(self._file, said.fields)

    def _break(self, rule: str, detail: str) -> None:
        if all(rule != broken for broken, _ in self.broken):
            self.broken.append((rule, detail))


def _stored(root: Path) -> str:
    """All that a database says, or why it cannot be read; nothing of it is changed."""
    with scratch() as folder:
        for path in root.glob(f"{DATABASE}*"):
            if path.is_file():
                shutil.copy(path, folder)
        try:
            with closing(sqlite3.connect(folder / DATABASE)) as database:
                return "\n".join(database.iterdump())
        except Exception as error:
            return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, kw_only=True)
class DamageSettings:
    """What OPTIONS give: the cases' seed, which of them, `only` some, and the file that keeps them; which
    damages are wanted, as `Wish`; and how many missions of real `processes` are played beside."""

    seed: int
    first: int
    count: int
    only: tuple[int, ...]
    out: Path | None
    victim: str | None
    file: str | None
    harm: str | None
    processes: int


SETTINGS = DamageSettings


def measure(tell: ProgressLine, asked: DamageSettings) -> list[Row]:
    """Takes twenty-five minutes on one core with 2,000. Raises LabError."""
    seed, only, out = asked.seed, asked.only, asked.out
    wish = Wish(asked.victim, asked.file, asked.harm)
    numbers = list(only) or list(range(asked.first, asked.first + asked.count))
    kept = _kept(out, seed, wish)
    cases: list[DamageCase] = []
    started_s, played = time.monotonic(), 0
    with scratch() as folder, founded_in(folder):
        for nth, number in enumerate(numbers):
            broken = sum(bool(case.broken) for case in cases)
            left_s = (time.monotonic() - started_s) * (len(numbers) - nth) / max(played, 1)
            tell(f"case {number}, {nth} of {len(numbers)}, {broken} broken so far", left_s)
            case = kept.get(number) or DamageCase(seed, number, wish)
            if number not in kept:
                case.play()
                played += 1
                _keep(out, case)
            for rule, detail in case.broken:
                click.echo(f"case {number} ({case.what}): {rule}: {detail}", err=True)
            if only:
                click.echo(f"case {number}: {case.what}; told: {case.told}", err=True)
            cases.append(case)
    real = [] if only else raids(asked.processes, seed, tell)
    for raid in real:
        for rule, detail in raid.broken:
            click.echo(f"processes {raid.number} ({raid.what}): {rule}: {detail}", err=True)
    return [*_rows(cases), *_real_rows(real)]


def _rows(cases: Sequence[DamageCase]) -> Iterator[Row]:
    yield Row("damages", len(cases), "")
    for rule in RULES:
        broken = sum(any(rule == of for of, _ in case.broken) for case in cases)
        yield Row(f"cases in which {rule}", broken, "", 0)
    yield Row("damages that were told", sum(bool(case.told) for case in cases), "")


def _real_rows(real: Sequence[Raid]) -> Iterator[Row]:
    yield Row("damages in real processes", len(real), "")
    if real:
        broken = sum(bool(raid.broken) for raid in real)
        yield Row("  in which a program does not come up, ends, or the mission does not", broken, "", 0)
        yield Row("  seconds of a mission, at most", max(raid.took_s for raid in real), "s")


def _kept(out: Path | None, seed: int, wish: Wish) -> dict[int, DamageCase]:
    """The cases that were played before with these options, by number."""
    if out is None or not out.exists():
        return {}
    lines = (json.loads(line) for line in out.read_text().splitlines())
    cases = [
        DamageCase(
            **line | {"wish": Wish(**line["wish"]), "broken": [tuple(each) for each in line["broken"]]}
        )
        for line in lines
    ]
    return {case.number: case for case in cases if (case.seed, case.wish) == (seed, wish)}


def _keep(out: Path | None, case: DamageCase) -> None:
    if out is not None:
        line = {"seed": case.seed, "number": case.number, "wish": asdict(case.wish), "what": case.what}
        line |= {"broken": case.broken, "told": case.told}
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
