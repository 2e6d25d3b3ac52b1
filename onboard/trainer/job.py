"""A round's training as the agent sees it: it gives a job, asks for one step at a time, and takes reports.

What trains is `onboard.trainer.in_process`, in the agent's process for fleets on a virtual clock, and in a
child (`onboard.trainer.process`) on a board. An agent that only talks needs neither numpy nor onnxruntime."""

from __future__ import annotations

from typing import Protocol

import msgspec

from onboard.learn.networks import CheckVector
from onboard.learn.training import Stepped
from onboard.mission.health import Failure


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`model` is the whole MODEL object, `checkpoint` an earlier run's last `Stepped.state`, `residual` an
    earlier round's `TrainingDone.residual`. `network`: the folder of the network that the task means; empty
    where it is a shipped one, by its name in the task."""

    model: bytes
    node: int
    checkpoint: bytes | None = None
    residual: bytes | None = None
    network: str = ""


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All is ready for the first step. `epoch`, `batch`: the checkpoint's finished epochs, and batches of the
    one after them, 0 without one; `dropped`: why the checkpoint could not be used, or empty."""

    flops_a_step: float
    epoch: int = 0
    batch: int = 0
    dropped: str = ""
    cpu_s: float = 0.0  # of the preparation


class TrainingDone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The training is over. `packed`: the update's payload after its header; `loss`: the last epoch's mean;
    `peak_bytes`: the most memory that a training process held, 0 in the agent's; `validation`: what the
    update's model scores on the images held out, by its task's metric; `unjudged`: why there is none, or
    empty. `residual`: what the update had no bits for, where the task has error feedback, a float16 for each
    weight; from another process, its `residual_bytes` in the file that both have."""

    packed: bytes
    loss: float
    samples: int
    cpu_s: float
    peak_bytes: int = 0
    validation: float | None = None
    unjudged: str = ""
    residual: memoryview | None = None
    residual_bytes: int = 0


class NetworkCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A network's folder to be loaded and run before anybody relies on it. `expected`: what it has to answer;
    None where it only has to run."""

    folder: str
    expected: CheckVector | None = None


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A check is over. `why`: what is wrong, or empty."""

    why: str


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The training is over without a result; `why` is one line."""

    failure: Failure
    why: str


Report = Begun | Stepped | TrainingDone | Failed | Checked


class Trainer(Protocol):
    """Trains one job at a time and never waits. One report follows `begin` and each `step`; `TrainingDone`
    and `Failed` end the job. A process may also fail between two steps. A check is a job too."""

    def begin(self, job: Job) -> None:
        """Drop the job in hand, if any, and prepare this one."""

    def check(self, network: NetworkCheck) -> None:
        """Drop the job in hand, if any, and check this network; `Checked` follows, and nothing else."""

    def step(self, *, save: bool = False) -> None:
        """Ask for one more step; with `save`, for its state too."""

    def reports(self) -> list[Report]:
        """Return what has happened since the last call."""

    def stop(self) -> None:
        """Drop the job in hand; it reports nothing more."""

    @property
    def fds(self) -> tuple[int, ...]:
        """File descriptors that are readable when there may be a report."""
