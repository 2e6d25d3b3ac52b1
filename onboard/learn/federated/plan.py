"""The plan of one board's round: what each epoch does.

There are four methods, each a sequence of epochs (`Plan.phases`):

- "fedavg" and "fedavg-zstd": plain epochs; float32 weights travel, plain or compressed.
- "spacedml": the procedure of SpaceDML (section IV) and ALQ: plain epochs in the mission's first round only,
  then pruning in the alpha domain, optimizing bases, optimizing coordinates, and post-training with the
  straight-through estimator.
- "spacedml-fast": plain epochs, one allocation of bases by gain per bit in place of pruning and optimizing,
  then epochs with the straight-through estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from onboard.mission.training import BoardTraining, Training


class TrainingPhase(Enum):
    """What an epoch does."""

    PLAIN = "plain"  # the weights themselves take Adam's steps
    PRUNE = "prune"  # coordinates take steps, and those that matter least are dropped (ALQ section 3.2)
    BASES = "bases"  # every basis is chosen anew at each step (ALQ section 3.3)
    COORDINATES = "coordinates"  # coordinates take steps (ALQ section 3.3)
    STRAIGHT = "straight"  # weights take the gradient of what their bases make of them (ALQ section 3.4)


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
        knobs = self.training
        if knobs.is_dense:
            return (TrainingPhase.PLAIN,) * knobs.epochs
        pretraining = (TrainingPhase.PLAIN,) * knobs.pretrain_epochs
        post_training = (TrainingPhase.STRAIGHT,) * knobs.epochs
        if knobs.method == "spacedml-fast":
            return pretraining + post_training
        quantizing = (
            (TrainingPhase.PRUNE,) * knobs.prune_epochs
            + (TrainingPhase.BASES,) * knobs.basis_epochs
            + (TrainingPhase.COORDINATES,) * knobs.coordinate_epochs
        )
        # "The pre-training should only be operated in the first round" (SpaceDML, section III-C).
        return (pretraining if self.round == 1 else ()) + quantizing + post_training
