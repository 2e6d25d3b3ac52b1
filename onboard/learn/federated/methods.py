"""The table of training methods: what a board's epochs do, and by which codec its result travels.

- "fedavg" and "fedavg-zstd": plain epochs; float32 weights travel, plain or compressed.
- "spacedml": the procedure of SpaceDML (section IV) and ALQ: plain epochs in the mission's first round only,
  then pruning in the alpha domain, optimizing bases, optimizing coordinates, and post-training with the
  straight-through estimator.
- "spacedml-fast": plain epochs, one allocation of bases by gain per bit in place of pruning and optimizing,
  then epochs with the straight-through estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from onboard.codec import formats

if TYPE_CHECKING:
    from onboard.mission.training import BoardTraining


class TrainingPhase(Enum):
    """What an epoch does."""

    PLAIN = "plain"  # the weights themselves take Adam's steps
    PRUNE = "prune"  # coordinates take steps, and those that matter least are dropped (ALQ section 3.2)
    BASES = "bases"  # every basis is chosen anew at each step (ALQ section 3.3)
    COORDINATES = "coordinates"  # coordinates take steps (ALQ section 3.3)
    STRAIGHT = "straight"  # weights take the gradient of what their bases make of them (ALQ section 3.4)


Phases = tuple[TrainingPhase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMethod:
    """What boards do in a round, and what travels."""

    phases: Callable[[BoardTraining, int], Phases]
    """What each epoch does, in order, by the knobs and the number of the round. Every phase but PLAIN trains
    ALQ's bases."""
    format: int
    """The codec of what travels, both ways: a row of `onboard.codec.pack.CODECS`."""
    compress: bool = False
    """See `Budget.compress`."""
    sends_whole: bool = False
    """Whether an update is all that was ever learned, as its difference from the mission's first weights.
    Else it is what its round has moved, as the difference from the weights that the round began with.

    Pruning works on what a sketch of the model holds, and a round that has only begun has moved nothing to be
    sketched. As a whole SpaceDML sends it too (Algorithm 1)."""
    uses_moments: bool = False
    """Whether phases take gradient and curvature from Adam's moments, with AMSGrad's peak (ALQ, section
    3.2)."""
    allots_by_curvature: bool = False
    """Whether bases are allotted by loss-aware gain per bit. A sketch that pruning follows is made by plain
    error (ALQ section 3.1)."""


def _plain(knobs: BoardTraining, round_number: int) -> Phases:
    return (TrainingPhase.PLAIN,) * knobs.epochs


def _fast(knobs: BoardTraining, round_number: int) -> Phases:
    return (TrainingPhase.PLAIN,) * knobs.pretrain_epochs + (TrainingPhase.STRAIGHT,) * knobs.epochs


def _as_published(knobs: BoardTraining, round_number: int) -> Phases:
    """ "The pre-training should only be operated in the first round" (SpaceDML, section III-C)."""
    pretraining = (TrainingPhase.PLAIN,) * knobs.pretrain_epochs
    return (
        (pretraining if round_number == 1 else ())
        + (TrainingPhase.PRUNE,) * knobs.prune_epochs
        + (TrainingPhase.BASES,) * knobs.basis_epochs
        + (TrainingPhase.COORDINATES,) * knobs.coordinate_epochs
        + (TrainingPhase.STRAIGHT,) * knobs.epochs
    )


METHODS: dict[str, TrainingMethod] = {
    "fedavg": TrainingMethod(phases=_plain, format=formats.DENSE),
    "fedavg-zstd": TrainingMethod(phases=_plain, format=formats.DENSE, compress=True),
    "spacedml": TrainingMethod(phases=_as_published, format=formats.ALQ, sends_whole=True, uses_moments=True),
    "spacedml-fast": TrainingMethod(phases=_fast, format=formats.ALQ, allots_by_curvature=True),
}
"""Every method by the name that a mission gives it. docs/extending.md says how to add one."""
