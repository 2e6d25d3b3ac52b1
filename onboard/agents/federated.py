"""Decides what a board does: it takes a task, trains, offers its update, and runs the ground's commands.

The agent is the same on a real port, an emulated one and a virtual clock: it is handed events and the time,
and its trainer runs one step when the runtime says so. What must survive a power cut is in the journal before
the first byte that depends on it leaves. The agent never waits, and it outlives its training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onboard.agents.federated_state import CHECKPOINT, DEPLOYED, MODEL, UPDATE, FederatedState, kept_object
from onboard.agents.installing import NetworkInstaller
from onboard.agents.training_files import TrainingFiles, training_name
from onboard.board.budget import ResourceUsage, temperature_c
from onboard.config import NodeConfig
from onboard.console.log import say
from onboard.learn.networks import NetworkError
from onboard.learn.training import Stepped
from onboard.mission import commands, objects
from onboard.mission.health import (
    NO_MEMORY,
    AnswerHealth,
    Failure,
    Health,
    State,
    encode_health,
    failure_name,
)
from onboard.mission.objects import Task, Update
from onboard.storage.journal import Journal
from onboard.storage.model_slots import model_slots
from onboard.trainer.job import Begun, Failed, Job, Report, Trainer, TrainingDone
from onboard.wire import events, messages
from onboard.wire.messages import BadMessage, Reason
from onboard.wire.session import Session

log = logging.getLogger(__name__)

HEALTH_EVERY_S = 60.0  # one frame of about 53 B a minute: 5 % of what an idle link may carry


@dataclass
class Work:
    task: Task
    name: bytes  # names the training in its checkpoint
    started_s: float  # when this leg of the training began: with the task, the boot or the last checkpoint
    started_j: float
    cpu_s: float
    checkpoint_due_s: float
    waits: bool = True  # for the trainer: to be ready, then for a step
    update: bytes = b""  # what is to be offered, once the training is over
    residual_is_kept: bool = False  # or had no room
    flops_a_step: float = 0.0
    epoch: int = 0  # epochs done
    last: Stepped | None = None

    @property
    def progress(self) -> float:
        return 0.0 if self.last is None else self.last.progress


class FederatedAgent:
    """Plays one board: `session` is its link, `journal` its memory, `ledger` what it has spent."""

    def __init__(
        self,
        config: NodeConfig,
        session: Session,
        journal: Journal[FederatedState],
        known: FederatedState,
        ledger: ResourceUsage,
        trainer: Trainer,
    ) -> None:
        self.config, self.session, self.journal, self.known = config, session, journal, known
        self.ledger, self.trainer = ledger, trainer
        self._files = TrainingFiles(journal, known, config.id)
        self.installer = NetworkInstaller(self, model_slots(config))
        self.work: Work | None = None
        self._health_due_s = 0.0
        self.answers: Callable[[], AnswerHealth | None] = lambda: None
        """What a health message says of the images that are answered here."""
        self._failure, self._why = int(Failure.OTHER), ""  # of the last round, while the phase is FAILED

    # handle

    def resume(self, now: float) -> None:
        """Goes on where the last run was cut: offers the waiting update, or trains on. Without the files for
        that it trains again, or reports the failure, and the ground asks again."""
        known = self.known
        if known.deployed and kept_object(self.journal, DEPLOYED, objects.MODEL, known.deployed) is None:
            self.session.forget(known.deployed)
            known.deployed = b""
            if known.phase == State.IDLE:
                known.model = b""  # of a round that is over: there is nothing to train
                self._fail(Failure.DISK, f"{DEPLOYED} cannot be read", now)
        self.installer.resume(now)
        if known.phase == State.OFFERING:
            self.offer_kept(now)
        elif known.phase in (State.TRAINING, State.FAILED) and known.model:
            self._train_again(now)
        self.offer_result(now)

    def offer_kept(self, now: float) -> None:
        """Offers the waiting update in fragments as before; one that cannot be read is trained again."""
        update = kept_object(self.journal, UPDATE, objects.UPDATE, self.known.update)
        if update is None:
            self._train_again(now)
            return
        self.session.offer(objects.UPDATE, update, now, fragment_bytes=self.known.fragment_bytes or None)
        say(log, "resumed", phase="offering", round=self.known.round)

    def _train_again(self, now: float) -> None:
        model = kept_object(self.journal, MODEL, objects.MODEL, self.known.model)
        if model is None:
            self._fail(Failure.DISK, f"{MODEL} cannot be read", now)
            return
        try:
            task, _ = objects.decode_task(model)
        except BadMessage as error:  # of another version of this program
            self._fail(Failure.MODEL, str(error), now)
            return
        self.known.phase = State.TRAINING
        say(log, "resumed", phase="training", round=task.round)
        self._begin(task, model, now)

    def handle(self, event: events.Event, now: float) -> None:
        known = self.known
        if isinstance(event, events.Arrived):
            self._take(event, now)
        elif isinstance(event, events.Delivered | events.Cancelled) and event.digest == known.update:
            self._settle(State.IDLE)
            self.journal.drop(UPDATE)
            if isinstance(event, events.Delivered):
                say(log, "delivered", round=self.known.round)
            else:
                refused = {"round": self.known.round, "object": event.digest.hex(), "why": event.reason}
                say(log, "update-cancelled", level=logging.WARNING, **refused)
        elif isinstance(event, events.Delivered | events.Cancelled) and known.commands.is_about(event.digest):
            if isinstance(event, events.Cancelled):
                say(log, "result-cancelled", level=logging.WARNING, why=event.reason)
            self.known.commands = self.known.commands.deliver()
            self._save()
            self.offer_result(now)
        elif isinstance(event, events.Cancelled) and self.installer.is_asked_by(event.digest):
            self.installer.refused()
        elif isinstance(event, events.Rekeyed):
            self.session.rekey(event.salt)
            # A ground that went back may mean it when it asks once more.
            self.session.forget(*set(self.session.done) - {*self.known.taken, *self.installer.taken})
            self.installer.asks_again(now)
            say(log, "rekeyed", again=event.again)
        elif isinstance(event, events.QuotaUsage):
            self.known.links[self.session.peer].spent = event
            self._save()
        elif isinstance(event, events.Recut) and event.digest == known.update:
            self.known.fragment_bytes = event.fragment_bytes
            self._save()
        elif isinstance(event, events.Corrupt):
            say(log, "corrupt", level=logging.WARNING, object=event.digest.hex())
        elif isinstance(event, events.Message):
            say(log, "bad-message", level=logging.WARNING, why="a board takes no messages, only objects")

    def _take(self, arrived: events.Arrived, now: float) -> None:
        """Checks a whole object, makes it durable, acknowledges it, then acts on it."""
        kinds = {
            objects.MODEL: self._take_model,
            objects.COMMAND: self._take_command,
            objects.FILE: self._take_file,
        }
        try:
            if arrived.kind not in kinds:
                raise BadMessage(f"kind {arrived.kind} is not for a board")
            kinds[arrived.kind](arrived, now)
        except BadMessage as error:
            say(log, "refused", level=logging.WARNING, what=str(error))
            self.session.refuse(arrived.digest, Reason.REFUSED, now)

    def _take_command(self, arrived: events.Arrived, now: float) -> None:
        """Runs a command once: one save keeps its effect, its id and its result. Raises BadMessage."""
        command = commands.decode_body(arrived.payload, commands.Command)
        self.known.commands = self.known.commands.run(command, self, now)
        self._save()
        self.session.accept(arrived.digest, now)
        self.offer_result(now)

    def _take_file(self, arrived: events.Arrived, now: float) -> None:
        self.installer.take(arrived, now)
        self.session.accept(arrived.digest, now)

    def install(self, network: commands.InstallArguments, now: float) -> None:
        self.installer.install(network, now)

    def roll_back(self, now: float) -> Mapping[str, commands.Value]:
        return self.installer.roll_back(now)

    def offer_result(self, now: float) -> None:
        """Offers the oldest result that the ground does not have; one at a time is on its way."""
        if (result := self.known.commands.waiting) is not None:
            payload = commands.encode_body(result)
            self.session.offer(objects.RESULT, payload, now, priority=commands.PRIORITY)

    def _take_model(self, arrived: events.Arrived, now: float) -> None:
        task, _ = objects.decode_task(arrived.payload)
        if task.mission == self.known.mission and task.round < self.known.round:
            self._go_back(task.round)
        self.journal.keep(MODEL if task.training else DEPLOYED, arrived.payload)
        asked_first = objects.as_asked_first(arrived.payload)
        is_at_work = self.work is not None or self.known.phase == State.OFFERING
        goes_on = is_at_work and asked_first == self.known.question
        if not goes_on:
            self._stop_work(now)
        self.known.mission, self.known.round, self.known.asking = task.mission, task.round, task.asking
        self.known.question, self.known.asked_under = asked_first, self.session.salt
        if task.training:
            self.known.model = arrived.digest
        else:
            self.known.deployed = arrived.digest
        if goes_on:
            self._save()
        else:
            self._settle(State.TRAINING if task.training else State.IDLE)
        self.session.accept(arrived.digest, now)
        say(log, "heard", round=task.round, asking=task.asking, bytes=len(arrived.payload))
        if not task.training:
            say(log, "deployed", round=task.round, model=task.model)
        elif not goes_on:
            self._begin(task, arrived.payload, now)

    def _go_back(self, round_number: int) -> None:
        """Follows the ground to an earlier round: under another salt it began again, on an older copy of its
        database. Raises BadMessage under the same salt, when the question only comes late."""
        if self.session.salt == self.known.asked_under:
            raise BadMessage(f"round {round_number} is over, at {self.known.round}")
        self.session.forget(self.known.model)  # it will be asked once more
        why = "the ground asks an earlier round than before, as its database is an older copy"
        before = {"round": round_number, "before": self.known.round, "why": why}
        say(log, "ground-went-back", level=logging.WARNING, **before)

    # train

    def _begin(self, task: Task, model: bytes, now: float) -> None:
        try:
            network = self.installer.use(task.graph)
        except NetworkError as error:
            self._fail(Failure.MODEL, str(error), now)
            return
        name = training_name(self.known.question, self.config.id)
        self.work = Work(
            task, name, started_s=now, started_j=self._spent_j(now), cpu_s=self.known.cpu_s,
            checkpoint_due_s=now + self.config.checkpoint_s,
        )  # fmt: skip
        job = Job(
            model=model, node=self.config.id, checkpoint=self._files.checkpoint(name),
            residual=self._files.residual(task), network=network,
        )  # fmt: skip
        self.trainer.begin(job)

    @property
    def ready(self) -> bool:
        return self.work is not None and not self.work.waits

    @property
    def flops_a_step(self) -> float:
        return self.work.flops_a_step if self.work is not None else 0.0

    def ask(self, now: float) -> None:
        work = self.work
        assert work is not None, "a step without work"
        work.waits = True
        self.trainer.step(save=now >= work.checkpoint_due_s)

    def spend(self, cpu_s: float) -> None:
        """Notes CPU time that was spent beside the training."""
        self.ledger.cpu_s += cpu_s

    def charge(self, cpu_s: float) -> None:
        self.spend(cpu_s)
        if self.work is not None:
            self.work.cpu_s += cpu_s

    def take(self, report: Report, now: float) -> None:
        """Acts on a report. Raises OSError (disk full): the caller hands over the same report again."""
        work = self.work
        assert work is not None, "a report without work"
        if isinstance(report, Begun):
            work.flops_a_step, work.epoch = report.flops_a_step, report.epoch
            if report.dropped:  # the training starts from the beginning
                say(log, "checkpoint-dropped", level=logging.WARNING, why=report.dropped)
                self.journal.drop(CHECKPOINT)
            elif report.epoch or report.batch:
                say(log, "checkpoint", epoch=report.epoch, batch=report.batch)
        elif isinstance(report, Stepped):
            work.last = report
            self.installer.used(work.task.graph, proven=True)  # it was loaded, and a step came of it
            if report.state is not None:
                self._checkpoint(work, report.state, now)
            if report.ends_epoch:
                work.epoch = report.epoch
                say(log, "epoch", round=work.task.round, epoch=report.epoch, loss=report.epoch_loss)
        elif isinstance(report, TrainingDone):
            self._finish(work, report, now)
        elif isinstance(report, Failed):
            if report.failure != Failure.PROCESS:
                self.installer.used(work.task.graph, proven=False)
            self._fail(report.failure, report.why, now)
        work.waits = False

    def _checkpoint(self, work: Work, state: bytes | memoryview, now: float) -> None:
        """Makes progress durable. A full disk costs the checkpoint, not the training."""
        try:
            self._files.keep_checkpoint(work.name, state)
            spent_j = self._spent_j(now)
            self.known.train_s += now - work.started_s
            self.known.energy_j += spent_j - work.started_j
            self.known.cpu_s = work.cpu_s
            work.started_s, work.started_j = now, spent_j
            self._save()
        except OSError as error:
            say(log, "checkpoint-failed", level=logging.ERROR, why=str(error))
        work.checkpoint_due_s = now + self.config.checkpoint_s

    # compress, offer

    def _finish(self, work: Work, done: TrainingDone, now: float) -> None:
        """Makes the update durable, then offers it. A full disk raises, and the training is kept."""
        try:
            work.update = work.update or self._update(work, done, now)
        except ValueError as error:  # a loss beyond what an update can say
            self._fail(Failure.OTHER, str(error), now)
            return
        self.journal.keep(UPDATE, work.update)
        if not work.residual_is_kept:
            self._files.keep_residual(work.task, done.residual)
            work.residual_is_kept = True
        seconds = self.known.train_s + now - work.started_s
        self.known.update = messages.digest(objects.UPDATE, work.update)
        self._settle(State.OFFERING)
        digest = self.session.offer(objects.UPDATE, work.update, now)
        self.known.fragment_bytes = self.session.fragment_bytes(digest)
        self._save()
        self.work = None
        if done.unjudged:
            say(log, "validation-failed", level=logging.WARNING, round=work.task.round, why=done.unjudged)
        told: dict[str, Any] = {"peak_mb": round(done.peak_bytes / 2**20)} if done.peak_bytes else {}
        if done.validation is not None:
            told["validation"] = done.validation
        say(
            log, "trained", round=work.task.round, loss=done.loss, seconds=seconds, bytes=len(work.update),
            **told,
        )  # fmt: skip

    def _update(self, work: Work, done: TrainingDone, now: float) -> bytes:
        """Returns the update with its header. Raises ValueError for a value that the header cannot hold."""
        update = Update(
            mission=work.task.mission, round=work.task.round, node=self.config.id, samples=done.samples,
            loss=done.loss, train_s=self.known.train_s + now - work.started_s, cpu_s=work.cpu_s,
            energy_j=self.known.energy_j + self._spent_j(now) - work.started_j, validation=done.validation,
        )  # fmt: skip
        return objects.encode_object(update, done.packed)

    def _stop_work(self, now: float) -> None:
        if self.work is not None:
            say(log, "superseded", round=self.work.task.round)
            self.installer.used(self.work.task.graph, proven=False)
            self.trainer.stop()
            self.work = None
        if self.known.phase == State.OFFERING and self.known.update:
            self.session.cancel(self.known.update, now)
            self.journal.drop(UPDATE)
            self.known.update = b""  # what is still to be heard of it is not of the new task

    def _settle(self, phase: State) -> None:
        """Enters a phase durably, and removes what the training before left."""
        self.known.phase = phase
        self.known.train_s = self.known.cpu_s = self.known.energy_j = 0.0
        self._save()
        self._files.drop_unused()

    def _save(self) -> None:
        self.journal.save(self.known)

    def _fail(self, failure: int, why: str, now: float) -> None:
        """Gives up the round, and tells the ground at once, so that it does not wait."""
        self.work = None
        self.known.phase = State.FAILED
        self._failure, self._why = failure, why
        self.session.forget(self.known.model)  # the same question, asked again, is taken
        if failure != Failure.DISK:  # of which `unreadable` has told, in one line with the file's name
            told = {"round": self.known.round, "failure": failure_name(failure), "why": why}
            say(log, "training-failed", level=logging.ERROR, **told)
        self.housekeeping(now, at_once=True)

    def relieve(self, now: float) -> str:
        """Ends the training to give back its memory; returns who lacks memory, for the log."""
        self.trainer.stop()
        self.installer.check_was_ended()
        if self.work is not None:
            self._fail(Failure.MEMORY, NO_MEMORY, now)
        return NO_MEMORY

    def close(self, now: float) -> None:
        """Gives up what was trained since the last checkpoint, as the program is told to stop."""
        self.trainer.stop()
        if self.work is not None:
            self.installer.used(self.work.task.graph, proven=False)
            self._save()

    # say how it is

    def housekeeping(self, now: float, *, at_once: bool = False) -> None:
        """Sends a health message every minute: an idle link stays nearly empty."""
        if not self.session.contacts.is_up(now):
            self._health_due_s = min(self._health_due_s, now)  # said first in the next one, and once
            return
        if now < self._health_due_s and not at_once:
            return
        self._health_due_s = now
        self.session.send_message(encode_health(self.health(now), self.session.message_bytes), now)
        self._health_due_s = now + HEALTH_EVERY_S  # said: not so where memory for it was lacking

    def uptime_s(self, now: float) -> int:
        return int(now - self.ledger.started_s)

    def health(self, now: float) -> Health:
        last = self.work.last if self.work is not None else None
        has_failed = self.known.phase == State.FAILED
        return Health(
            state=self.known.phase, round=self.known.round, asking=self.known.asking,
            uptime_s=self.uptime_s(now), airtime_s=self.session.airtime_s, energy_j=self._spent_j(now),
            cpu_s=self.ledger.cpu_s, temperature_c=temperature_c(),
            progress=None if self.work is None else self.work.progress,
            loss=None if last is None else last.loss,
            failure=self._failure if has_failed else Failure.NONE, why=self._why if has_failed else "",
            answers=self.answers(),
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        view: dict[str, Any] = {"phase": self.known.phase.name.lower(), "round": self.known.round}
        view |= self.installer.status
        if self.work is not None:
            loss = None if self.work.last is None else self.work.last.loss
            view |= {"progress": self.work.progress, "loss": loss}
        return view

    def _spent_j(self, now: float) -> float:
        return self.ledger.energy_j(now, self.session.airtime_s)
