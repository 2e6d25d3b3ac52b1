"""A fleet or a ring that a claim is measured on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from firmware_sim.runs.live import PlayedRun, RunProgress

R = TypeVar("R")


def results_of(begin: Callable[[], PlayedRun[R]], tell: ProgressLine, name: str) -> list[R]:
    """Its rounds or epochs, played where they are not in its folder yet. Raises LabError."""
    try:
        run = begin()
        for seen in run.play():
            if isinstance(seen, RunProgress):
                tell(f"{name}, {run.display.step} {seen.step} of {run.display.steps}")
    except ValueError as error:
        raise LabError(str(error)) from None
    return run.results
