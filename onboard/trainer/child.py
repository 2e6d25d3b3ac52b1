"""A child process that works for an agent, as seen from both ends: it answers, and dies without doing harm.

The child's end frees its memory. Whatever ends it (no memory, a signal, a crash in a library, the kernel's
OOM killer) is a `Failed` with the reason, and never the agent's end. The child reads one order from standard
input, and answers over a socket in frames of a length and a msgpack message; each byte sent to it asks for
more. What is too large for a message it leaves in the order's file. It ends with its work, its parent
(prctl(2), PR_SET_PDEATHSIG) or the socket."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import msgspec

from onboard.board.budget import BudgetError
from onboard.mission.health import Failure
from onboard.trainer.job import Failed

A = TypeVar("A")
R = TypeVar("R")

LENGTH = struct.Struct(">I")
MOST_BYTES = 2**30  # of a message: a length beyond is no message
STDERR_BYTES = 2**20  # of a library's words there, which are kept in memory
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "800"  # of 1000: where the kernel must kill, it takes the child and not the agent
_READ_BYTES = 1 << 16
_REAP_WITHIN_S = 1.0  # a process that was killed is gone by then; else `subprocess` reaps it later
_WORDS_BYTES = 4096  # of what the child wrote to standard error last

# The child finds what this process finds, wherever it was started: `-m` would look in the working folder
# first.
_START = "import sys; sys.path[:] = {path!r}; from {module} import main; main({fd}, {parent})"
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerProcess(Generic[A]):
    """One child: its process, the socket on which it answers, and the answer received so far. `module` has
    the `main` that it runs, `work` names what it does ("training"), `decoder` reads its answers. Raises
    OSError."""

    def __init__(
        self, module: str, work: str, order: msgspec.Struct, decoder: msgspec.msgpack.Decoder[A]
    ) -> None:
        self._work, self._decoder = work, decoder
        self.answers, theirs = socket.socketpair()
        self._words = os.memfd_create(f"{work}-words", os.MFD_CLOEXEC)
        self._shared = os.fdopen(os.memfd_create(f"{work}-order", os.MFD_CLOEXEC), "w+b")
        self._held = bytearray()
        self._over = False
        start = _START.format(path=sys.path, module=module, fd=theirs.fileno(), parent=os.getpid())
        try:
            with theirs:
                self._shared.write(msgspec.msgpack.encode(order))
                self._shared.seek(0)
                self.process = subprocess.Popen(
                    [sys.executable, "-c", start, work],
                    stdin=self._shared, stdout=subprocess.DEVNULL, stderr=self._words,
                    pass_fds=[theirs.fileno()], env={**os.environ, **_ONE_THREAD}, start_new_session=True,
                )  # fmt: skip
        except OSError:
            self._close()
            raise
        self.answers.setblocking(False)

    def left(self, size: int) -> memoryview:
        """Return what the child left: so many bytes, until it is asked for more. Raises OSError, ValueError
        for less."""
        return memoryview(mmap.mmap(self._shared.fileno(), size, prot=mmap.PROT_READ))

    def ask(self, wish: bytes) -> None:
        with contextlib.suppress(OSError):  # it has died: `answered` says of what
            self.answers.send(wish)

    def answered(self) -> list[A | Failed]:
        """Return its new answers; at its end, the cause of death if it has not said so itself."""
        answers: list[A | Failed] = []
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
                why = f"the {self._work} process makes no sense: {error}"
                answers = [Failed(failure=Failure.PROCESS, why=why)]
            self._over = any(isinstance(each, Failed) for each in answers)
        return answers

    def _whole(self) -> list[A | Failed]:
        """Return the complete answers. Raises ValueError."""
        answers: list[A | Failed] = []
        while len(self._held) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._held)
            if length > MOST_BYTES:
                raise ValueError(f"a message of {length} B")
            if len(self._held) < LENGTH.size + length:
                break
            answers.append(self._decoder.decode(memoryview(self._held)[LENGTH.size : LENGTH.size + length]))
            del self._held[: LENGTH.size + length]
        return answers

    def _obituary(self) -> Failed:
        try:
            code = self.process.wait(_REAP_WITHIN_S)
        except subprocess.TimeoutExpired:
            why = f"the {self._work} process closed its socket and did not end"
            return Failed(failure=Failure.PROCESS, why=why)
        size = os.fstat(self._words).st_size
        text = os.pread(self._words, _WORDS_BYTES, max(0, size - _WORDS_BYTES)).decode(errors="replace")
        words = (text.strip().splitlines() or [""])[-1].strip()
        failure = Failure.MEMORY if re.search("MemoryError|bad_alloc", words) else Failure.PROCESS
        what = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if -code == signal.SIGKILL:
            words = "the kernel does so where memory runs out"
        return Failed(failure=failure, why=f"the {self._work} process {what}{': ' if words else ''}{words}")

    def end(self) -> None:
        """Kill it if it still runs, and release its resources."""
        if self.process.poll() is None:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_REAP_WITHIN_S)
        self._close()

    def _close(self) -> None:
        self.answers.close()
        self._shared.close()
        os.close(self._words)


def serve(
    answers_fd: int, parent: int, kind: type[R], work: Callable[[R, socket.socket], Iterator[msgspec.Struct]]
) -> None:
    """Runs the child process: reads an order of this kind, and sends what `work` makes of it, or `Failed`."""
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
        with os.fdopen(0, "rb", closefd=False) as told:
            order = msgspec.msgpack.decode(told.read(), type=kind)
        with contextlib.suppress(ConnectionError):  # the agent wants no more
            for answer in _reported(work(order, answers)):
                payload = msgspec.msgpack.encode(answer)
                answers.sendall(LENGTH.pack(len(payload)))
                answers.sendall(payload)


def _reported(answers: Iterator[msgspec.Struct]) -> Iterator[msgspec.Struct]:
    try:
        yield from answers
    except BudgetError as error:
        yield Failed(failure=Failure.MEMORY, why=str(error))
    except BaseException as error:  # whatever it is, the agent has to be told
        uncap_memory()
        from onboard.trainer.in_process import failed

        yield failed(error)


def shared_file() -> BinaryIO:
    """Opens the order's file in the child, for what it leaves there."""
    return os.fdopen(0, "r+b", closefd=False)


def uncap_memory() -> None:
    """The report that memory ran out needs memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
