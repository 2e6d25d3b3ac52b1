"""The one specification of training: the knobs, each one field with one range, and the methods.

The task on the wire, `[train]` of mission.toml, a board's plan and the options of `firmware-sim fleet` are
made from these fields, so that a value passes everywhere or nowhere; so are `[gossip]` and the options of
`firmware-sim ring`. To add a knob, add a field with its sentence to `BoardTraining` (to `Training` if the
server alone needs it, to `Recipe` for gossip), and use it where a board trains. A struct does not check its
own fields; `msgspec.convert` and every decoder do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import msgspec
from msgspec import Meta

from onboard.codec import formats

MOST_BASES = 8  # `codec.alq.MAX_BASES`, which is not imported: an agent's process goes without numpy
LEAST_RATE = 1e-12  # no learning rate decays below: this one moves no weight, and 0 is none


class TrainingPhase(Enum):
    """What an epoch does."""

    PLAIN = "plain"  # the weights themselves take the optimizer's steps
    PRUNE = "prune"  # coordinates take steps, and those that matter least are dropped (ALQ section 3.2)
    BASES = "bases"  # every basis is chosen anew at each step (ALQ section 3.3)
    COORDINATES = "coordinates"  # coordinates take steps (ALQ section 3.3)
    STRAIGHT = "straight"  # weights take the gradient of what their bases make of them (ALQ section 3.4)


Phases = tuple[TrainingPhase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMethod:
    """What boards do in a round, and what travels."""

    phases: Callable[[BoardTraining, int], Phases]
    """What each epoch does, by the knobs and the round's number. Every phase but PLAIN trains ALQ's bases."""
    format: int  # of what travels, both ways: a row of `onboard.codec.pack.CODECS`
    compress: bool = False  # see `Budget.compress`
    sends_whole: bool = False
    """Whether an update is the difference from the mission's first weights, all that was ever learned, and
    not from the weights that its round began with. SpaceDML sends the whole (Algorithm 1): pruning works on
    what a sketch of the model holds, and a round that has only begun has moved nothing to be sketched."""
    uses_moments: bool = False
    """Whether phases take gradient and curvature from Adam's moments, with its peak (ALQ section 3.2)."""
    feeds_back: bool = False
    """Whether what an update had no bits for is kept for the next one (`BoardTraining.error_feedback`)."""
    allots_by_curvature: bool = False
    """Whether bases are allotted by loss-aware gain per bit. A sketch that pruning follows is made by plain
    error (ALQ section 3.1)."""


def _plain(knobs: BoardTraining, round_number: int) -> Phases:
    return (TrainingPhase.PLAIN,) * knobs.epochs


def _fast(knobs: BoardTraining, round_number: int) -> Phases:
    return (TrainingPhase.PLAIN,) * knobs.pretrain_epochs + (TrainingPhase.STRAIGHT,) * knobs.epochs


def _as_published(knobs: BoardTraining, round_number: int) -> Phases:
    """ "The pre-training should only be operated in the first round" (SpaceDML, section III-C)."""
    return (
        (TrainingPhase.PLAIN,) * (knobs.pretrain_epochs if round_number == 1 else 0)
        + (TrainingPhase.PRUNE,) * knobs.prune_epochs
        + (TrainingPhase.BASES,) * knobs.basis_epochs
        + (TrainingPhase.COORDINATES,) * knobs.coordinate_epochs
        + (TrainingPhase.STRAIGHT,) * knobs.epochs
    )


METHODS: dict[str, TrainingMethod] = {
    # Plain epochs; float32 weights travel, plain or compressed.
    "fedavg": TrainingMethod(phases=_plain, format=formats.DENSE),
    "fedavg-zstd": TrainingMethod(phases=_plain, format=formats.DENSE, compress=True),
    # SpaceDML (section IV) and ALQ: plain epochs in the first round only, pruning in the alpha domain, bases,
    # coordinates, then post-training with the straight-through estimator.
    "spacedml": TrainingMethod(phases=_as_published, format=formats.ALQ, sends_whole=True, uses_moments=True),
    # One allocation of bases by gain per bit in place of pruning and optimizing.
    "spacedml-fast": TrainingMethod(
        phases=_fast, format=formats.ALQ, allots_by_curvature=True, feeds_back=True
    ),
}
"""Every method by the name that a mission gives it. docs/extending.md says how to add one."""

OPTIMIZER_NAMES = ("adam", "adamw", "sgd")  # rows of `learn.optimizers.OPTIMIZERS`, which needs numpy
SCHEDULES = ("constant", "cosine")

BatchSize = Annotated[int, Meta(ge=1, le=65_536)]
ShiftPixels = Annotated[int, Meta(ge=0, le=255)]
Distortion = Annotated[float, Meta(ge=0, le=4)]  # 4 is 60 degrees: beyond that a 6 is a 9
SomeEpochs = Annotated[int, Meta(ge=1, le=10_000)]
AnyEpochs = Annotated[int, Meta(ge=0, le=10_000)]
BitsPerWeight = Annotated[float, Meta(gt=0, le=32)]
Momentum = Annotated[float, Meta(ge=0, lt=1)]
WeightDecay = Annotated[float, Meta(ge=0, le=1)]


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
    """Learning rate of the optimizer in the first round."""
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
    optimizer: Annotated[str, Meta(extra={"rows": OPTIMIZER_NAMES})] = "adam"
    """What moves the weights: `adam`, `adamw` (weight decay apart from the gradient) or `sgd` (with momentum;
    `spacedml-fast` then allots bases by plain error, and `spacedml`, which prunes by Adam's moments, cannot
    use it)."""
    momentum: Momentum = 0.9
    """Momentum of `sgd`; it alone."""
    weight_decay: WeightDecay = 0.0
    """Weight decay, of parameters with two or more axes."""
    schedule: Annotated[str, Meta(extra={"rows": SCHEDULES})] = "constant"
    """Learning rate within a round, after the warm-up: `constant`, or half a `cosine` almost to 0."""
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of a round's steps in which the learning rate rises evenly from almost 0."""
    accumulate: Annotated[int, Meta(ge=1, le=65_536)] = 1
    """Parts in which a batch goes through the network, where it does not fit in memory as a whole; the step
    takes the mean of their gradients. Batch normalization sees each part by itself."""
    error_feedback: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of what an update had no bits for that the board begins its next round with; `spacedml-fast`
    alone."""

    def __post_init__(self) -> None:
        tables = {"method": METHODS, "optimizer": OPTIMIZER_NAMES, "schedule": SCHEDULES}
        for name, rows in tables.items():
            if getattr(self, name) not in rows:
                raise ValueError(f"{name}: must be one of {', '.join(rows)}")
        if self.rule.uses_moments and self.optimizer == "sgd":
            raise ValueError(f"optimizer: {self.method} prunes by Adam's moments, and sgd has none")

    @property
    def rule(self) -> TrainingMethod:
        return METHODS[self.method]

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of that step, counted from 0, of `steps` in a round. The cosine is Loshchilov and
        Hutter's ("SGDR", 2017)."""
        warm = self.warmup * steps
        if step + 1 < warm:
            return self.learning_rate * (step + 1) / warm
        if self.schedule == "constant":
            return self.learning_rate
        passed = max(0.0, step - warm) / max(1.0, steps - warm)
        return self.learning_rate * (1 + math.cos(math.pi * passed)) / 2


class Training(BoardTraining, array_like=False, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the boards of a mission train, and how many bits a weight travel: the `[train]` table.

    The defaults were measured with three boards and LeNet-5, in the fleet over three seeds: 98.05 % on digits
    after 6 rounds (0.08 bit down: 96.66 %), 96.7 % on MNIST (600 images a board) after 10, for 2.9 kB up and
    7 kB down a round. Label smoothing and class weights are parts of a network's loss: `groundstation export`
    writes them into its graph.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a round asks of one board, and what its draws come from (`seed`, `round`, `node`).
    `sends_statistics`: whether its running statistics travel too. Raises ValueError for a knob that is out of
    its range."""

    training: BoardTraining
    seed: int
    round: int
    node: int
    sends_statistics: bool = True

    def __post_init__(self) -> None:
        msgspec.convert(msgspec.structs.asdict(self.training), Training)

    @property
    def phases(self) -> Phases:
        return self.training.rule.phases(self.training, self.round)


class Stepped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Batch `batch` of `batches` in `epoch` of `epochs`, counted from 1, is done with its mean loss (nats).
    `epoch_loss`: mean over the last finished epoch. A trainer adds what the step took and, if it was to be
    saved, the checkpoint's `state`; from another process, its `state_bytes` in the file that both have."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    epoch_loss: float
    cpu_s: float = 0.0
    state: memoryview | None = None
    state_bytes: int = 0

    @property
    def ends_epoch(self) -> bool:
        return self.batch == self.batches

    @property
    def progress(self) -> float:
        """The share of the training that is done, 0 to 1."""
        return ((self.epoch - 1) * self.batches + self.batch) / (self.epochs * self.batches)


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a node that gossips descends by itself: a part of the `[gossip]` table, and of a ring's options."""

    batch_size: BatchSize = 32
    """Images a step. Each batch has the classes as evenly as the node has them."""
    learning_rate: Annotated[float, Meta(gt=0, le=100)] = 0.1
    """Learning rate of stochastic gradient descent."""
    momentum: Momentum = 0.9
    """Momentum of stochastic gradient descent."""
    weight_decay: WeightDecay = 0.0
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
