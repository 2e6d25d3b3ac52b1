"""A board's step of training is as fast as torch's on one thread, in a third of the memory.

Each network's shipped graph in onnxruntime, and its module in torch eager, each in a process of its own, take
steps by turns: loss and gradients of the same images. Milliseconds are CPU time of the fastest step; memory
is the process's peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import click

from benchmarks.harness import process
from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from onboard.learn.networks import shipped

TURNS = 5
MEMORY = 1 / 3
OPTIONS = (
    click.Option(["--turns"], type=click.IntRange(1, 100), default=TURNS, help="How often each takes steps."),
    click.Option(["--network"], default="", help="Measure this one alone."),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A network and its batch. `steps`: in a turn; `most`: of torch's time that a step may take."""

    name: str
    batch: int
    steps: int
    most: float


SUBJECTS = (
    Subject("lenet5", 10, 40, 1.0),
    Subject("lenet5", 32, 20, 1.0),
    Subject("resnet20", 16, 4, 1.25),
    Subject("resnet20-64", 16, 2, 1.25),
    Subject("unet-64", 16, 2, 1.25),
    Subject("vit-tiny-64", 16, 2, 1.0),
)


def measure(tell: ProgressLine, *, turns: int = TURNS, network: str = "") -> list[Row]:
    """Trains each network that ships both ways. Raises LabError."""
    chosen = [each for each in SUBJECTS if each.name in shipped() and network in ("", each.name)]
    if not chosen:
        raise LabError(f"no network {network!r} is measured: {', '.join(each.name for each in SUBJECTS)}")
    rows = list[Row]()
    for subject in chosen:
        tell(f"training {subject.name}, {subject.batch} images a step")
        rows += _beside(subject, turns)
    return rows


def _beside(subject: Subject, turns: int) -> Iterator[Row]:
    ends = [Stepper(kind, subject) for kind in ("onnxruntime", "torch")]
    try:
        for end in ends:
            end.turn(2)  # which allocate
        spent_s = [[end.turn(subject.steps) for end in ends] for _ in range(turns)]
        ours_s, torch_s = map(min, zip(*spent_s, strict=True))
        ours_bytes, torch_bytes = (end.peak_bytes for end in ends)
    finally:
        for end in ends:
            end.close()
    what = f"{subject.name}, {subject.batch} images"
    yield Row(f"{what}: a step by the graph", 1e3 * ours_s, "ms")
    yield Row(f"{what}: a step by torch", 1e3 * torch_s, "ms")
    yield Row(f"{what}: of torch's time", ours_s / torch_s, "", bound=subject.most)
    yield Row(f"{what}: peak memory with the graph", ours_bytes / 1e6, "MB")
    yield Row(f"{what}: peak memory with torch", torch_bytes / 1e6, "MB")
    yield Row(f"{what}: of torch's memory", ours_bytes / torch_bytes, "", bound=MEMORY)


class Stepper:
    """A process of one thread that trains one way when told to."""

    def __init__(self, kind: str, subject: Subject) -> None:
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.ends.step_end", kind, subject.name, str(subject.batch)]
        self._what = f"{kind} with {subject.name}"
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}
        )

    def turn(self, steps: int) -> float:
        """Takes so many steps; returns the CPU seconds of the fastest. Raises LabError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
            return float(json.loads(self._process.stdout.readline()))
        except (OSError, ValueError):
            raise LabError(f"{self._what}: the process ended, with {self._process.wait()}") from None

    @property
    def peak_bytes(self) -> int:
        return process.memory(self._process.pid).peak_bytes

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
