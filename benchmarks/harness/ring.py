"""A ring that a claim is measured on."""

from __future__ import annotations

from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from firmware_sim.ring.result import EpochResult
from firmware_sim.ring.simulation import RingConfig, RingRun
from firmware_sim.runs.live import RunProgress


def epochs_of(wishes: RingConfig, tell: ProgressLine, name: str) -> list[EpochResult]:
    """Its epochs, played where they are not in its folder yet. Raises LabError."""
    try:
        run = RingRun(wishes)
        for seen in run.play():
            if isinstance(seen, RunProgress):
                tell(f"{name}, epoch {seen.step} of {wishes.settings.epochs}")
    except ValueError as error:
        raise LabError(str(error)) from None
    return run.results
