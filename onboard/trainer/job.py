"""A round's training as the agent sees it: it gives a job, asks for a step at a time, and is told what came
of it.

Two things train: `onboard.trainer.in_process` in the agent's own process, for fleets on a virtual clock, and
`onboard.trainer.process` in a child process, on a board. This file needs neither numpy nor onnxruntime, and
so neither does an agent that only talks.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from onboard.mission.health import Failure


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be trained: `model` is the whole MODEL object, `checkpoint` the last `Stepped.state` of an
    earlier life."""

    model: bytes
    node: int
    checkpoint: bytes | None = None


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All is ready for the first step. `epoch`: epochs that the checkpoint had done, 0 without one;
    `dropped`: why the checkpoint could not be used, or empty."""

    flops_a_step: float
    epoch: int = 0
    dropped: str = ""
    cpu_s: float = 0.0  # that getting ready took


class Stepped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One batch is done: `batch` of `batches` in `epoch` of `epochs`, counted from 1, with its mean loss
    (nats).

    `epoch_loss`: mean over the last epoch that is over. `state`: what a checkpoint needs, if the step was to
    save and ended an epoch.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    epoch_loss: float
    cpu_s: float
    state: bytes | None = None

    @property
    def ends_epoch(self) -> bool:
        return self.batch == self.batches

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        return ((self.epoch - 1) * self.batches + self.batch) / (self.epochs * self.batches)


class TrainingDone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The training is over: `packed` is the update's payload behind its header; `loss` the last epoch's mean;
    `peak_bytes` the most memory that a training process of its own held, 0 in the agent's."""

    packed: bytes
    loss: float
    samples: int
    cpu_s: float
    peak_bytes: int = 0


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The training is over without a result; `why` is one line."""

    failure: Failure
    why: str


Report = Begun | Stepped | TrainingDone | Failed


class Trainer(Protocol):
    """Trains one job at a time and never waits. After `begin` and after each `step` comes one report;
    `TrainingDone` and `Failed` are the job's last. A process may also fail between two steps."""

    def begin(self, job: Job) -> None:
        """Lets go of the job in hand, if there is one, and gets ready for this one."""

    def step(self, *, save: bool = False) -> None:
        """Asks for one more step; with `save`, for its state too if it ends an epoch."""

    def reports(self) -> list[Report]:
        """What has happened since the last call."""

    def stop(self) -> None:
        """Lets go of the job in hand; nothing of it is reported any more."""

    @property
    def fds(self) -> tuple[int, ...]:
        """File descriptors that are readable when there may be a report."""
