"""A long run on a terminal: its lines, and under them a bar that is gone at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Live:
    """`total`: of the bar's steps. Without `lines` the bar alone is shown, and that on a terminal only."""

    def __init__(self, console: Console, total: int, heading: str, *, lines: bool = True) -> None:
        self._console, self._total, self._heading, self._lines = console, total, heading, lines
        self._progress: Progress | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside the block there is a bar."""
        self.line(self._heading)
        if not self._console.is_terminal:
            yield
            return
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
        with Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True) as self._progress:
            self._task = self._progress.add_task("", total=self._total)
            yield
        self._progress = None

    def line(self, text: str) -> None:
        """One line that stays."""
        if self._lines:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def bar(self, completed: float, what: str) -> None:
        """So many steps are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=completed, description=what)
