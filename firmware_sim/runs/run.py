"""A simulation's run: loads data and models, plays the steps, and stores each one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from firmware_sim.runs.folder import RunRecord
from firmware_sim.runs.live import RunProgress
from firmware_sim.runs.split import shares
from firmware_sim.world.disk import scratch
from onboard.data import loading
from onboard.data.images import Images
from onboard.learn.graph import InferGraph, TrainGraph

R = TypeVar("R")
Step = TypeVar("Step", covariant=True)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run is asked for."""

    data: str = "mnist"  # name of the training data
    data_folder: Path | None = None  # where mnist and eurosat are
    images: int  # of each device or node, at most
    alpha: float | None = None  # of the Dirichlet split; None for shares that are alike
    test_data: str | None = None  # whose test part evaluates the models; None for that of `data`
    test_images: int | None = None  # how many of it at most
    out: Path | None = None  # folder for results; None to keep none

    def load(self, graph: TrainGraph, holders: int, seed: int) -> tuple[list[Images], Images]:
        """Returns the training images of each holder, and the test images. Raises DataError, ValueError."""
        load = partial(loading.load, shape=graph.input_shape, folder=self.data_folder, classes=graph.classes)
        whole = load(self.data, part="train")
        test = load(self.test_data or self.data, part="test", rows=self.test_images)
        return shares(whole, holders, self.images, self.alpha, seed), test


class Simulation(Protocol[Step]):
    """What a run plays step by step."""

    def play(self) -> Iterator[RunProgress | Step]: ...

    def save(self, path: Path) -> None:
        """Stores the state after the last step durably at a path that does not exist. Raises OSError."""


class SimulationRun(Generic[R]):
    """A simulation with its data, its folder and the results of its finished steps.

    whole: a run of so many steps is over for good and keeps no state. A subclass makes the `simulation`
    unless the run is over, and then claims the folder."""

    def __init__(self, model: str, record: RunRecord[R] | None, whole: int | None = None) -> None:
        self.train, self.infer = TrainGraph.load(model), InferGraph.load(model)
        self.record, self._whole = record, whole
        self.simulation: Simulation[R] | None = None
        self.results, self.kept = ([], None) if record is None else record.load(whole)
        self._open = ExitStack()
        if record is not None:
            self._open.enter_context(closing(record))
        self.disks = self._open.enter_context(scratch())

    def play(self) -> Generator[RunProgress | R, None, None]:
        """Plays the remaining steps, each stored before it is yielded; frees the folder at the end."""
        with self._open:
            if (simulation := self.simulation) is None:
                return
            for seen in simulation.play():
                if not isinstance(seen, RunProgress):
                    self.results.append(seen)
                    if self.record is not None:
                        is_whole = len(self.results) == self._whole
                        self.record.keep(self.results, None if is_whole else simulation.save)
                yield seen
