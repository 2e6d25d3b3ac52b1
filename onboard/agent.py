"""A device's life: hear, train, compress, offer. After a power cut it goes on where its journal says.

The agent is the same on a real port, on an emulated one and on a virtual clock: it is told events and the
time, it runs one training step when the carrier says so, and what must survive is in the journal before
the first byte that depends on it leaves. It never waits.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from onboard import data, health
from onboard.budget import Ledger
from onboard.codec import alq
from onboard.codec.pack import BadPack, pack, unpack
from onboard.config import NodeConfig
from onboard.journal import Journal
from onboard.learn.graph import GraphError, TrainGraph, initial
from onboard.learn.local import LocalTraining, Step, moved
from onboard.learn.plan import Plan
from onboard.log import say
from onboard.wire import messages
from onboard.wire.events import Arrived, Cancelled, Corrupt, Delivered, Event, Rekeyed, Spent
from onboard.wire.health import Failure, Health, State, encode_health
from onboard.wire.messages import BadMessage, Reason, Task, Update
from onboard.wire.seal import NO_SALT
from onboard.wire.session import Session

log = logging.getLogger(__name__)

HEALTH_EVERY_S = 60.0  # one frame of about 53 B a minute: 5 % of what an idle link may carry

MODEL, UPDATE, CHECKPOINT, DEPLOYED = "model.bin", "update.bin", "training.npz", "deployed.bin"


class Known(msgspec.Struct, kw_only=True):
    """What the agent keeps in its journal."""

    epoch: int = 0
    salt: bytes = NO_SALT  # of the link's keys
    floor: tuple[int, int] = (0, 0)  # of the ground's frames under it
    spent: Spent = Spent()  # of this end's allowances
    mission: bytes = b""
    phase: State = State.IDLE
    round: int = 0
    asking: int = 0  # of this round, the last
    model: bytes = b""  # digest of the object in model.bin
    update: bytes = b""  # digest of the object in update.bin
    fragment_bytes: int = 0  # and how it is cut for the link
    train_s: float = 0.0  # spent on this round's training up to the last checkpoint
    cpu_s: float = 0.0
    energy_j: float = 0.0


@dataclass
class Work:
    """The training in progress."""

    task: Task
    training: LocalTraining
    steps: Iterator[Step]
    flops_per_image: float
    started_s: float  # this leg of the training: since the task, the boot or the last checkpoint
    started_j: float
    cpu_s: float
    checkpoint_due_s: float
    last: Step | None = None

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        if self.last is None:
            return 0.0
        done = (self.last.epoch - 1) * self.last.batches + self.last.batch
        return done / (self.last.epochs * self.last.batches)


class Untrainable(ValueError):  # noqa: N818 - "un" says error already
    """A task that this board cannot do; `failure` and the words go to the ground."""

    def __init__(self, failure: Failure, why: str) -> None:
        super().__init__(why)
        self.failure = failure


def failure_of(error: Exception) -> Failure:
    """What kind of failure an exception of a training is."""
    if isinstance(error, Untrainable):
        return error.failure
    kinds = {MemoryError: Failure.MEMORY, GraphError: Failure.GRAPH, BadPack: Failure.MODEL}
    return next((failure for kind, failure in kinds.items() if isinstance(error, kind)), Failure.OTHER)


class Agent:
    """One node. `session` talks, `journal` remembers, `ledger` counts; `graphs` opens a model by its name."""

    def __init__(
        self,
        config: NodeConfig,
        session: Session,
        journal: Journal[Known],
        known: Known,
        ledger: Ledger,
        images: data.Images,
        graphs: Callable[[str], TrainGraph] = TrainGraph.load,
    ) -> None:
        self.config = config
        self.session = session
        self.known = known
        self.ledger = ledger
        self.work: Work | None = None
        self._journal = journal
        self._images = images
        self._graphs = graphs
        self._health_due_s = 0.0
        self._samples = len(images.y)
        self._failure = Failure.OTHER, ""  # while the phase is FAILED

    # hear

    def resume(self, now: float) -> None:
        """Goes on where the last run was cut: offers the update that waits, or trains on."""
        if self.known.phase == State.OFFERING:
            update = self._journal.fetch(UPDATE)
            if update is not None:
                cut = self.known.fragment_bytes or None
                self.known.update = self.session.offer(messages.UPDATE, update, now, fragment_bytes=cut)
                say(log, "resumed", phase="offering", round=self.known.round)
        elif self.known.phase == State.TRAINING:
            model = self._journal.fetch(MODEL)
            if model is not None and messages.digest(messages.MODEL, model) == self.known.model:
                task, weights = messages.decode_task(model)
                say(log, "resumed", phase="training", round=task.round)
                self._begin(task, weights, now)

    def hear(self, event: Event, now: float) -> None:
        """Takes one event of the link."""
        if isinstance(event, Arrived):
            self._take(event, now)
        elif isinstance(event, Delivered) and event.digest == self.known.update:
            self._settle(State.IDLE)
            self._journal.drop(UPDATE)
            say(log, "delivered", round=self.known.round)
        elif isinstance(event, Cancelled) and event.digest == self.known.update:
            self._settle(State.IDLE)
            self._journal.drop(UPDATE)
            say(
                log, "update-cancelled", level=logging.WARNING, round=self.known.round,
                object=event.digest.hex(), why=event.reason,
            )  # fmt: skip
        elif isinstance(event, Rekeyed):
            self._journal.save(msgspec.structs.replace(self.known, salt=event.salt, floor=(0, 0)))
            self.session.rekey(event.salt)
            say(log, "rekeyed")
        elif isinstance(event, Spent):
            self.known.spent = event
            self._save()
        elif isinstance(event, Corrupt):
            say(log, "corrupt", level=logging.WARNING, object=event.digest.hex())

    def _take(self, arrived: Arrived, now: float) -> None:
        """A whole object: checked, then durable, then acknowledged, then acted on."""
        try:
            if arrived.kind != messages.MODEL:
                raise BadMessage(f"kind {arrived.kind} is not for a board")
            task, weights = messages.decode_task(arrived.payload)
            if task.mission == self.known.mission and task.round < self.known.round:
                raise BadMessage(f"round {task.round} is over, at {self.known.round}")
        except BadMessage as error:
            say(log, "refused", level=logging.WARNING, what=str(error))
            self.session.refuse(arrived.digest, Reason.REFUSED, now)
            return
        self._journal.keep(MODEL if task.epochs else DEPLOYED, arrived.payload)
        self._stop_work(now)
        self.known.model = arrived.digest
        self.known.mission, self.known.round, self.known.asking = task.mission, task.round, task.asking
        self._settle(State.TRAINING if task.epochs else State.IDLE)
        self.session.accept(arrived.digest, now)
        say(log, "heard", round=task.round, bytes=len(arrived.payload))
        if task.epochs:
            self._begin(task, weights, now)
        else:
            say(log, "deployed", round=task.round, model=task.model)

    # train

    def _begin(self, task: Task, weights: memoryview, now: float) -> None:
        """Prepares a round's training; what cannot be trained is reported to the ground, which then does
        not wait for it."""
        try:
            graph = self._graphs(task.model)
            if graph.digest != task.graph:
                raise Untrainable(
                    Failure.MODEL,
                    f"model {task.model!r} is {graph.digest.hex()} here, {task.graph.hex()} there",
                )
            if graph.input_shape != self._images.x.shape[1:]:
                raise Untrainable(
                    Failure.DATA,
                    f"images are {self._images.x.shape[1:]}, model {task.model!r} takes {graph.input_shape}",
                )
            origin = initial(graph.shapes, task.seed)
            start = origin
            if task.weights == "packed":
                start = moved(origin, alq.reconstruct(unpack(weights, graph.layout)))
            plan = Plan(
                epochs=task.epochs,
                pretrain_epochs=task.pretrain_epochs,
                batch_size=task.batch_size,
                learning_rate=task.learning_rate,
                bits_up=task.bits_up,
                max_bases=task.max_bases,
                shift_pixels=task.shift_pixels,
                distortion=task.distortion,
                seed=task.seed,
                round=task.round,
                node=self.config.id,
                method=task.method,
                prune_ratio=task.prune_ratio,
                prune_epochs=task.prune_epochs,
                basis_epochs=task.basis_epochs,
                coordinate_epochs=task.coordinate_epochs,
            )
            base = origin if plan.whole else start
            training = LocalTraining(graph, base, start, self._images.x, self._images.y, plan)
        except (BadPack, ValueError, MemoryError) as error:
            self._fail(error, now)
            return
        self._restore(training)
        self.work = Work(
            task=task,
            training=training,
            steps=training.steps(),
            flops_per_image=graph.flops_per_image,
            started_s=now,
            started_j=self._spent_j(now),
            cpu_s=self.known.cpu_s,
            checkpoint_due_s=now + self.config.checkpoint_s,
        )

    def advance(self) -> float:
        """Runs one training step; returns its cost in FLOP. Raises StopIteration never: see `finish`."""
        work = self.work
        assert work is not None, "advance without work"
        work.last = next(work.steps, None)
        return work.flops_per_image * work.task.batch_size

    def charge(self, cpu_s: float, now: float) -> None:
        """Books what the step cost, then checkpoints, finishes or goes on."""
        work = self.work
        assert work is not None, "charge without work"
        self.ledger.charge_cpu(cpu_s)
        work.cpu_s += cpu_s
        if work.last is None:
            self._finish(work, now)
        elif work.last.ends_epoch:
            if now >= work.checkpoint_due_s:
                self._checkpoint(work, now)
            say(log, "epoch", round=work.task.round, epoch=work.last.epoch, loss=work.training.loss)

    def fail(self, error: Exception, now: float) -> None:
        """A step could not be run (no memory, a graph that breaks): says so and waits for the next task."""
        self._fail(error, now)

    def _checkpoint(self, work: Work, now: float) -> None:
        """Durable progress at an epoch's end. A disk that is full costs the checkpoint, not the training."""
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **work.training.state())
        try:
            self._journal.keep(CHECKPOINT, packed.getvalue())
            spent_j = self._spent_j(now)
            self.known.train_s += now - work.started_s
            self.known.energy_j += spent_j - work.started_j
            self.known.cpu_s = work.cpu_s
            work.started_s, work.started_j = now, spent_j
            self._save()
        except OSError as error:
            say(log, "checkpoint-failed", level=logging.ERROR, why=str(error))
        work.checkpoint_due_s = now + self.config.checkpoint_s

    def _restore(self, training: LocalTraining) -> None:
        kept = self._journal.fetch(CHECKPOINT)
        if kept is None:
            return
        try:
            with np.load(io.BytesIO(kept), allow_pickle=False) as state:
                training.restore(dict(state))
            say(log, "checkpoint", epoch=training.epoch)
        except (
            ValueError,
            KeyError,
            OSError,
        ) as error:  # of another round or cut short: train from the start
            say(log, "checkpoint-dropped", level=logging.WARNING, why=str(error))
            self._journal.drop(CHECKPOINT)

    # compress, offer

    def _finish(self, work: Work, now: float) -> None:
        update = Update(
            mission=work.task.mission,
            round=work.task.round,
            node=self.config.id,
            samples=self._samples,
            loss=work.training.loss,
            train_s=self.known.train_s + now - work.started_s,
            cpu_s=work.cpu_s,
            energy_j=self.known.energy_j + self._spent_j(now) - work.started_j,
        )
        packed = pack(work.training.result(), compress=work.training.plan.compress)
        payload = messages.encode_object(update, packed)
        self._journal.keep(UPDATE, payload)  # a full disk stops here, and the finished training is kept
        self.work = None
        self.known.update = messages.digest(messages.UPDATE, payload)
        self._settle(State.OFFERING)
        digest = self.session.offer(messages.UPDATE, payload, now)
        self.known.fragment_bytes = self.session.fragment_bytes(digest)
        self._save()
        say(log, "trained", round=update.round, loss=update.loss, seconds=update.train_s, bytes=len(payload))

    def _stop_work(self, now: float) -> None:
        """A new task supersedes what this node was doing."""
        if self.work is not None:
            say(log, "superseded", round=self.work.task.round)
            self.work = None
        if self.known.phase == State.OFFERING:
            self.session.cancel(self.known.update, now)
            self._journal.drop(UPDATE)

    def _settle(self, phase: State) -> None:
        """A new phase begins: durable, with the training's leftovers removed."""
        self.known.phase = phase
        self.known.train_s = self.known.cpu_s = self.known.energy_j = 0.0
        self._save()
        self._journal.drop(CHECKPOINT)

    def _save(self) -> None:
        self.known.salt, self.known.floor = self.session.salt, self.session.floor
        self._journal.save(self.known)

    def _fail(self, error: Exception, now: float) -> None:
        self.work = None
        self.known.phase = State.FAILED
        self._failure = failure_of(error), str(error) or type(error).__name__
        failure, why = self._failure
        say(
            log, "training-failed", level=logging.ERROR, round=self.known.round,
            failure=failure.name.lower(), why=why,
        )  # fmt: skip
        self.housekeeping(now, at_once=True)

    # say how it is

    def housekeeping(self, now: float, *, at_once: bool = False) -> None:
        """A health message every minute: an empty link stays nearly empty."""
        if not self.session.in_contact(now):
            self._health_due_s = min(self._health_due_s, now)  # said first in the next one, and once
            return
        if now < self._health_due_s and not at_once:
            return
        self._health_due_s = now + HEALTH_EVERY_S
        readings = health.read(self._journal.folder)
        last = self.work.last if self.work is not None else None
        failed = self.known.phase == State.FAILED
        failure, why = self._failure if failed else (Failure.NONE, "")
        report = Health(
            state=self.known.phase,
            round=self.known.round,
            uptime_s=int(now - self.ledger.started_s),
            airtime_s=self.session.snapshot(now).airtime_s,
            energy_j=self._spent_j(now),
            cpu_s=self.ledger.cpu_s,
            temperature_c=readings.temperature_c,
            progress=None if self.work is None else self.work.progress,
            loss=None if last is None else last.loss,
            asking=self.known.asking,
            failure=failure,
            why=why,
        )
        self.session.tell(encode_health(report, self.session.message_bytes), now)

    def doing(self) -> dict[str, Any]:
        """What the agent is at, for a live view: phase, round, and how far the training is."""
        view: dict[str, Any] = {"phase": self.known.phase.name.lower(), "round": self.known.round}
        if self.work is not None:
            loss = None if self.work.last is None else self.work.last.loss
            view |= {"progress": self.work.progress, "loss": loss}
        return view

    def _spent_j(self, now: float) -> float:
        return self.ledger.energy_j(now, self.session.snapshot(now).airtime_s)
