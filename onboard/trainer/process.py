"""Trains a round in a child process: a `Trainer` that never waits and cannot harm, and the child itself.

Each byte sent to the child asks for a step."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Iterator

import msgspec

from onboard.board.budget import anonymous_bytes, cap_memory, peak_bytes
from onboard.console.log import say
from onboard.data.inspection import Inspection, Shard
from onboard.learn.training import Stepped
from onboard.mission.health import Failure
from onboard.trainer.child import WorkerProcess, serve, shared_file, uncap_memory
from onboard.trainer.job import Begun, Checked, Failed, Job, NetworkCheck, Report, TrainingDone

log = logging.getLogger(__name__)

STEP, SAVE = b"s", b"S"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is for: a `job`, the `check` of a network, or without them only an inspection of the
    images. `memory_bytes`: its cap on data. `first`: train on that many images, the first."""

    shard: Shard
    job: Job | None = None
    check: NetworkCheck | None = None
    memory_bytes: int | None = None
    first: int | None = None


class Looked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The images can be read."""

    found: Inspection


Answer = Begun | Stepped | TrainingDone | Failed | Checked | Looked
ANSWERS = msgspec.msgpack.Decoder(Answer)


class BadImages(ValueError):  # noqa: N818 - "bad" says error already
    """The node's images cannot be read; the message is one line."""


class ProcessTrainer:
    """Trains on the images of `shard`, or its `first` ones. `memory_bytes` caps the data of this process and
    the child together."""

    def __init__(self, shard: Shard, memory_bytes: int | None = None, first: int | None = None) -> None:
        self._shard, self._memory_bytes, self._first = shard, memory_bytes, first
        self._child: WorkerProcess[Answer] | None = None
        self._checks = False  # whether it checks a network, and trains nothing
        self._unstarted: list[Report] = []

    @property
    def fds(self) -> tuple[int, ...]:
        return () if self._child is None else (self._child.answers.fileno(),)

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.process.pid

    def begin(self, job: Job, allowed_bytes: int | None = None) -> None:
        """As `Trainer.begin`. `allowed_bytes`: the child's own cap; by default what `memory_bytes` leaves."""
        self._start(self._order(job, allowed_bytes))

    def check(self, network: NetworkCheck) -> None:
        self._start(msgspec.structs.replace(self._order(None), check=network))
        self._checks = True

    def _start(self, order: Order) -> None:
        self.stop()
        try:
            self._child = self._started(order)
        except OSError as error:  # no memory for a process, too many of them, or no interpreter any more
            failure = Failure.MEMORY if error.errno in (errno.ENOMEM, errno.EAGAIN) else Failure.PROCESS
            self._unstarted = [Failed(failure=failure, why=f"cannot start a process to train: {error}")]

    def step(self, *, save: bool = False) -> None:
        assert self._child is not None, "a step without a job"
        self._child.ask(SAVE if save else STEP)

    def reports(self) -> list[Report]:
        reports, self._unstarted = self._unstarted, []
        if self._child is not None:
            reports += [self._whole(each) for each in self._child.answered() if not isinstance(each, Looked)]
        if self._checks:  # what ended its process is what is wrong
            reports = [Checked(why=each.why) if isinstance(each, Failed) else each for each in reports]
        if reports and isinstance(reports[-1], TrainingDone | Failed | Checked):
            self.stop()
        return reports

    def _whole(self, report: Report) -> Report:
        assert self._child is not None, "a report without a child"
        try:
            if isinstance(report, Stepped) and report.state_bytes:
                return msgspec.structs.replace(report, state=self._child.left(report.state_bytes))
            if isinstance(report, TrainingDone) and report.residual_bytes:
                return msgspec.structs.replace(report, residual=self._child.left(report.residual_bytes))
        except (OSError, ValueError) as error:
            return Failed(failure=Failure.PROCESS, why=f"what the training left cannot be read: {error}")
        return report

    def stop(self) -> None:
        child, self._child, self._unstarted, self._checks = self._child, None, [], False
        if child is not None:
            child.end()

    def look(self) -> None:
        """Wait for a child that inspects the images, and log what they are. Raises BadImages. Too little
        memory for them is only logged: a training may find more."""
        try:
            child = self._started(self._order(None))
        except OSError as error:
            say(log, "images-unread", level=logging.WARNING, why=str(error))
            return
        try:
            child.answers.setblocking(True)
            while not (answers := child.answered()):
                pass
        finally:
            child.end()
        (answer,) = answers
        if isinstance(answer, Failed):
            if answer.failure == Failure.DATA:
                raise BadImages(answer.why)
            say(log, "images-unread", level=logging.WARNING, why=answer.why)
        if isinstance(answer, Looked):
            answer.found.tell()

    def _started(self, order: Order) -> WorkerProcess[Answer]:
        return WorkerProcess("onboard.trainer.process", "training", order, ANSWERS)

    def _order(self, job: Job | None, allowed_bytes: int | None = None) -> Order:
        left = allowed_bytes
        if left is None and self._memory_bytes is not None:
            left = max(0, self._memory_bytes - anonymous_bytes())  # all but what the agent has filled
        return Order(shard=self._shard, job=job, memory_bytes=left, first=self._first)


# -- the child -----------------------------------------------------------------------------------------


def main(answers_fd: int, parent: int) -> None:
    """Runs the child process."""
    serve(answers_fd, parent, Order, work)


def work(order: Order, asked: socket.socket) -> Iterator[Answer]:
    """Yield all answers, each when it has been asked for."""
    import numpy as np

    from onboard.learn.graph import TrainGraph
    from onboard.mission.objects import decode_task
    from onboard.trainer.in_process import checked, train

    if order.job is not None:  # before the limit: a library's reserve at its import is not the training's
        graph = TrainGraph.load(order.job.network or decode_task(order.job.model)[0].model)
    if order.memory_bytes is not None:
        cap_memory(order.memory_bytes)
    if order.check is not None:
        yield checked(order.check)
        return
    if order.job is None:
        yield Looked(found=order.shard.inspect())
        return
    # How many classes there are, the task says by their names.
    images, held = order.shard.load_parts(graph.objective.form)
    if order.first is not None:
        images = images.take(np.arange(min(order.first, len(images))))
    with shared_file() as state_file:
        steps = train(order.job, images, lambda _: graph, held=held, state_file=state_file)
        report = next(steps)
        while True:
            if isinstance(report, Failed):
                uncap_memory()
            yield _counted(report)
            if isinstance(report, TrainingDone | Failed) or not (wish := asked.recv(1)):
                return
            report = steps.send(wish == SAVE)


def _counted(report: Report) -> Report:
    """Add what only a process of its own can measure."""
    if isinstance(report, Begun):
        return msgspec.structs.replace(report, cpu_s=time.process_time())
    if isinstance(report, TrainingDone):
        return msgspec.structs.replace(report, peak_bytes=peak_bytes())
    return report
