"""Trains a round in a child process: a `Trainer` that never waits and cannot harm, and the child itself.

The child's end frees its memory. Whatever ends it (no memory, a signal, a crash in a library, the kernel's
OOM killer) is a `Failed` with the reason, and never the agent's end. The child reads one `Order` from
standard input, and answers over a socket in frames of a length and a msgpack message. Each byte sent to it
asks for a step. It ends with its job, its parent (prctl(2), PR_SET_PDEATHSIG) or the socket."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from onboard.board.budget import BudgetError, anonymous_bytes, cap_memory, peak_bytes
from onboard.console.log import say
from onboard.data.inspection import Inspection, Shard
from onboard.learn.training import Stepped
from onboard.mission.health import Failure
from onboard.trainer.job import Begun, Failed, Job, Report, TrainingDone

log = logging.getLogger(__name__)

STEP, SAVE = b"s", b"S"
LENGTH = struct.Struct(">I")
MOST_BYTES = 2**30  # of a message: a length beyond is no message
STDERR_BYTES = 2**20  # of a library's words there, which are kept in memory
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "800"  # of 1000: where the kernel must kill, it takes the training and not the agent
_READ_BYTES = 1 << 16
_REAP_WITHIN_S = 1.0  # a process that was killed is gone by then; else `subprocess` reaps it later
_WORDS_BYTES = 4096  # of what the child wrote to standard error last

# The child finds what this process finds, wherever it was started: `-m` would look in the working folder
# first.
_START = "import sys; sys.path[:] = {path!r}; from onboard.trainer.process import main; main({fd}, {parent})"
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is for: without a `job` only an inspection of the images. `memory_bytes`: its cap on
    data. `first`: train on that many images, the first."""

    shard: Shard
    job: Job | None = None
    memory_bytes: int | None = None
    first: int | None = None


class Looked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The images can be read."""

    found: Inspection


Answer = Begun | Stepped | TrainingDone | Failed | Looked
ANSWERS = msgspec.msgpack.Decoder(Answer)


class BadImages(ValueError):  # noqa: N818 - "bad" says error already
    """The node's images cannot be read; the message is one line."""


class ProcessTrainer:
    """Trains on the images of `shard`, or its `first` ones. `memory_bytes` caps the data of this process and
    the child together."""

    def __init__(self, shard: Shard, memory_bytes: int | None = None, first: int | None = None) -> None:
        self._shard, self._memory_bytes, self._first = shard, memory_bytes, first
        self._child: _Child | None = None
        self._unstarted: list[Report] = []

    @property
    def fds(self) -> tuple[int, ...]:
        return () if self._child is None else (self._child.answers.fileno(),)

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.process.pid

    def begin(self, job: Job, allowed_bytes: int | None = None) -> None:
        """As `Trainer.begin`. `allowed_bytes`: the child's own cap; by default what `memory_bytes` leaves."""
        self.stop()
        try:
            self._child = _Child(self._order(job, allowed_bytes))
        except OSError as error:  # no memory for a process, too many of them, or no interpreter any more
            failure = Failure.MEMORY if error.errno in (errno.ENOMEM, errno.EAGAIN) else Failure.PROCESS
            self._unstarted = [Failed(failure=failure, why=f"cannot start a process to train: {error}")]

    def step(self, *, save: bool = False) -> None:
        assert self._child is not None, "a step without a job"
        with contextlib.suppress(OSError):  # it has died: `reports` says of what
            self._child.answers.send(SAVE if save else STEP)

    def reports(self) -> list[Report]:
        reports, self._unstarted = self._unstarted, []
        if self._child is not None:
            reports += [answer for answer in self._child.answered() if not isinstance(answer, Looked)]
            if reports and isinstance(reports[-1], TrainingDone | Failed):
                self.stop()
        return reports

    def stop(self) -> None:
        child, self._child, self._unstarted = self._child, None, []
        if child is not None:
            child.end()

    def look(self) -> None:
        """Wait for a child that inspects the images, and log what they are. Raises BadImages. Too little
        memory for them is only logged: a training may find more."""
        try:
            child = _Child(self._order(None))
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

    def _order(self, job: Job | None, allowed_bytes: int | None = None) -> Order:
        left = allowed_bytes
        if left is None and self._memory_bytes is not None:
            left = max(0, self._memory_bytes - anonymous_bytes())  # all but what the agent has filled
        return Order(shard=self._shard, job=job, memory_bytes=left, first=self._first)


class _Child:
    """One child: its process, the socket on which it answers, and the answer received so far."""

    def __init__(self, order: Order) -> None:
        self.answers, theirs = socket.socketpair()
        self._words = os.memfd_create("training-words", os.MFD_CLOEXEC)
        self._held = bytearray()
        self._over = False
        start = _START.format(path=sys.path, fd=theirs.fileno(), parent=os.getpid())
        try:
            with theirs, os.fdopen(os.memfd_create("training-order", os.MFD_CLOEXEC), "w+b") as told:
                told.write(msgspec.msgpack.encode(order))
                told.seek(0)
                self.process = subprocess.Popen(
                    [sys.executable, "-c", start, "training"],
                    stdin=told, stdout=subprocess.DEVNULL, stderr=self._words,
                    pass_fds=[theirs.fileno()], env={**os.environ, **_ONE_THREAD}, start_new_session=True,
                )  # fmt: skip
        except OSError:
            self._close()
            raise
        self.answers.setblocking(False)

    def answered(self) -> list[Answer]:
        """Return its new answers; at its end, the cause of death if it has not said so itself."""
        answers: list[Answer] = []
        while not (self._over or answers):
            try:
                piece = self.answers.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            self._held += piece
            try:
                answers = self._whole() if piece else [self._obituary()]
            except ValueError as error:
                why = f"the training process makes no sense: {error}"
                answers = [Failed(failure=Failure.PROCESS, why=why)]
            self._over = any(isinstance(each, TrainingDone | Failed) for each in answers)
        return answers

    def _whole(self) -> list[Answer]:
        """Return the complete answers. Raises ValueError."""
        answers: list[Answer] = []
        while len(self._held) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._held)
            if length > MOST_BYTES:
                raise ValueError(f"a message of {length} B")
            if len(self._held) < LENGTH.size + length:
                break
            answers.append(ANSWERS.decode(memoryview(self._held)[LENGTH.size : LENGTH.size + length]))
            del self._held[: LENGTH.size + length]
        return answers

    def _obituary(self) -> Failed:
        try:
            code = self.process.wait(_REAP_WITHIN_S)
        except subprocess.TimeoutExpired:
            why = "the training process closed its socket and did not end"
            return Failed(failure=Failure.PROCESS, why=why)
        size = os.fstat(self._words).st_size
        text = os.pread(self._words, _WORDS_BYTES, max(0, size - _WORDS_BYTES)).decode(errors="replace")
        words = (text.strip().splitlines() or [""])[-1].strip()
        failure = Failure.MEMORY if re.search("MemoryError|bad_alloc", words) else Failure.PROCESS
        what = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if -code == signal.SIGKILL:
            words = "the kernel does so where memory runs out"
        return Failed(failure=failure, why=f"the training process {what}{': ' if words else ''}{words}")

    def end(self) -> None:
        """Kill it if it still runs, and release its resources."""
        if self.process.poll() is None:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_REAP_WITHIN_S)
        self._close()

    def _close(self) -> None:
        self.answers.close()
        os.close(self._words)


# -- the child -----------------------------------------------------------------------------------------


def main(answers_fd: int, parent: int) -> None:
    """Run the child process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the agent, which ends this process with itself
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most == resource.RLIM_INFINITY or most > STDERR_BYTES:
        resource.setrlimit(resource.RLIMIT_FSIZE, (STDERR_BYTES, most))
    with socket.socket(fileno=answers_fd) as answers:
        order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
        sys.stdin.close()
        with contextlib.suppress(ConnectionError):  # the agent wants no more
            for answer in work(order, answers):
                payload = msgspec.msgpack.encode(answer)
                answers.sendall(LENGTH.pack(len(payload)) + payload)


def work(order: Order, asked: socket.socket) -> Iterator[Answer]:
    """Yield all answers, each when it has been asked for."""
    try:
        yield from _work(order, asked)
    except BudgetError as error:
        yield Failed(failure=Failure.MEMORY, why=str(error))
    except BaseException as error:  # whatever it is, the agent has to be told
        _uncap_memory()
        from onboard.trainer.in_process import failed

        yield failed(error)


def _work(order: Order, asked: socket.socket) -> Iterator[Answer]:
    import numpy as np

    from onboard.learn.graph import TrainGraph
    from onboard.mission.objects import decode_task
    from onboard.trainer.in_process import train

    if order.job is not None:  # before the limit: a library's reserve at its import is not the training's
        graph = TrainGraph.load(decode_task(order.job.model)[0].model)
    if order.memory_bytes is not None:
        cap_memory(order.memory_bytes)
    if order.job is None:
        yield Looked(found=order.shard.inspect())
        return
    images = order.shard.load(graph.objective.form)  # how many classes there are, the task says by names
    if order.first is not None:
        images = images.take(np.arange(min(order.first, len(images))))
    steps = train(order.job, images, lambda _: graph)
    report = next(steps)
    while True:
        if isinstance(report, Failed):
            _uncap_memory()
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


def _uncap_memory() -> None:
    """The report that memory ran out needs memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
