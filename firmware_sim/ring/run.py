"""A ring's run from its wishes to its results: data and model in, epochs one by one out."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from firmware_sim.ring.result import EpochResult
from firmware_sim.ring.settings import RingSettings
from firmware_sim.ring.simulation import BadTotals, Ring
from firmware_sim.runs.live import RunProgress
from firmware_sim.runs.record import RecordNames, RunRecord
from firmware_sim.runs.split import shares
from firmware_sim.world.disk import scratch
from onboard.data import loading
from onboard.data.loading import Images
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.storage.files import write_durably

NAMES = RecordNames(asked="ring.json", results="epochs.jsonl", state="state-*")


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
        settings["recipe"] = msgspec.to_builtins(self.settings.recipe)
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
            None if wishes.out is None else RunRecord(wishes.out, NAMES, EpochResult, wishes.as_json())
        )
        self._scratch = ExitStack()
        self._disks = self._scratch.enter_context(scratch()) / "nodes"
        self.results: list[EpochResult] = []
        if self._record is not None:
            self.results, kept = self._record.load(settings.epochs)
            if kept is not None:
                shutil.copytree(kept, self._disks)
        self._ring: Ring | None = None
        self._epochs = settings.epochs
        if self._is_over:
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

    def play(self) -> Generator[RunProgress | EpochResult, None, None]:
        """Plays the epochs that are left; each is stored before it is told. The folder is free afterwards."""
        try:
            for seen in self._ring.play() if self._ring is not None else ():
                if isinstance(seen, EpochResult):
                    self.results.append(seen)
                    if self._record is not None:
                        self._record.keep(self.results, None if self._is_over else self._save)
                yield seen
        finally:
            self._scratch.close()
            if self._record is not None:
                self._record.close()

    @property
    def _is_over(self) -> bool:
        return len(self.results) == self._epochs

    def _save(self, path: Path) -> None:
        """The disks of all nodes are durable at that path."""
        shutil.copytree(self._disks, path, copy_function=_copy_durably)


def _copy_durably(source: str, target: str) -> None:
    write_durably(Path(target), Path(source).read_bytes())


def images_of(wishes: RingConfig, graph: TrainGraph) -> tuple[list[Images], Images]:
    """The images of each node, and those to test on. Raises DataError, RingError."""
    load = partial(loading.load, shape=graph.input_shape, folder=wishes.data_folder, classes=graph.classes)
    whole = load(wishes.data)
    test = load(wishes.test_data or wishes.data, part="test", rows=wishes.test_images)
    nodes, seed = wishes.settings.nodes, wishes.settings.seed
    return shares(whole, nodes, wishes.images, wishes.alpha, seed), test
