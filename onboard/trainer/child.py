"""The program that trains a round for an agent: a process of its own, so that all it held is given back at
its end, and nothing that befalls it ends the agent.

It is started by `onboard.trainer.process`, reads one `Order` from standard input, and answers over a socket
in frames of a length and a msgpack message. Each byte that it is sent asks for one step. It ends with its
job, with its parent (prctl(2), PR_SET_PDEATHSIG), and when the socket is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from onboard.board.budget import BudgetError, cap_memory, peak_bytes
from onboard.data.inspection import Inspection
from onboard.data.shard import Shard, images_of, inspection_of
from onboard.mission.health import Failure
from onboard.trainer.job import Begun, Failed, Job, Report, Stepped, TrainingDone

STEP, SAVE = b"s", b"S"
LENGTH = struct.Struct(">I")
MOST_BYTES = 2**30  # of a message: a length beyond is no message
STDERR_BYTES = 2**20  # what a library may say there: it is kept in memory
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "800"  # of 1000: where the kernel must kill, it takes the training and not the agent


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is for. Without a `job` it only looks at the images. `memory_bytes`: what it may fill
    with data. `first`: train on so many images alone, the first."""

    shard: Shard
    job: Job | None = None
    memory_bytes: int | None = None
    first: int | None = None


class Looked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The images can be read, and what they are."""

    found: Inspection


Answer = Begun | Stepped | TrainingDone | Failed | Looked
ANSWERS = msgspec.msgpack.Decoder(Answer)


def main(answers_fd: int, parent: int) -> None:
    """The whole life of the process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before the line above
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
    """All answers, each when it has been asked for."""
    try:
        yield from _work(order, asked)
    except BaseException as error:  # whatever it is, the agent has to be told
        _uncap_memory()
        yield _failed(error)


def _work(order: Order, asked: socket.socket) -> Iterator[Answer]:
    import numpy as np

    from onboard.trainer.in_process import LocalTrainer

    graphs: dict[str, Any] = {}
    if order.job is not None:
        graphs = _graphs(order.job)
    if order.memory_bytes is not None:
        cap_memory(order.memory_bytes)
    if order.job is None:
        yield Looked(found=inspection_of(order.shard))
        return
    images = images_of(order.shard)
    if order.first is not None:
        images = images.take(np.arange(min(order.first, len(images))))
    trainer = LocalTrainer(images, graphs.__getitem__)
    trainer.begin(order.job)
    while True:
        (report,) = trainer.reports()
        if isinstance(report, Failed):
            _uncap_memory()
        yield _counted(report)
        if isinstance(report, TrainingDone | Failed):
            return
        if not (wish := asked.recv(1)):
            return
        trainer.step(save=wish == SAVE)


def _graphs(job: Job) -> dict[str, Any]:
    """The job's graph, opened before the limit: what its library reserves at its import is not the
    training's."""
    from onboard.learn.graph import TrainGraph
    from onboard.mission.objects import decode_task

    task, _ = decode_task(job.model)
    return {task.model: TrainGraph.load(task.model)}


def _counted(report: Report) -> Report:
    """With what only a process of its own can say."""
    if isinstance(report, Begun):
        return msgspec.structs.replace(report, cpu_s=time.process_time())
    if isinstance(report, TrainingDone):
        return msgspec.structs.replace(report, peak_bytes=peak_bytes())
    return report


def _uncap_memory() -> None:
    """Memory to say that there is none."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _failed(error: BaseException) -> Failed:
    if isinstance(error, BudgetError):
        return Failed(failure=Failure.MEMORY, why=str(error))
    from onboard.trainer.in_process import failed

    return failed(error)
