"""A simulation's run: loads data and models, plays the steps, and stores each one."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from firmware_sim.runs.folder import claim, hold, remove
from firmware_sim.runs.live import RunProgress
from firmware_sim.runs.results import line_of, result_of
from firmware_sim.world.disk import scratch
from onboard.data import loading
from onboard.data.images import DataError, Images, Labels, Rows, order
from onboard.learn.gossip.descent import strata
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.storage.files import replace_durably

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
    out: Path  # folder for results

    def load(self, graph: TrainGraph, holders: int, seed: int) -> tuple[list[Images], Images]:
        """Returns the training images of each holder, and the test images. Raises DataError, ValueError."""
        load = partial(
            loading.load, shape=graph.input_shape, folder=self.data_folder, objective=graph.objective
        )
        whole = load(self.data, part="train")
        test = load(self.test_data or self.data, part="test", rows=self.test_images)
        if self.alpha is None:
            rows = iid(whole.y, holders, self.images, seed)
        elif not whole.classes:
            raise ValueError(f"alpha is for classes, and model {graph.name!r} is to {graph.objective.kind}")
        else:
            mixed_by = strata(whole.y, whole.ignore)
            rows = dirichlet(mixed_by, len(whole.classes), holders, self.images, self.alpha, seed)
        return [whole.take(share) for share in rows], test


class Simulation(Protocol[Step]):
    """What a run plays step by step."""

    def play(self) -> Iterator[RunProgress | Step]: ...

    def save(self, path: Path) -> None:
        """Stores the state after the last step durably at a path that does not exist. Raises OSError."""


@dataclass(frozen=True)
class RunFiles(Generic[R]):
    """The files of a run of steps: a JSON line for each finished step, and the state after the last one."""

    asked: str  # what the run was asked for, as JSON: the folder's mark
    results: str
    state: str  # a file or a folder; `*` stands for the step's number
    result: type[R]  # the dataclass of a step's result
    free: Collection[str] = ()  # keys of `asked` that may change when the run continues


class SimulationRun(Generic[R]):
    """A simulation with its folder and the results of its finished steps; a stopped run continues after them.

    asked: the run's settings as JSON; whole: a run of so many steps is over for good and keeps no state. A
    subclass makes the `simulation` unless the run is over. Raises GraphError, OSError, and RunError where the
    folder is in use or holds anything but an earlier part of the run."""

    def __init__(
        self, model: str, folder: Path, files: RunFiles[R], asked: Mapping[str, Any], whole: int | None = None
    ) -> None:
        self._folder, self._files, self._asked, self._whole = folder, files, asked, whole
        self._open = hold(folder / files.asked, asked, files.free)
        self.disks = self._open.enter_context(scratch())
        self.train, self.infer = TrainGraph.load(model), InferGraph.load(model)
        self.metric = self.train.objective.metric
        self.simulation: Simulation[R] | None = None
        self.results: list[R] = []
        self.kept: Path | None = None  # the state after the results
        with suppress(FileNotFoundError, msgspec.DecodeError):  # a line cut short by a kill is played again
            for line in (folder / files.results).read_bytes().splitlines():
                self.results.append(result_of(line, files.result, self.metric))
        if len(self.results) != whole:
            while self.results and not self._state(len(self.results)).exists():
                self.results.pop()
            self.kept = self._state(len(self.results)) if self.results else None

    def play(self) -> Generator[RunProgress | R, None, None]:
        """Plays the remaining steps, each stored before it is yielded; frees the folder at the end."""
        with self._open:
            if (simulation := self.simulation) is None:
                return
            claim(self._folder / self._files.asked, self._asked)
            for seen in simulation.play():
                if not isinstance(seen, RunProgress):
                    self.results.append(seen)
                    self._keep(simulation)
                yield seen

    def _keep(self, simulation: Simulation[R]) -> None:
        """Stores the results and the state. Raises OSError."""
        files, kept = self._files, self._state(len(self.results))
        is_whole = len(self.results) == self._whole
        if not is_whole:
            new = kept.with_name(kept.name + ".new")
            remove(new)
            simulation.save(new)
            remove(kept)
            new.rename(kept)
        lines = b"".join(line_of(result, self.metric).encode() + b"\n" for result in self.results)
        replace_durably(self._folder / files.results, lines)
        for pattern in (files.state, files.state + ".new"):
            for path in self._folder.glob(pattern):
                if is_whole or path != kept:
                    remove(path)

    def _state(self, step: int) -> Path:
        return self._folder / self._files.state.replace("*", str(step))


def iid(y: NDArray[Any], devices: int, images: int, seed: int) -> list[Rows]:
    """Returns `devices` shares of up to `images` rows of y (N, ...), alike. Raises DataError for too few
    rows."""
    if len(y) < devices:
        raise DataError(f"{len(y)} images cannot make {devices} shares")
    size = min(images, len(y) // devices)
    return list(order(len(y), seed)[: devices * size].reshape(devices, size))


def dirichlet(y: Labels, classes: int, devices: int, images: int, alpha: float, seed: int) -> list[Rows]:
    """Returns `devices` shares of up to `images` rows of y (N), each with its own mixture of the classes.

    A device's mixture is drawn from a Dirichlet distribution, and its images by the mixture (Hsu, Qi and
    Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    2019, section 3). `alpha` is the concentration of each class where they are equally frequent, as in most
    work since (Li et al., "Federated Learning on Non-IID Data Silos", 2022); else the concentration is alpha
    * C * p, p the C classes' shares of y. Hsu's own alpha * p is C times less even. alpha to infinity is IID;
    alpha to 0 gives each device one class. Later devices get none of a class that is used up. Raises
    DataError as `iid`, ValueError for a bad alpha."""
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha is {alpha}, must be above 0 and finite")
    if len(y) < devices:
        raise DataError(f"{len(y)} images cannot make {devices} shares")
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, devices, len(y)))))
    shuffled = order(len(y), seed)
    pools = [shuffled[y[shuffled] == label] for label in range(classes)]
    left = np.array([len(pool) for pool in pools])
    prior = left / left.sum()
    present = prior > 0
    size = min(images, len(y) // devices)
    shares: list[Rows] = []
    for _ in range(devices):
        mixture = np.zeros(classes)
        mixture[present] = draw.dirichlet(alpha * present.sum() * prior[present])
        taken = _counts(draw, mixture, left, size)
        shares.append(
            np.concatenate([pool[n - k : n] for pool, n, k in zip(pools, left, taken, strict=True)])
        )
        left -= taken
    return shares


def _counts(
    draw: np.random.Generator, mixture: np.ndarray[tuple[int], np.dtype[np.float64]], left: Rows, size: int
) -> Rows:
    """Draws how many of each class a share of `size` takes by the mixture, never more than are left."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        room = left - taken
        # A mixture whose classes are all used up falls back on the remaining images.
        weights = np.where(room > 0, mixture, 0.0)
        if not weights.sum() > 0:
            weights = room.astype(np.float64)
        taken += np.minimum(draw.multinomial(missing, weights / weights.sum()), room)
    return taken
