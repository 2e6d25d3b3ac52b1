"""A fleet's run from its wishes to its files: data and models in, rounds one by one out."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from firmware_sim.fleet.record import FleetRecord
from firmware_sim.fleet.result import FleetProgress, RoundResult
from firmware_sim.fleet.simulation import Fleet, FleetError, FleetSettings
from firmware_sim.runs.split import dirichlet, iid
from onboard.data import loading
from onboard.data.loading import Images
from onboard.learn.federated.rounds import finished
from onboard.learn.graph import InferGraph, TrainGraph

Split = Literal["iid", "dirichlet"]


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
        self._record = None if wishes.out is None else FleetRecord(wishes.out, wishes.as_json())
        self.results, self._packed = ([], b"") if self._record is None else self._record.load()

    def play(self) -> Generator[FleetProgress | RoundResult, None, None]:
        """Plays the rounds that are left; each is stored before it is told. The folder is free afterwards."""
        try:
            yield from self._play()
        finally:
            if self._record is not None:
                self._record.close()

    def _play(self) -> Generator[FleetProgress | RoundResult, None, None]:
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
                        self._record.keep(seen, fleet.packed)
                yield seen

    def _shares(self) -> list[Images]:
        """The images of each device."""
        wishes, settings = self.wishes, self.wishes.settings
        images = loading.load(
            wishes.data, self._train.input_shape, folder=wishes.data_folder, part="train",
            classes=self._train.classes,
        )  # fmt: skip
        if wishes.split == "iid":
            rows = iid(images.y, settings.devices, wishes.images, settings.seed)
        else:
            try:
                rows = dirichlet(
                    images.y,
                    len(images.classes),
                    settings.devices,
                    wishes.images,
                    wishes.alpha,
                    settings.seed,
                )
            except ValueError as error:
                raise FleetError(str(error)) from None
        return [images.take(share) for share in rows]
