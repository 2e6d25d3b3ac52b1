"""The objects that board and ground exchange: which kinds there are, and the headers before the weights.
Bytes that make no sense raise BadMessage and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from onboard.learn.training import BoardTraining
from onboard.wire.messages import BadMessage, digest

# Kinds of objects
MODEL = 1  # ground to board: header Task, then the packed weights to start from
UPDATE = 2  # board to ground: header Update, then the packed weights that training gave
GOSSIP = 3  # node to node: the values of an exchange (docs/gossip.md), and nothing before them
COMMAND = 4  # ground to board: a Command (`onboard/mission/commands.py`), and nothing after it
RESULT = 5  # board to ground: the CommandResult of a command, and nothing after it
FILE = 6  # ground to board: a part of a file (`onboard/mission/files.py`)
REQUEST = 7  # board to ground: which files it wants, and what it holds of them
ANSWERS = 8  # board to ground: what it answered, and an image (`onboard/inference/downlink.py`)
KINDS = {
    MODEL: "model", UPDATE: "update", GOSSIP: "gossip", COMMAND: "command", RESULT: "result", FILE: "file",
    REQUEST: "request", ANSWERS: "answers",
}  # fmt: skip

Id8 = Annotated[bytes, Meta(min_length=8, max_length=8)]
Count = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]
ClassName = Annotated[str, Meta(min_length=1, max_length=64)]

TASK_VERSION: Literal[2] = 2
"""Stands first in a Task's header. Before there were versions, the mission's id stood there: version 1."""


class Task(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Header of a MODEL: what a board is asked to do with the weights that follow.

    `mission`: 8 B id; `graph`: 8 B digest of the training graph that `model` names; `weights`: "seed" where
    none follow and both ends draw the same from `seed`. `training`: None where the weights are to be used.
    `deadline_s`: seconds for the answer, from arrival. `asking`: how often this board was asked for this
    round before, so that a question that is asked again is another object than the one already taken.
    `classes`: 8 B digest of the names of the mission's classes in their order (`labels.digest`), empty where
    nobody says what a label means; `names`: these themselves where they are short (`names_that_fit`).
    `measures`: whether the ground measures running statistics, so that an update does without them.
    Ranges are part of the interface: what passes here can be computed with.
    """

    version: Literal[2] = TASK_VERSION
    mission: Id8
    round: Annotated[int, Meta(ge=0, le=0xFFFF)]
    model: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    graph: Id8
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    weights: Literal["seed", "packed"]
    training: BoardTraining | None
    deadline_s: Annotated[float, Meta(gt=0, le=1e9)]
    asking: Count = 0
    classes: Annotated[bytes, Meta(max_length=8)] = b""
    names: tuple[ClassName, ...] = ()
    measures: bool = False


class Update(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Header of an UPDATE. `samples` weighs it in the average; `loss` is the last epoch's mean; `cpu_s` and
    `train_s` are seconds of CPU and of the clock, `energy_j` joules of this round; `validation` is what the
    task's metric says of the trained model on images that the board holds out, if it holds any out: without
    it the field is not sent, and who does not know it passes over it."""

    mission: Id8
    round: Annotated[int, Meta(ge=0, le=0xFFFF)]
    node: Annotated[int, Meta(ge=0, le=0xFE)]
    samples: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]
    loss: Annotated[float, Meta(ge=-1e12, le=1e12)]
    cpu_s: Amount
    energy_j: Amount
    train_s: Amount
    validation: Annotated[float, Meta(ge=-1e12, le=1e12)] | None = None


def mean_validation(told: Iterable[tuple[float | None, int]]) -> float | None:
    """Returns the mean of updates' `validation`, weighted by their samples; None where none has any."""
    scores = [(score, samples) for score, samples in told if score is not None]
    whole = sum(samples for _, samples in scores)
    return sum(score * samples for score, samples in scores) / whole if whole else None


KNOBS_ALWAYS_SENT = 13  # of a task's training: those that there were when a task got its version
MAX_NAMES_BYTES = 64  # of a task's names: they come with every round, and ten digits take 21

_MAX_HEADER_BYTES = 1024  # a Task with a model's name of 64 letters has 160; also bounds msgpack's nesting
_LENGTH = struct.Struct(">H")
T = TypeVar("T")


class _AnyTask(msgspec.Struct, array_like=True, frozen=True):
    """What every version of a Task begins with."""

    version: int | bytes


def names_that_fit(names: Sequence[str]) -> tuple[str, ...]:
    """The names of a mission's classes, or none where they would take more than MAX_NAMES_BYTES of a task."""
    told = tuple(names)
    return told if len(msgspec.msgpack.encode(told)) <= MAX_NAMES_BYTES else ()


def encode_object(header: Task | Update, weights: bytes) -> bytes:
    """An object's payload: u16 length of the header, the header as a msgpack array, the packed weights.
    Raises ValueError for a header that the other end would refuse."""
    packed = msgspec.msgpack.encode(_shortened(header))
    try:  # a struct does not check its own fields, and its decoder does
        checked = decoded(packed, type(header))
        if isinstance(checked, Task):
            _check_weights(checked, weights)
    except BadMessage as error:
        raise ValueError(str(error)) from None
    return _LENGTH.pack(len(packed)) + packed + weights


def _shortened(header: Task | Update) -> object:
    """The header without what came later and is not used, at its end or at that of its training: it costs no
    byte, and a program of before understands the rest."""
    if isinstance(header, Update):
        return header if header.validation is not None else msgspec.structs.astuple(header)[:-1]
    fields: list[Any] = msgspec.to_builtins(header, builtin_types=(bytes,))
    if not header.measures:
        fields.pop()
    if header.training is not None:
        knobs = fields[Task.__struct_fields__.index("training")]
        defaults = msgspec.to_builtins(BoardTraining())
        while len(knobs) > KNOBS_ALWAYS_SENT and knobs[-1] == defaults[len(knobs) - 1]:
            knobs.pop()
    return fields


def decode_task(payload: bytes) -> tuple[Task, memoryview]:
    """The header of a MODEL and a view of its packed weights. Raises BadMessage."""
    header, weights = _header_and_weights(payload)
    first = decoded(header, _AnyTask).version
    version = first if isinstance(first, int) else 1
    if version != TASK_VERSION:
        raise BadMessage(f"task of version {version}, this program speaks {TASK_VERSION}")
    task = decoded(header, Task)
    _check_weights(task, weights)
    return task, weights


def decode_update(payload: bytes) -> tuple[Update, memoryview]:
    """The header of an UPDATE and a view of its packed weights. Raises BadMessage."""
    header, weights = _header_and_weights(payload)
    return decoded(header, Update), weights


def asked_again(model: bytes, asking: int) -> bytes:
    """The MODEL's payload as it is asked the next time: the same task and weights, another object."""
    task, weights = decode_task(model)
    return encode_object(msgspec.structs.replace(task, asking=asking), bytes(weights))


def as_asked_first(model: bytes) -> bytes:
    """Digest of the MODEL whichever asking it is: two of the same have the same training."""
    return digest(MODEL, asked_again(model, 0))


def _header_and_weights(payload: bytes) -> tuple[memoryview, memoryview]:
    whole = memoryview(payload)
    if len(whole) < _LENGTH.size:
        raise BadMessage(f"object of {len(whole)} B")
    (length,) = _LENGTH.unpack_from(whole)
    if length > _MAX_HEADER_BYTES or _LENGTH.size + length > len(whole):
        raise BadMessage(f"object of {len(whole)} B with a header of {length}, at most {_MAX_HEADER_BYTES}")
    start = _LENGTH.size + length
    return whole[_LENGTH.size : start], whole[start:]


def decoded(data: bytes | memoryview, kind: type[T], what: str = "object's header") -> T:
    """What msgpack makes of it. Raises BadMessage."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"{what}: {error}") from None


def _check_weights(task: Task, weights: bytes | memoryview) -> None:
    if (task.weights == "packed") != bool(weights):
        raise BadMessage(f"Task with weights {task.weights!r} and {len(weights)} B of them")
