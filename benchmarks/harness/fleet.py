"""A fleet that a claim is measured on."""

from __future__ import annotations

from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from firmware_sim.fleet.result import RoundResult
from firmware_sim.fleet.simulation import FleetConfig, FleetRun
from firmware_sim.runs.live import RunProgress


def rounds_of(wishes: FleetConfig, tell: ProgressLine, name: str) -> list[RoundResult]:
    """Its rounds, played where they are not in its folder yet. Raises LabError."""
    try:
        run = FleetRun(wishes)
        for seen in run.play():
            if isinstance(seen, RunProgress):
                tell(f"{name}, round {seen.step} of {wishes.settings.rounds}")
    except ValueError as error:
        raise LabError(str(error)) from None
    return run.results
