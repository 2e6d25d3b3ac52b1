"""The message of a board about itself: what it is doing, what that has cost, and why its last task failed.

It is the one kind of MSG: unreliable, and replaced by the next. Without words it fits the smallest frame."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum

from onboard.wire.messages import BadMessage, pack_fields, unpack_fields


class State(IntEnum):
    """What a board is doing."""

    IDLE = 0
    TRAINING = 1
    OFFERING = 2  # an update waits for, or is on, its way
    FAILED = 3  # the last task could not be trained; the board waits for another


class Failure(IntEnum):
    """Why a board could not do its last task. Other numbers, up to 15, are let through."""

    NONE = 0
    MEMORY = 1  # training needs more than there is
    MODEL = 2  # it is not known here, differs from the ground's, or its weights cannot be unpacked
    DATA = 3  # the images or labels do not fit the model or the mission
    GRAPH = 4  # the model cannot be run, or its training diverges
    DISK = 5  # what the board kept of the task is gone or damaged
    PROCESS = 6  # the process that trains was killed, or crashed
    OTHER = 15


NO_MEMORY = "no memory is left on the board for the agent itself"


def failure_name(failure: int) -> str:
    """What a log and a status call it."""
    return Failure(failure).name.lower() if failure in _FAILURES else f"failure {failure}"


_FAILURES = frozenset(Failure)


@dataclass(frozen=True, slots=True)
class AnswerHealth:
    """What a board's deployed model has said of images, as far as their answers are kept: how many `images`,
    those `doubtful` that are to be labelled, the mean `confidence` and the `drift` against the images that it
    trains on (None where unknown), and the most frequent classes, MOST_CLASSES of them: label and share."""

    images: int
    doubtful: int
    confidence: float | None = None
    drift: float | None = None
    classes: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """How a board is, for the ground's live view: 29 B, and `why` after them.

    Times are seconds and energy joules since the board's start; `temperature_c`, `progress` (of the work in
    hand, 0..1) and `loss` (of the last training step) are None where unknown. Floats travel with 32 bits,
    temperature and progress with 16 (IEEE 754). `asking`: the low 8 bits of the last task's. `failure` (a
    `Failure`) says why the state is FAILED, `why` the same in words, as far as the frame has room for them.
    `answers`: 13 to 37 B more, where the board answers images.
    """

    state: int
    round: int
    uptime_s: int
    airtime_s: float
    energy_j: float
    cpu_s: float
    temperature_c: float | None = None
    progress: float | None = None
    loss: float | None = None
    asking: int = 0
    failure: int = Failure.NONE
    why: str = ""
    answers: AnswerHealth | None = None


_HEALTH = struct.Struct(">BBHIfffeefB")
_HEALTH_MSG, _ANSWERING_MSG = 1, 2  # the first byte of a MSG says which message it is
_ANSWERS = struct.Struct(">BIIee")  # classes that follow, images, doubtful, confidence, drift
_CLASS = struct.Struct(">HB")  # label, share of 255
MOST_CLASSES = 8
_STATES = frozenset(State)
_MOST, _MOST_HALF = 3.4028234e38, 65_504.0  # of 32 and of 16 bits (IEEE 754)
_MOST_ANSWERS = _ANSWERS.size + MOST_CLASSES * _CLASS.size
MAX_WHY_BYTES = 96
"""Of words in a Health: a minute's message of an idle link stays far below what it may carry."""


def encode_health(health: Health, room_bytes: int = _HEALTH.size + _MOST_ANSWERS + MAX_WHY_BYTES) -> bytes:
    """Packs at least 29 B for a MSG. `why` is cut to what is left of `room_bytes`, and to MAX_WHY_BYTES. A
    reading that does not fit its field, which no sensor gives, travels as unknown. Raises ValueError for a
    field out of range."""
    if not 0 <= health.state <= 15 or not 0 <= health.failure <= 15:
        raise ValueError(f"state {health.state} and failure {health.failure} must be 0..15")
    answers = _pack_answers(health.answers, room_bytes - _HEALTH.size)
    packed = pack_fields(
        _HEALTH,
        health,
        _ANSWERING_MSG if answers else _HEALTH_MSG,
        health.failure << 4 | health.state,
        health.round,
        min(health.uptime_s, 0xFFFFFFFF),
        *(min(spent, _MOST) for spent in (health.airtime_s, health.energy_j, health.cpu_s)),
        _reading(health.temperature_c, _MOST_HALF),
        _reading(health.progress, _MOST_HALF),
        _reading(health.loss, _MOST),
        health.asking & 0xFF,
    )
    packed += answers
    left_bytes = max(0, min(room_bytes - len(packed), MAX_WHY_BYTES))
    words = "".join(letter if letter.isprintable() else " " for letter in health.why).encode()
    return packed + words[:left_bytes].decode(errors="ignore").encode()


def _pack_answers(answers: AnswerHealth | None, room_bytes: int) -> bytes:
    """Packs the answers with as many classes as there is room for; b"" without answers or room."""
    if answers is None or room_bytes < _ANSWERS.size:
        return b""
    classes = answers.classes[: min(MOST_CLASSES, (room_bytes - _ANSWERS.size) // _CLASS.size)]
    head = _ANSWERS.pack(
        len(classes), min(answers.images, 0xFFFFFFFF), min(answers.doubtful, 0xFFFFFFFF),
        _reading(answers.confidence, _MOST_HALF), _reading(answers.drift, _MOST_HALF),
    )  # fmt: skip
    return head + b"".join(_CLASS.pack(label, round(255 * share)) for label, share in classes)


def _unpack_answers(payload: bytes) -> tuple[AnswerHealth, bytes]:
    """Returns the answers at the beginning of `payload`, and what follows. Raises BadMessage."""
    if len(payload) < _ANSWERS.size:
        raise BadMessage(f"Health with answers of {len(payload)} B")
    count, images, doubtful, *readings = _ANSWERS.unpack_from(payload)
    end = _ANSWERS.size + count * _CLASS.size
    if count > MOST_CLASSES or end > len(payload) or any(math.isinf(value) for value in readings):
        raise BadMessage(f"Health with {count} classes in {len(payload)} B and readings {readings}")
    classes = tuple((label, share / 255) for label, share in _CLASS.iter_unpack(payload[_ANSWERS.size : end]))
    confidence, drift = (None if math.isnan(value) else value for value in readings)
    return AnswerHealth(images, doubtful, confidence, drift, classes), payload[end:]


def _reading(value: float | None, most: float) -> float:
    return value if value is not None and abs(value) <= most else math.nan


def decode_health(payload: bytes) -> Health:
    """Raises BadMessage, also for a MSG that is not this one."""
    fixed, words, answers = payload[: _HEALTH.size], payload[_HEALTH.size :], None
    if payload[:1] == bytes([_ANSWERING_MSG]):
        answers, words = _unpack_answers(words)
    if len(words) > MAX_WHY_BYTES:
        raise BadMessage(f"Health of {len(payload)} B: {len(words)} B of words, at most {MAX_WHY_BYTES}")
    message, status, round_, uptime_s, *floats, asking = unpack_fields(_HEALTH, fixed, "Health")
    failure, state = divmod(status, 16)
    spent, readings = floats[:3], floats[3:]
    if message not in (_HEALTH_MSG, _ANSWERING_MSG):
        raise BadMessage(f"MSG {message} is not Health")
    if state not in _STATES:
        raise BadMessage(f"Health with state {state}")
    if not all(math.isfinite(value) and value >= 0 for value in spent):
        raise BadMessage(f"Health with airtime, energy, CPU time {spent}")
    if any(math.isinf(value) for value in readings):
        raise BadMessage(f"Health with readings {readings}")
    try:
        why = words.decode()
    except UnicodeDecodeError:
        raise BadMessage(f"Health with words that are no UTF-8: {words.hex()}") from None
    if not why.isprintable():
        raise BadMessage(f"Health with words that cannot be printed: {why!r}")
    airtime_s, energy_j, cpu_s = spent
    temperature_c, progress, loss = (None if math.isnan(value) else value for value in readings)
    named = Failure(failure) if failure in _FAILURES else failure
    return Health(
        State(state), round_, uptime_s, airtime_s, energy_j, cpu_s, temperature_c, progress, loss, asking,
        named, why, answers,
    )  # fmt: skip
