"""Trains a round in a child process (`onboard.trainer.child`): a `Trainer` that never waits and cannot harm.

What the child held is given back by its end. Whatever ends it (no memory, a signal, a crash in a library, the
kernel's OOM killer) is a `Failed` with the reason. It ends when its job does, and dies with this process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import subprocess
import sys

import msgspec

from onboard.board.budget import share_of_training
from onboard.console.log import say
from onboard.data.shard import Shard
from onboard.mission.health import Failure
from onboard.trainer.child import ANSWERS, LENGTH, MOST_BYTES, SAVE, STEP, Answer, Looked, Order
from onboard.trainer.job import Failed, Job, Report, TrainingDone

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
_REAP_WITHIN_S = 1.0  # a process that was killed is gone by then; else `subprocess` reaps it later
_WORDS_BYTES = 4096  # of what the child wrote to standard error last

# The child finds what this process finds, wherever it was started: `-m` would look in the working folder
# first.
_START = "import sys; sys.path[:] = {path!r}; from onboard.trainer.child import main; main({fd}, {parent})"
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class BadImages(ValueError):  # noqa: N818 - "bad" says error already
    """The node's images cannot be read; one line says what is wrong with what."""


class ProcessTrainer:
    """Trains on the images of `shard`. `memory_bytes`: what this process and the child may fill with data
    together; None: as much as there is. `first`: train on so many images alone."""

    def __init__(self, shard: Shard, memory_bytes: int | None = None, first: int | None = None) -> None:
        self._shard, self._memory_bytes, self._first = shard, memory_bytes, first
        self._child: _Child | None = None
        self._unstarted: list[Report] = []

    @property
    def fds(self) -> tuple[int, ...]:
        return () if self._child is None else (self._child.answers.fileno(),)

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return None if self._child is None else self._child.process.pid

    def begin(self, job: Job, allowed_bytes: int | None = None) -> None:
        """As `Trainer.begin`. `allowed_bytes`: the child's alone, in place of what `memory_bytes` leaves."""
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
            reports += [answer for answer in self._child.hear() if not isinstance(answer, Looked)]
            if reports and isinstance(reports[-1], TrainingDone | Failed):
                self.stop()
        return reports

    def stop(self) -> None:
        child, self._child, self._unstarted = self._child, None, []
        if child is not None:
            child.end()

    def look(self) -> None:
        """Looks at the images in a process that ends with that, and logs what they are; waits for it. Raises
        BadImages.

        Where there is too little memory for them, the log says so: a training may find more.
        """
        try:
            child = _Child(self._order(None))
        except OSError as error:
            say(log, "images-unread", level=logging.WARNING, why=str(error))
            return
        try:
            child.answers.setblocking(True)
            while not (answers := child.hear()):
                pass
        finally:
            child.end()
        (answer,) = answers
        if isinstance(answer, Failed) and answer.failure == Failure.DATA:
            raise BadImages(answer.why)
        if isinstance(answer, Failed):
            say(log, "images-unread", level=logging.WARNING, why=answer.why)
        if isinstance(answer, Looked):
            answer.found.tell()

    def _order(self, job: Job | None, allowed_bytes: int | None = None) -> Order:
        left = allowed_bytes
        if left is None and self._memory_bytes is not None:
            left = share_of_training(self._memory_bytes)
        return Order(shard=self._shard, job=job, memory_bytes=left, first=self._first)


class _Child:
    """One child: its process, the socket on which it answers, and what of an answer is here."""

    def __init__(self, order: Order) -> None:
        """Starts it. Raises OSError."""
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

    def hear(self) -> list[Answer]:
        """What it has answered; at its end, of what it died if it has not said so itself."""
        answers: list[Answer] = []
        while not self._over:
            try:
                piece = self.answers.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            if not piece:
                self._over = True
                answers.append(self._obituary())
                break
            self._held += piece
            try:
                answers += self._whole()
            except (msgspec.MsgspecError, ValueError) as error:
                self._over = True
                answers.append(
                    Failed(failure=Failure.PROCESS, why=f"the training process makes no sense: {error}")
                )
            self._over = self._over or any(isinstance(each, TrainingDone | Failed) for each in answers)
            if answers:
                break
        return answers

    def _whole(self) -> list[Answer]:
        """The answers that are complete. Raises ValueError."""
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
            return Failed(
                failure=Failure.PROCESS, why="the training process closed its socket and did not end"
            )
        words = self._last_words()
        failure = Failure.MEMORY if re.search("MemoryError|bad_alloc", words) else Failure.PROCESS
        what = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if -code == signal.SIGKILL:
            words = "the kernel does so where memory runs out"
        return Failed(failure=failure, why=f"the training process {what}{': ' if words else ''}{words}")

    def _last_words(self) -> str:
        size = os.fstat(self._words).st_size
        text = os.pread(self._words, _WORDS_BYTES, max(0, size - _WORDS_BYTES)).decode(errors="replace")
        lines = text.strip().splitlines()
        return lines[-1].strip() if lines else ""

    def end(self) -> None:
        """Kills it if it still runs; nothing of it is left."""
        if self.process.poll() is None:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_REAP_WITHIN_S)
        self._close()

    def _close(self) -> None:
        self.answers.close()
        os.close(self._words)
