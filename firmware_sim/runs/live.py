"""What a person sees of a run: lines, under them a bar that is gone at the end, a summary, a picture."""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Generic, Protocol, TypeVar, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from onboard.console.errors import refused
from onboard.console.lines import ROOM_BYTES, Outlet, lines_to
from onboard.console.log import start
from onboard.console.signals import stop_signals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

R = TypeVar("R")
UP, DOWN = "#1b6ca8", "#8fc1e3"  # what goes up and down, in pictures


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Where a run stands: the number of its step, and the share of that which is done, 0 to 1."""

    step: int
    done: float
    clock_s: float


@dataclass(frozen=True, slots=True)
class RunTexts(Generic[R]):
    """What is said of a run."""

    step: str  # what one of its steps is called
    steps: int  # how many there are at the most
    heading: str  # stands over the lines
    line: Callable[[R], str]  # of one result
    summary: Callable[[Sequence[R]], str]  # of all results
    stopped: str  # says of a run that was stopped after {} steps how it goes on


class PlayedRun(Protocol[R]):
    """A run with the results of its steps that are over."""

    results: list[R]
    texts: RunTexts[R]

    def play(self) -> Generator[RunProgress | R, None, None]:
        """Runs the steps that are left."""

    def draw(self) -> None:
        """Draws the results of a run that is over into its folder, if it has one."""


def command(make: Callable[[], PlayedRun[R]], out: Path, *, as_json: bool) -> None:
    """Makes a run and shows it as a command does: what cannot be is one line, a stop exit code 130."""
    start("json" if as_json else "text", logging.ERROR)
    try:
        run = make()
        is_over = show(run, as_json=as_json)
        if is_over:
            run.draw()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        refused(error, out)
    if not is_over:
        click.echo(run.texts.stopped.format(len(run.results)), err=True)
        sys.exit(130)


def show(run: PlayedRun[R], *, as_json: bool) -> bool:
    """Plays a run and shows it on standard output, results as lines of JSON if wanted. Returns False if it
    was stopped before its end. Raises BrokenPipeError where nobody reads any more, and what `play` raises."""
    texts = run.texts
    with (
        stop_signals() as stop,
        # All is told in the end, but a reader that is stuck holds up neither the run nor its stop.
        lines_to(sys.stdout, lambda _: "", ROOM_BYTES, lambda: not stop.asked) as out,
        closing(run.play()) as played,
    ):
        console = Console(stderr=True) if as_json else Console(file=cast(IO[str], Outlet(out, sys.stdout)))
        if not as_json:
            _say(console, texts.heading)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
        with Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        ) as bar:
            task = bar.add_task("", total=texts.steps)
            for seen in chain(run.results[:], played):  # first those of an earlier part of this run
                if isinstance(seen, RunProgress):
                    what = f"{texts.step} {seen.step} of {texts.steps}, clock {seen.clock_s:,.0f} s"
                    bar.update(task, completed=seen.step - 1 + seen.done, description=what)
                elif as_json:
                    out.put(json.dumps(asdict(seen)) + "\n")  # type: ignore[call-overload]
                else:
                    _say(console, texts.line(seen))
                if out.unread:
                    raise BrokenPipeError(errno.EPIPE, "nobody reads any more")
                if stop.asked:
                    return False
        if not as_json:
            out.put(texts.summary(run.results) + "\n")
    return True


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def picture(path: Path, columns: int, size: tuple[float, float]) -> Iterator[Sequence[Axes]]:
    """So many axes side by side, which are a PNG of that size (inches) at `path` after the block."""
    from matplotlib.figure import Figure  # half a second, and only at the end of a run

    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots(1, columns, squeeze=False)[0]
    figure.savefig(path, dpi=120)


def number_points(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Writes 1, 2, ... above the points of a curve."""
    for number, point in enumerate(zip(xs, ys, strict=True), start=1):
        axes.annotate(str(number), point, textcoords="offset points", xytext=(0, 6), ha="center")
