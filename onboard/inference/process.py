"""The child process that answers images for an agent, so that the agent itself needs neither memory nor
numpy for them.

Its order says whose model to load. It begins with `InferReady`; then each message to it, a length and an
image's path, is answered by one `ImageAnswered`. A new model's first `InferReady` brings the scores of
training images."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from onboard.board.budget import cap_memory
from onboard.data.inspection import Shard
from onboard.data.suffixes import as_text
from onboard.inference.population import ReferenceScores, reference_of
from onboard.inference.rules import NodeFolder
from onboard.learn.objectives import Objective
from onboard.mission.health import Failure
from onboard.trainer.child import LENGTH, WorkerProcess, serve
from onboard.trainer.job import Failed

if TYPE_CHECKING:  # the agent, which starts the child, needs no numpy
    from onboard.inference.model import AnsweringModel

REFERENCE_IMAGES, REFERENCE_BYTES = 500, 8 << 20
_BATCH = 16


class InferOrder(msgspec.Struct, frozen=True, kw_only=True):
    """`model` is the digest of the deployed object, in hexadecimal. With a `shard` its images are scored
    first."""

    node: NodeFolder
    model: str
    memory_bytes: int
    shard: Shard | None


class InferReady(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded. `why`: there are no scores of training images for this reason."""

    cpu_s: float
    reference: ReferenceScores | None = None
    why: str = ""


class ImageAnswered(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the model says of one image, with the fields of an `AnswerRecord`; or `why` it cannot be read."""

    cpu_s: float
    label: int | None = None
    name: str = ""
    share: float | None = None
    confidence: float | None = None
    values: dict[str, float] = {}
    error: float | None = None
    score: float | None = None
    why: str = ""


InferReport = InferReady | ImageAnswered | Failed
_REPORTS = msgspec.msgpack.Decoder(InferReport)


def start(order: InferOrder) -> WorkerProcess[InferReport]:
    """Starts the child. Raises OSError."""
    return WorkerProcess("onboard.inference.process", "inference", order, _REPORTS)


def request(image: Path) -> bytes:
    """The message that asks for an image."""
    raw = str(image).encode("utf-8", "surrogateescape")
    return LENGTH.pack(len(raw)) + raw


# -- the child -----------------------------------------------------------------------------------------


def main(answers_fd: int, parent: int) -> None:
    """Runs the child process."""
    serve(answers_fd, parent, InferOrder, work)


def work(order: InferOrder, asked: socket.socket) -> Iterator[InferReport]:
    """Yields `InferReady` and an answer to each request, or `Failed` where the model can give none."""
    from onboard.inference.model import ModelError

    try:
        yield from _work(order, asked)
    except ModelError as error:
        yield Failed(failure=Failure.MODEL, why=str(error))


def _work(order: InferOrder, asked: socket.socket) -> Iterator[InferReport]:
    from onboard.data.images import DataError, fit
    from onboard.data.pictures import decoded
    from onboard.inference.answers import answers
    from onboard.inference.model import of_node

    model = of_node(order.node, order.model)
    cap_memory(order.memory_bytes)
    reference, why = None, ""
    if order.shard is not None:
        try:
            reference = _scores(model, order.shard, order.model)
        except (DataError, ValueError) as error:
            why = str(error)
    yield InferReady(cpu_s=time.process_time(), reference=reference, why=why)
    while (path := _next(asked)) is not None:
        began_s = time.process_time()
        try:
            x = fit(decoded(as_text(path.name), path, model.info.input[0])[None], model.info.input)
        except DataError as error:
            yield ImageAnswered(cpu_s=time.process_time() - began_s, why=str(error))
            continue
        ((answer, _),) = answers(model, [path.name], x, 1)
        said = ImageAnswered(
            cpu_s=time.process_time() - began_s, score=answer.score, confidence=answer.confidence,
            values=answer.values, error=answer.error,
        )  # fmt: skip
        for first in answer.classes[:1]:
            said = msgspec.structs.replace(said, label=first.label, name=first.name, share=first.share)
        yield said


def _scores(model: AnsweringModel, shard: Shard, named: str) -> ReferenceScores:
    """Scores images that the node trains on, evenly over the set. Raises DataError, ValueError."""
    import numpy as np

    from onboard.inference.answers import answers

    info = model.info
    survey = shard.survey(Objective(kind=info.task, outputs=info.outputs, ignore=info.ignore))
    most = max(1, min(REFERENCE_IMAGES, REFERENCE_BYTES // int(np.prod(survey.shape))))
    chosen = np.unique(np.linspace(0, len(survey) - 1, min(most, len(survey))).astype(np.int64))
    x = replace(survey, y=survey.y[chosen], rows=survey.rows[chosen]).load().x
    if x.shape[1:] != info.input:
        raise ValueError(f"images are {x.shape[1:]}, the model takes {info.input}")
    found = [
        answer.score
        for at in range(0, len(x), _BATCH)
        for answer, _ in answers(model, [""] * len(x[at : at + _BATCH]), x[at : at + _BATCH], 1)
    ]
    return reference_of(named, found)


def _next(asked: socket.socket) -> Path | None:
    head = asked.recv(LENGTH.size, socket.MSG_WAITALL)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    return Path(asked.recv(length, socket.MSG_WAITALL).decode("utf-8", "surrogateescape"))
