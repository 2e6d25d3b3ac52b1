"""Whoever waits for a benchmark sees on standard error what it is doing and since when."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

LINE_EVERY_S = 10.0  # where lines cannot be rewritten, such as in a log


class ProgressLine:
    """Says what is going on: one line that is rewritten on a terminal, a line now and then elsewhere."""

    def __init__(
        self, name: str, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._out = sys.stderr if out is None else out
        self._clock = clock
        self._started_s = clock()
        self._stage = ""
        self._line_due_s = self._started_s

    def __call__(self, stage: str, left_s: float | None = None) -> None:
        """Now at `stage`, which takes `left_s` seconds more if that is known."""
        now = self._clock()
        left = "" if left_s is None else f", {max(0.0, left_s):.0f} s to go"
        line = f"{self._name} {now - self._started_s:4.0f} s  {stage}{left}"
        if self._out.isatty():
            print(f"\r\033[K{line}", end="", file=self._out, flush=True)
        elif stage != self._stage or now >= self._line_due_s:
            print(line, file=self._out, flush=True)
            self._line_due_s = now + LINE_EVERY_S
        self._stage = stage

    def end(self) -> None:
        """Clears the line, so that the table starts on an empty one."""
        if self._out.isatty():
            print("\r\033[K", end="", file=self._out, flush=True)
