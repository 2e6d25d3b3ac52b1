"""A fleet's run from its wishes to its files: data and models in, rounds one by one out."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from firmware_sim.fleet.result import RoundResult
from firmware_sim.fleet.simulation import Fleet, FleetSettings
from firmware_sim.runs.live import RunProgress
from firmware_sim.runs.record import RecordNames, RunRecord
from firmware_sim.runs.split import shares
from onboard.data import loading
from onboard.data.loading import Images
from onboard.learn.federated.rounds import finished
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.storage.files import write_durably

Split = Literal["iid", "dirichlet"]
NAMES = RecordNames(asked="fleet.json", results="rounds.jsonl", state="model-*.bin")
MAY_DIFFER = ("rounds", "target")  # a run may go on for longer than it was first asked to


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """What a run was asked for. `images`: of each device, at most; `alpha`: of the Dirichlet split; `out`:
    folder for results, None to keep none."""

    settings: FleetSettings
    data: str = "mnist"
    data_folder: Path | None = None
    images: int = 600
    split: Split = "iid"
    alpha: float = 0.3
    out: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """All that changes a result, as JSON has it."""
        settings = asdict(self.settings)
        settings["training"] = msgspec.to_builtins(self.settings.training)
        for key in ("boards", "links"):
            settings[key] = [profile["name"] for profile in settings[key]]
        split = {"split": self.split} | ({"alpha": self.alpha} if self.split == "dirichlet" else {})
        return {"data": self.data, "images": self.images} | split | settings


class FleetRun:
    """A fleet with its data, and the rounds that are over.

    Raises DataError, GraphError, FleetError, FolderError, OSError.
    """

    def __init__(self, wishes: FleetConfig) -> None:
        self.wishes = wishes
        settings = wishes.settings
        self._train, self._infer = TrainGraph.load(settings.model), InferGraph.load(settings.model)
        self.parameters = self._train.layout.parameters
        self._record = None if wishes.out is None else run_record(wishes.out, wishes)
        self.results: list[RoundResult] = []
        self._packed = b""  # the weights that the last round made
        if self._record is not None:
            self._record.claim()
            self.results, model = self._record.load()
            self._packed = b"" if model is None else model.read_bytes()

    def play(self) -> Generator[RunProgress | RoundResult, None, None]:
        """Plays the rounds that are left; each is stored before it is told. The folder is free afterwards."""
        try:
            yield from self._play()
        finally:
            if self._record is not None:
                self._record.close()

    def _play(self) -> Generator[RunProgress | RoundResult, None, None]:
        wishes, settings = self.wishes, self.wishes.settings
        if finished([result.accuracy for result in self.results], settings.rounds, settings.target):
            return
        shape, classes = self._train.input_shape, self._train.classes
        test = loading.load(wishes.data, shape, folder=wishes.data_folder, part="test", classes=classes)
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            fleet = Fleet(
                wishes.settings, self._shares(), test, Path(folder), self._train, self._infer
            )  # fmt: skip
            if self.results:
                fleet.resume(self.results, self._packed)
            for seen in fleet.play():
                if isinstance(seen, RoundResult):
                    self.results.append(seen)
                    if self._record is not None:
                        self._record.keep(self.results, partial(_save, packed=fleet.packed))
                yield seen

    def _shares(self) -> list[Images]:
        """The images of each device."""
        wishes, settings = self.wishes, self.wishes.settings
        images = loading.load(
            wishes.data, self._train.input_shape, folder=wishes.data_folder, part="train",
            classes=self._train.classes,
        )  # fmt: skip
        alpha = wishes.alpha if wishes.split == "dirichlet" else None
        return shares(images, settings.devices, wishes.images, alpha, settings.seed)


def run_record(folder: Path, wishes: FleetConfig) -> RunRecord[RoundResult]:
    """The record of such a run. Raises FolderError, OSError."""
    return RunRecord(folder, NAMES, RoundResult, wishes.as_json(), MAY_DIFFER)


def _save(path: Path, packed: bytes) -> None:
    write_durably(path, packed)
