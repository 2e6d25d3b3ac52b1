"""A long run on a terminal: its lines, under them a bar that is gone at the end, and a summary."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import IO, Generic, Protocol, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from onboard.console.lines import ROOM_BYTES, Outlet, lines_to
from onboard.console.signals import stop_signals

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Where a run stands: the number of its step, and the share of that which is done, 0 to 1."""

    step: int
    done: float
    clock_s: float


class PlayedRun(Protocol[R]):
    """A run, with the results of its steps that are over; `play` runs those that are left."""

    results: list[R]

    def play(self) -> Generator[RunProgress | R, None, None]: ...


@dataclass(frozen=True, slots=True)
class RunTexts(Generic[R]):
    """What is said of a run. `step`: what one of its `steps` is called; `line`: of a result, under `heading`;
    `summary`: of all results."""

    step: str
    steps: int
    heading: str
    line: Callable[[R], str]
    summary: Callable[[Sequence[R]], str]


class RunView(Generic[R]):
    """Without `lines` the bar alone is shown, and that on a terminal only."""

    def __init__(self, console: Console, texts: RunTexts[R], *, lines: bool = True) -> None:
        self._console, self._texts, self._lines = console, texts, lines
        self._bar: Progress | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside the block there is a bar."""
        self._say(self._texts.heading)
        if not self._console.is_terminal:
            yield
            return
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
        with Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True) as self._bar:
            self._task = self._bar.add_task("", total=self._texts.steps)
            yield
        self._bar = None

    def show(self, seen: RunProgress | R) -> None:
        """Says a result's line, or moves the bar."""
        texts = self._texts
        if not isinstance(seen, RunProgress):
            self._say(texts.line(seen))
        elif self._bar is not None:
            what = f"{texts.step} {seen.step} of {texts.steps}, clock {seen.clock_s:,.0f} s"
            self._bar.update(self._task, completed=seen.step - 1 + seen.done, description=what)

    def _say(self, text: str) -> None:
        if self._lines:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def show(run: PlayedRun[R], texts: RunTexts[R], *, as_json: bool) -> bool:
    """Plays a run and shows it on standard output, results as lines of JSON if wanted. Returns False if it
    was stopped before its end. Raises BrokenPipeError where nobody reads any more, and what `play` raises."""
    with (
        stop_signals() as stop,
        # All is told in the end, but a reader that is stuck holds up neither the run nor its stop.
        lines_to(sys.stdout, lambda _: "", ROOM_BYTES, lambda: not stop.asked) as out,
        contextlib.closing(run.play()) as played,
    ):
        console = Console(stderr=True) if as_json else Console(file=cast(IO[str], Outlet(out, sys.stdout)))
        view = RunView(console, texts, lines=not as_json)
        with view.shown():
            for seen in chain(run.results[:], played):  # first those of an earlier part of this run
                view.show(seen)
                if as_json and not isinstance(seen, RunProgress):
                    out.put(json.dumps(asdict(seen)) + "\n")  # type: ignore[call-overload]
                if out.unread:
                    raise BrokenPipeError(errno.EPIPE, "nobody reads any more")
                if stop.asked:
                    return False
        if not as_json:
            out.put(texts.summary(run.results) + "\n")
    return True
