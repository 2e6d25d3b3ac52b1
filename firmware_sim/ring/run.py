"""A ring's run: what it was asked for, and how it begins or goes on."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from firmware_sim.ring.result import EpochResult, draw, texts
from firmware_sim.ring.settings import RingSettings
from firmware_sim.ring.simulation import BadTotals, Ring
from firmware_sim.runs.folder import RecordNames, RunRecord
from firmware_sim.runs.run import RunConfig, SimulationRun

NAMES = RecordNames(asked="ring.json", results="epochs.jsonl", state="state-*")


@dataclass(frozen=True, kw_only=True)
class RingConfig(RunConfig):
    """What a ring's run was asked for. `node_images`: how many of the test images each node's own model is
    tried on."""

    settings: RingSettings
    images: int = 1000
    node_images: int = 500

    def as_json(self) -> dict[str, Any]:
        """All that changes a result, as JSON has it."""
        settings = asdict(self.settings)
        settings["recipe"] = msgspec.to_builtins(self.settings.recipe)
        settings["cuts"] = {f"{a}-{b}": times for (a, b), times in self.settings.cuts.items()}
        own = {"data": self.data, "images": self.images, "alpha": self.alpha, "node_images": self.node_images}
        return own | settings

    def record(self) -> RunRecord[EpochResult] | None:
        """The record of such a run. Raises FolderError, OSError."""
        return None if self.out is None else RunRecord(self.out, NAMES, EpochResult, self.as_json())

    def draw(self, results: list[EpochResult]) -> None:
        """Draws the epochs into the run's folder, if it has one."""
        settings = self.settings
        if self.out is not None:
            title = f"{settings.method}, {settings.shape} of {settings.nodes}, {self.data}"
            draw({settings.method: results}, title, self.out / "ring.png")


class RingRun(SimulationRun[EpochResult]):
    """See `SimulationRun`. `images`: that a node has, at most.

    Raises DataError, GraphError, RingError, FolderError, BadTotals, OSError.
    """

    def __init__(self, config: RingConfig) -> None:
        settings = config.settings
        super().__init__(settings.model, config.record(), settings.epochs)
        self.config, self.images = config, config.images
        goes_on = "; the same command goes on from there"
        self.texts = texts(settings.epochs, self.train.layout.parameters, settings.link, goes_on)
        if len(self.results) == settings.epochs:
            return
        shares, test = config.load(self.train, settings.nodes, settings.seed)
        self.images = len(shares[0])
        disks = self.disks / "nodes"
        if self.kept is None:
            disks.mkdir()
        else:
            shutil.copytree(self.kept, disks)
        try:
            self.simulation = Ring(settings, shares, test, self.train, self.infer, disks, config.node_images)
        except BadTotals as error:
            raise BadTotals(f"{config.out}: {error}; choose another folder with --out") from None
        if self.record is not None:
            self.record.claim()

    def draw(self) -> None:
        """Draws the epochs into the run's folder, if it has one."""
        self.config.draw(self.results)
