"""What a round asks of one board, checked: by which method it trains, for how long, and what may travel.

Four methods, each a sequence of epochs (`Plan.phases`):

- "fedavg" and "fedavg-zstd": plain epochs; float32 weights travel, plain or compressed.
- "spacedml": the procedure of SpaceDML (section IV) and ALQ: plain epochs in the mission's first round only,
  then pruning in the alpha domain, optimizing bases, optimizing coordinates, and post-training with the
  straight-through estimator.
- "spacedml-fast": plain epochs, one allocation of bases by gain per bit in place of pruning and optimizing,
  then epochs with the straight-through estimator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

from onboard.codec import alq

Method = Literal["fedavg", "fedavg-zstd", "spacedml", "spacedml-fast"]


def sends_whole(method: Method) -> bool:
    """Whether updates are whole models. Pruning works on what a sketch of the model holds, and a round that
    has only begun has moved nothing to be sketched; as a whole SpaceDML sends it too (Algorithm 1).
    """
    return method == "spacedml"


MOST_DISTORTED = 4.0  # 60 degrees: beyond that a 6 is a 9


class TrainingPhase(Enum):
    """What an epoch does."""

    PLAIN = "plain"  # the weights themselves take Adam's steps
    PRUNE = "prune"  # coordinates take steps, and those that matter least are dropped (ALQ section 3.2)
    BASES = "bases"  # every basis is chosen anew at each step (ALQ section 3.3)
    COORDINATES = "coordinates"  # coordinates take steps (ALQ section 3.3)
    STRAIGHT = "straight"  # weights take the gradient of what their bases make of them (ALQ section 3.4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a round asks of one board.

    `bits_up`: bits of bases and coordinates a weight of the model; of what travels, but with "spacedml" of
    the sketch that pruning starts from. `prune_ratio`: share of the sketch's bits that "spacedml" removes.
    """

    epochs: int  # with "fedavg" plain; else with the straight-through estimator, after all others
    pretrain_epochs: int  # plain, before there are bases
    batch_size: int
    learning_rate: float
    bits_up: float
    max_bases: int
    shift_pixels: int  # images are shifted by up to this much, each way
    seed: int
    round: int
    node: int
    method: Method = "spacedml-fast"
    prune_ratio: float = 0.8  # this and the epochs below: SpaceDML, section IV
    prune_epochs: int = 4
    basis_epochs: int = 1
    coordinate_epochs: int = 1
    distortion: float = 0.0  # of the images, beside their shifts (`learn/augment.py`)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method is {self.method!r}, must be one of {', '.join(get_args(Method))}")
        if self.method == "spacedml-fast" and self.pretrain_epochs < 1:
            # The allocation needs a curvature, which is what the first gradients tell.
            raise ValueError(f"pretrain_epochs is {self.pretrain_epochs}, must be at least 1")
        counts = (self.epochs, self.pretrain_epochs, self.prune_epochs, self.basis_epochs)
        if min(*counts, self.coordinate_epochs, self.shift_pixels) < 0 or self.batch_size < 1:
            raise ValueError(f"a plan cannot be run: {self}")
        if not (0 <= self.bits_up < math.inf and 0 <= self.max_bases <= alq.MAX_BASES):
            raise ValueError(f"bits_up {self.bits_up}, max_bases {self.max_bases}: not a budget")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate is {self.learning_rate}, must be between 0 and 1")
        if not 0 <= self.distortion <= MOST_DISTORTED:
            raise ValueError(f"distortion is {self.distortion}, must be between 0 and {MOST_DISTORTED:g}")
        if not 0 <= self.prune_ratio <= 1:
            raise ValueError(f"prune_ratio is {self.prune_ratio}, must be between 0 and 1")

    @property
    def phases(self) -> tuple[TrainingPhase, ...]:
        """What each epoch does, in order."""
        if self.method in ("fedavg", "fedavg-zstd"):
            return (TrainingPhase.PLAIN,) * self.epochs
        pretraining = (TrainingPhase.PLAIN,) * self.pretrain_epochs
        post_training = (TrainingPhase.STRAIGHT,) * self.epochs
        if self.method == "spacedml-fast":
            return pretraining + post_training
        quantizing = (
            (TrainingPhase.PRUNE,) * self.prune_epochs
            + (TrainingPhase.BASES,) * self.basis_epochs
            + (TrainingPhase.COORDINATES,) * self.coordinate_epochs
        )
        # "The pre-training should only be operated in the first round" (SpaceDML, section III-C).
        return (pretraining if self.round == 1 else ()) + quantizing + post_training

    @property
    def whole(self) -> bool:
        """Whether all that was ever learned travels, as its difference from the mission's initial weights;
        else what this round has moved: its difference from the weights that it began with.
        """
        return sends_whole(self.method)

    @property
    def dense(self) -> bool:
        """Whether float32 weights travel."""
        return self.method in ("fedavg", "fedavg-zstd")

    @property
    def compress(self) -> bool:
        """Whether what travels is compressed by zstd."""
        return self.method == "fedavg-zstd"
