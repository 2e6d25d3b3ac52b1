"""A ring's run from its wishes to its results: data and model in, epochs one by one out."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from firmware_sim.ring.record import RingRecord
from firmware_sim.ring.result import EpochResult, RingProgress
from firmware_sim.ring.settings import RingError, RingSettings
from firmware_sim.ring.simulation import BadTotals, Ring
from firmware_sim.runs.split import dirichlet, iid
from firmware_sim.world.disk import scratch
from onboard.data import loading
from onboard.data.loading import Images
from onboard.learn.graph import InferGraph, TrainGraph


@dataclass(frozen=True, kw_only=True)
class RingConfig:
    """What a run was asked for. `images`: of each node, at most; `alpha`: of the Dirichlet split, None for
    shares that are alike; `test_data`: whose test part the models are tried on, None for that of `data`, and
    `test_images`: how many of it at most; `node_images`: how many of those each node's own model is tried on;
    `out`: folder for results, None to keep none."""

    settings: RingSettings
    data: str = "mnist"
    data_folder: Path | None = None
    images: int = 1000
    alpha: float | None = None
    test_data: str | None = None
    test_images: int | None = None
    node_images: int = 500
    out: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """All that changes a result, as JSON has it."""
        settings = asdict(self.settings)
        settings["cuts"] = {f"{a}-{b}": times for (a, b), times in self.settings.cuts.items()}
        own = {"data": self.data, "images": self.images, "alpha": self.alpha, "node_images": self.node_images}
        return own | settings


class RingRun:
    """A ring with its data, and the epochs that are over. `images`: that a node has, at most.

    Raises DataError, GraphError, RingError, FolderError, ValueError, OSError.
    """

    def __init__(self, wishes: RingConfig) -> None:
        settings = wishes.settings
        train, infer = TrainGraph.load(settings.model), InferGraph.load(settings.model)
        self.parameters, self.images = train.layout.parameters, wishes.images
        self._record = (
            None if wishes.out is None else RingRecord(wishes.out, wishes.as_json(), settings.epochs)
        )
        self._scratch = ExitStack()
        self._disks = self._scratch.enter_context(scratch()) / "nodes"
        self.results = [] if self._record is None else self._record.load(self._disks)
        self._ring: Ring | None = None
        if len(self.results) == settings.epochs:
            return
        shares, test = images_of(wishes, train)
        self.images = len(shares[0])
        self._disks.mkdir(exist_ok=True)
        try:
            self._ring = Ring(settings, shares, test, train, infer, self._disks, wishes.node_images)
        except BadTotals as error:
            raise BadTotals(f"{wishes.out}: {error}; choose another folder with --out") from None
        if self._record is not None:
            self._record.claim()

    def play(self) -> Generator[RingProgress | EpochResult, None, None]:
        """Plays the epochs that are left; each is stored before it is told. The folder is free afterwards."""
        try:
            for seen in self._ring.play() if self._ring is not None else ():
                if isinstance(seen, EpochResult):
                    self.results.append(seen)
                    if self._record is not None:
                        self._record.keep(self.results, self._disks)
                yield seen
        finally:
            self._scratch.close()
            if self._record is not None:
                self._record.close()


def images_of(wishes: RingConfig, graph: TrainGraph) -> tuple[list[Images], Images]:
    """The images of each node, and those to test on. Raises DataError, RingError."""
    load = partial(loading.load, shape=graph.input_shape, folder=wishes.data_folder, classes=graph.classes)
    whole = load(wishes.data)
    test = load(wishes.test_data or wishes.data, part="test", rows=wishes.test_images)
    nodes, seed = wishes.settings.nodes, wishes.settings.seed
    try:
        rows = (
            iid(whole.y, nodes, wishes.images, seed)
            if wishes.alpha is None
            else dirichlet(whole.y, len(whole.classes), nodes, wishes.images, wishes.alpha, seed)
        )
    except ValueError as error:
        raise RingError(str(error)) from None
    return [whole.take(share) for share in rows], test
