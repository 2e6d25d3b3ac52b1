"""The one specification of training: a knob is one field, with one range, one default and one sentence.

The task on the wire, the `[train]` table of mission.toml, the plan that a board trains by, and the options of
`firmware-sim fleet` are made from these fields, so that a value passes everywhere or nowhere. So are the
`[gossip]` table and the options of `firmware-sim ring`. To add a knob, add a field with its sentence to
`BoardTraining` (to `Training` if the server alone needs it, to `Recipe` for gossip), and use it where a board
trains. A struct does not check its own fields; `msgspec.convert` and every decoder do.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta

from onboard.learn.federated.methods import METHODS, TrainingMethod

MOST_BASES = 8  # `codec.alq.MAX_BASES`, which is not imported: an agent's process goes without numpy

BatchSize = Annotated[int, Meta(ge=1, le=65_536)]
ShiftPixels = Annotated[int, Meta(ge=0, le=255)]
Distortion = Annotated[float, Meta(ge=0, le=4)]  # 4 is 60 degrees: beyond that a 6 is a 9
SomeEpochs = Annotated[int, Meta(ge=1, le=10_000)]
AnyEpochs = Annotated[int, Meta(ge=0, le=10_000)]
BitsPerWeight = Annotated[float, Meta(gt=0, le=32)]


class BoardTraining(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """How one board trains in one round, as a task says it. The wire has the fields in this order: a new one
    goes to the end."""

    method: Annotated[str, Meta(extra={"rows": METHODS})] = "spacedml-fast"
    """What boards do and what travels: `fedavg` (float32 weights), `fedavg-zstd` (these, compressed),
    `spacedml` (the paper's procedure) or `spacedml-fast`."""
    epochs: SomeEpochs = 2
    """Epochs of training with quantized weights (straight-through); with `fedavg` plain ones."""
    pretrain_epochs: SomeEpochs = 1
    """Epochs of plain training before that. Their gradients tell which weights deserve bits."""
    batch_size: BatchSize = 10
    """Images a step."""
    learning_rate: Annotated[float, Meta(gt=0, lt=1)] = 3e-3
    """Learning rate of Adam in the first round."""
    bits_up: BitsPerWeight = 0.05
    """Bits a weight that an update may take on its way to the ground; with `spacedml` those of the sketch
    that it prunes."""
    max_bases: Annotated[int, Meta(ge=1, le=MOST_BASES)] = 8
    """Binary bases that a group of weights may have."""
    shift_pixels: ShiftPixels = 1
    """Most pixels by which images are shifted in training."""
    distortion: Distortion = 1.0
    """Strength of the affine distortion of images in training. 1 is a rotation of up to 15 degrees, a stretch
    of 15 % and a shear of 0.1; other values scale that."""
    prune_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.8
    """Share of the bases that `spacedml` drops; it alone."""
    prune_epochs: AnyEpochs = 4
    """Epochs in which bases are dropped; `spacedml` alone."""
    basis_epochs: AnyEpochs = 1
    """Epochs of optimizing bases; `spacedml` alone."""
    coordinate_epochs: AnyEpochs = 1
    """Epochs of optimizing coordinates; `spacedml` alone."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: must be one of {', '.join(METHODS)}")

    @property
    def rule(self) -> TrainingMethod:
        """What the method's name stands for."""
        return METHODS[self.method]


class Training(BoardTraining, array_like=False, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the boards of a mission train, and how many bits a weight travel: the `[train]` table.

    The defaults were measured with three boards and LeNet-5, in the fleet over three seeds: 98.05 % on digits
    after 6 rounds (0.08 bit down: 96.66 %), 96.7 % on MNIST (600 images a board) after 10, for 2.9 kB up and
    7 kB down a round.
    """

    learning_rate_decay: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Factor of the learning rate from one round to the next, down to a rate of 1e-12."""
    bits_down: BitsPerWeight = 0.15
    """Bits a weight that the averaged model may take on its way to the boards."""

    def of_round(self, number: int) -> BoardTraining:
        """What each board is asked to do in round `number`, counted from 1. Raises ValueError for a knob that
        is out of its range."""
        asked = msgspec.convert(self, BoardTraining, from_attributes=True)
        decayed = self.learning_rate * self.learning_rate_decay ** (number - 1)
        least = min(self.learning_rate, LEAST_RATE)
        return msgspec.structs.replace(asked, learning_rate=max(decayed, least))


LEAST_RATE = 1e-12
"""No learning rate decays below this: it moves no weight, and what is 0 is no learning rate."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a node that gossips descends by itself: a part of the `[gossip]` table, and of a ring's options."""

    batch_size: BatchSize = 32
    """Images a step. Each batch has the classes as evenly as the node has them."""
    learning_rate: Annotated[float, Meta(gt=0, le=100)] = 0.1
    """Learning rate of stochastic gradient descent."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """Momentum of stochastic gradient descent."""
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Weight decay, of parameters with two or more axes."""
    drops: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    """Epochs, counted from 0, before each of which the learning rate falls to a tenth."""
    cosine_epochs: Annotated[int, Meta(ge=0)] = 0
    """Epochs in which the learning rate follows half a cosine from `learning_rate` almost to 0, where it
    then stays; not together with `drops`. With 0 it does not."""
    shift_pixels: ShiftPixels = 0
    """Most pixels by which images are shifted in training."""
    distortion: Distortion = 0.0
    """Strength of the affine distortion of images in training. 1 is a rotation of up to 15 degrees, a stretch
    of 15 % and a shear of 0.1; other values scale that."""

    def __post_init__(self) -> None:
        if self.cosine_epochs and self.drops:
            raise ValueError("cosine_epochs: not together with drops")

    def rate(self, epoch: int) -> float:
        """The learning rate in that epoch, counted from 0. The cosine is Loshchilov and Hutter's ("SGDR",
        2017)."""
        if self.cosine_epochs:
            passed = min(epoch, self.cosine_epochs - 1) / self.cosine_epochs
            return self.learning_rate * (1 + math.cos(math.pi * passed)) / 2
        return self.learning_rate * 0.1 ** sum(epoch >= drop for drop in self.drops)
