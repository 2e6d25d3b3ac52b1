"""A fleet's run: what it was asked for, and how it begins or goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from firmware_sim.fleet.result import RoundResult, draw, texts
from firmware_sim.fleet.simulation import Fleet, FleetSettings
from firmware_sim.runs.folder import RecordNames, RunRecord
from firmware_sim.runs.run import RunConfig, SimulationRun
from onboard.learn.federated.rounds import finished

NAMES = RecordNames(asked="fleet.json", results="rounds.jsonl", state="model-*.bin")
MAY_DIFFER = ("rounds", "target")  # a run may go on for longer than it was first asked to


@dataclass(frozen=True, kw_only=True)
class FleetConfig(RunConfig):
    """What a fleet's run was asked for."""

    settings: FleetSettings
    images: int = 600

    def as_json(self) -> dict[str, Any]:
        """All that changes a result, as JSON has it."""
        settings = asdict(self.settings)
        settings["training"] = msgspec.to_builtins(self.settings.training)
        for key in ("boards", "links"):
            settings[key] = [profile["name"] for profile in settings[key]]
        split = {"split": "iid"} if self.alpha is None else {"split": "dirichlet", "alpha": self.alpha}
        return {"data": self.data, "images": self.images} | split | settings

    def record(self) -> RunRecord[RoundResult] | None:
        """The record of such a run. Raises FolderError, OSError."""
        return (
            None if self.out is None else RunRecord(self.out, NAMES, RoundResult, self.as_json(), MAY_DIFFER)
        )


class FleetRun(SimulationRun[RoundResult]):
    """See `SimulationRun`. Raises DataError, GraphError, FleetError, FolderError, OSError."""

    def __init__(self, config: FleetConfig) -> None:
        super().__init__(config.settings.model, config.record())
        settings = config.settings
        self.config = config
        self.texts = texts(settings.rounds, self.train.layout.parameters)
        if finished([result.accuracy for result in self.results], settings.rounds, settings.target):
            return
        shares, test = config.load(self.train, settings.devices, settings.seed)
        self.simulation = fleet = Fleet(settings, shares, test, self.disks, self.train, self.infer)
        if self.kept is not None:
            fleet.resume(self.results, self.kept.read_bytes())
        if self.record is not None:
            self.record.claim()

    def draw(self) -> None:
        """Draws the rounds into the run's folder, if it has one."""
        config, settings = self.config, self.config.settings
        if config.out is not None:
            which = f"{settings.select} of {settings.devices} devices"
            title = f"{settings.training.method}, {which}, {config.data}"
            draw(self.results, title, config.out / "rounds.png")
