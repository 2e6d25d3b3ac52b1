"""The plan of one board's round: the knobs, and what its draws come from."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from onboard.learn.federated.methods import TrainingPhase
from onboard.mission.training import BoardTraining, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a round asks of one board, and what its draws come from (`seed`, `round`, `node`).

    Raises ValueError for a knob that is out of its range.
    """

    training: BoardTraining
    seed: int
    round: int
    node: int

    def __post_init__(self) -> None:
        msgspec.convert(msgspec.structs.asdict(self.training), Training)

    @property
    def phases(self) -> tuple[TrainingPhase, ...]:
        """What each epoch does, in order."""
        return self.training.rule.phases(self.training, self.round)
