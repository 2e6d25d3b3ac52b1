"""The display of a run: result lines over a transient progress bar, a summary, a picture."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Generic, Protocol, TypeVar, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from firmware_sim.runs.results import line_of
from onboard.console.errors import refused
from onboard.console.lines import ROOM_BYTES, Outlet, lines_to
from onboard.console.log import start
from onboard.console.signals import stop_signals
from onboard.learn.objectives import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

R = TypeVar("R")
UP, DOWN = "#1b6ca8", "#8fc1e3"  # colours of uplink and downlink in pictures


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The number of the current step, and the share of it that is done, 0 to 1."""

    step: int
    done: float
    clock_s: float


@dataclass(frozen=True, slots=True)
class RunDisplay(Generic[R]):
    """How a run is shown."""

    metric: Metric  # of the results' scores
    step: str  # the name of a step
    steps: int  # at most
    heading: str  # above the lines
    line: Callable[[R], str]  # of one result
    summary: Callable[[Sequence[R]], str]  # of all results
    stopped: str  # says how a run continues that was stopped after {} steps
    draw: Callable[[Sequence[R]], None]  # the results of a finished run, into its folder


class PlayedRun(Protocol[R]):
    """A run with the results of its finished steps."""

    results: list[R]
    display: RunDisplay[R]

    def play(self) -> Generator[RunProgress | R, None, None]:
        """Runs the remaining steps."""


def command(make: Callable[[], PlayedRun[R]], out: Path, *, as_json: bool) -> None:
    """Makes and shows a run as a command does: an error is one line, a stop is exit code 130."""
    start("json" if as_json else "text", logging.ERROR)
    try:
        run = make()
        is_over = show(run, as_json=as_json)
        if is_over:
            run.display.draw(run.results)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        refused(error, out)
    if not is_over:
        click.echo(run.display.stopped.format(len(run.results)), err=True)
        sys.exit(130)


def show(run: PlayedRun[R], *, as_json: bool) -> bool:
    """Plays a run on standard output, as JSON lines if wanted. Returns False if it was stopped early. Raises
    BrokenPipeError where nobody reads any more, and what `play` raises."""
    display = run.display
    with (
        stop_signals() as stop,
        # All lines are written in the end, but a stuck reader delays neither the run nor its stop.
        lines_to(sys.stdout, lambda _: "", ROOM_BYTES, lambda: not stop.asked) as out,
        closing(run.play()) as played,
    ):
        console = Console(stderr=True) if as_json else Console(file=cast(IO[str], Outlet(out, sys.stdout)))
        if not as_json:
            print_line(console, display.heading)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
        with Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        ) as bar:
            task = bar.add_task("", total=display.steps)
            for seen in chain(run.results[:], played):  # first those of an earlier part of this run
                if isinstance(seen, RunProgress):
                    what = f"{display.step} {seen.step} of {display.steps}, clock {seen.clock_s:,.0f} s"
                    bar.update(task, completed=seen.step - 1 + seen.done, description=what)
                elif as_json:
                    out.put(line_of(seen, display.metric) + "\n")
                else:
                    print_line(console, display.line(seen))
                if out.unread:
                    raise BrokenPipeError(errno.EPIPE, "nobody reads any more")
                if stop.asked:
                    return False
        if not as_json:
            out.put(display.summary(run.results) + "\n")
    return True


def print_line(console: Console, text: str) -> None:
    """Prints a line as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def picture(path: Path, columns: int, size: tuple[float, float]) -> Iterator[Sequence[Axes]]:
    """Yields axes side by side, and after the block saves them as a PNG of that size (inches)."""
    from matplotlib.figure import Figure  # half a second, and only at the end of a run

    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots(1, columns, squeeze=False)[0]
    figure.savefig(path, dpi=120)


def number_points(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    for number, point in enumerate(zip(xs, ys, strict=True), start=1):
        axes.annotate(str(number), point, textcoords="offset points", xytext=(0, 6), ha="center")
