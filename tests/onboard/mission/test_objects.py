"""Tasks, updates and health come out as they went in, and no other end can make them say what cannot be."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.learn.training import BoardTraining
from onboard.mission.health import AnswerHealth, Failure, Health, State, decode_health, encode_health
from onboard.mission.objects import Task, Update, decode_task, decode_update, encode_object
from onboard.wire.messages import BadMessage
from tests.onboard.wire.examples import (
    HEALTH,
    SMALLEST_PAYLOAD,
    TASK,
    UPDATE,
    WEIGHTS,
    u8,
    u16,
    u32,
)

ids = st.binary(min_size=8, max_size=8)
spent = st.floats(0, 2.0**127, width=32)
healths = st.builds(
    Health,
    st.sampled_from(State),
    u16,
    u32,
    spent,
    spent,
    spent,
    st.none() | st.floats(-100, 200, width=16),
    st.none() | st.floats(0, 1, width=16),
    st.none() | st.floats(-(2.0**100), 2.0**100, width=32),
    u8,
    st.sampled_from(Failure) | st.integers(6, 14),
    st.text(max_size=96).filter(lambda why: why.isprintable() and len(why.encode()) <= 96),
)
trainings = st.builds(
    BoardTraining,
    method=st.sampled_from(["fedavg", "fedavg-zstd", "spacedml", "spacedml-fast"]),
    epochs=st.integers(1, 10_000),
    pretrain_epochs=st.integers(1, 10_000),
    batch_size=st.integers(1, 65_536),
    learning_rate=st.floats(0, 1, exclude_min=True, exclude_max=True),
    bits_up=st.floats(0, 32, exclude_min=True),
    max_bases=st.integers(1, 8),
    shift_pixels=u8,
    distortion=st.floats(0, 4),
    prune_ratio=st.floats(0, 1),
    prune_epochs=st.integers(0, 10_000),
    basis_epochs=st.integers(0, 10_000),
    coordinate_epochs=st.integers(0, 10_000),
    accumulate=st.just(1) | st.integers(1, 65_536),
    error_feedback=st.just(0.0) | st.floats(0, 1),
)
tasks = st.builds(
    Task,
    mission=ids,
    round=u16,
    model=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
    graph=ids,
    seed=st.integers(0, 2**63 - 1),
    weights=st.just("packed"),
    training=st.none() | trainings,
    deadline_s=st.floats(0, 1e9, exclude_min=True),
    asking=u32,
    classes=st.just(b"") | ids,
    names=st.lists(st.text(min_size=1, max_size=8), max_size=10).map(tuple),
    measures=st.booleans(),
)
amounts = st.floats(0, 1e12)
updates = st.builds(
    Update,
    mission=ids,
    round=u16,
    node=st.integers(0, 0xFE),
    samples=st.integers(1, 0xFFFFFFFF),
    loss=st.floats(-1e12, 1e12),
    cpu_s=amounts,
    energy_j=amounts,
    train_s=amounts,
)


@given(healths)
def test_health(health: Health) -> None:
    payload = encode_health(health)
    assert len(payload) == SMALLEST_PAYLOAD + len(health.why.encode())
    assert decode_health(payload) == health
    cut = encode_health(health, SMALLEST_PAYLOAD)
    assert decode_health(cut) == replace(health, why="")


@given(st.text().filter(str.isprintable), st.integers(29, 200))
def test_a_health_s_words_are_cut_to_the_frame_between_two_letters(why: str, room_bytes: int) -> None:
    payload = encode_health(replace(HEALTH, why=why), room_bytes)
    assert len(payload) <= room_bytes
    assert why.startswith(decode_health(payload).why)


@given(st.integers(0, 300), st.lists(st.tuples(u16, st.integers(0, 255)), max_size=12), st.text())
def test_answers_travel_with_as_many_classes_as_there_is_room_for(
    room: int, found: list[tuple[int, int]], why: str
) -> None:
    classes = tuple((label, share / 255) for label, share in found)
    health = replace(HEALTH, answers=AnswerHealth(1000, 20, 0.5, None, classes), why=why)
    payload = encode_health(health, 29 + room)
    read = decode_health(payload)
    assert len(payload) <= 29 + max(room, 0)
    if room < 13:
        assert read.answers is None
    else:
        assert read.answers is not None
        count = min(len(classes), 8, (room - 13) // 3)
        assert read.answers == AnswerHealth(1000, 20, 0.5, None, classes[:count])


@pytest.mark.parametrize("answers", [b"", b"\x09" + bytes(36), b"\x02" + bytes(15), bytes(9) + b"\x7c\0\0\0"])
def test_answers_that_nobody_sent_are_no_health(answers: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_health(b"\x02" + encode_health(HEALTH)[1:] + answers)


@pytest.mark.parametrize("words", [b"\xff", b"\x00", b"\x1b[2J", b"x" * 97])
def test_words_that_a_terminal_must_not_see_are_no_health(words: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_health(encode_health(HEALTH) + words)


@given(tasks, st.binary(min_size=1, max_size=100))
def test_task(task: Task, weights: bytes) -> None:
    decoded, view = decode_task(encode_object(task, weights))
    assert decoded == task
    assert bytes(view) == weights


@given(updates, st.binary(max_size=100))
def test_update(update: Update, weights: bytes) -> None:
    decoded, view = decode_update(encode_object(update, weights))
    assert decoded == update
    assert bytes(view) == weights


def header(payload: bytes) -> bytes:
    return len(payload).to_bytes(2, "big") + payload


@pytest.mark.parametrize(
    "packed",
    [
        b"\x91" * 1000,  # nested arrays: a stack to overflow
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million elements that are not there
        b"\xc6\xff\xff\xff\xff",  # as many bytes
        b"\x9e\xc4\x08" + bytes(8) + b"\x03\xa2\xff\xfe",  # text that is no UTF-8
        b"",
    ],
    ids=["nested", "array", "bytes", "utf8", "empty"],
)
def test_hostile_headers(packed: bytes) -> None:
    for decode in (decode_task, decode_update):
        with pytest.raises(BadMessage):
            decode(header(packed))


def test_a_header_longer_than_any() -> None:
    with pytest.raises(BadMessage, match="at most 1024"):
        decode_update(header(bytes(1025)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("field", ["cpu_s", "energy_j", "train_s"])
def test_costs_that_cannot_be_summed(field: str, value: float) -> None:
    with pytest.raises(ValueError, match="float"):
        encode_object(msgspec.structs.replace(UPDATE, **{field: value}), b"")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_cannot_be_averaged(value: float) -> None:
    with pytest.raises(ValueError, match="float"):
        encode_object(msgspec.structs.replace(UPDATE, loss=value), b"")


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_learning_rate_that_cannot_learn(value: float) -> None:
    assert TASK.training is not None
    knobs = msgspec.structs.replace(TASK.training, learning_rate=value)
    with pytest.raises(ValueError, match="float"):
        encode_object(msgspec.structs.replace(TASK, training=knobs), b"w")


@pytest.mark.parametrize("model", ["", "../../etc/passwd", "a/b", ".hidden", "x" * 65, "a\nb"])
def test_a_model_s_name_is_never_a_path(model: str) -> None:
    with pytest.raises(ValueError, match="str"):
        encode_object(msgspec.structs.replace(TASK, model=model), b"w")


def test_weights_are_there_exactly_when_the_task_says_so() -> None:
    seeded = msgspec.structs.replace(TASK, weights="seed")
    assert decode_task(encode_object(seeded, b""))[0] == seeded
    with pytest.raises(ValueError, match="seed"):
        encode_object(seeded, b"w")
    with pytest.raises(ValueError, match="packed"):
        encode_object(TASK, b"")


def test_a_later_version_may_append_fields() -> None:
    packed = msgspec.msgpack.encode([*msgspec.structs.astuple(UPDATE), "later"])
    update, weights = decode_update(header(packed) + WEIGHTS)
    assert (update, bytes(weights)) == (UPDATE, WEIGHTS)


def test_a_task_of_another_version_is_refused_by_name() -> None:
    fields = msgspec.structs.astuple(TASK)
    for version, header_of_it in ((1, fields[1:]), (3, (3, "others", "than", "these")), (0, (0,))):
        with pytest.raises(BadMessage, match=f"task of version {version}, this program speaks 2"):
            decode_task(header(msgspec.msgpack.encode(header_of_it)) + WEIGHTS)


def test_what_came_later_costs_no_byte_where_it_is_not_used() -> None:
    plain = encode_object(TASK, WEIGHTS)
    assert len(encode_object(msgspec.structs.replace(TASK, measures=True), WEIGHTS)) == len(plain) + 1
    knobs = msgspec.structs.replace(TASK.training, error_feedback=0.5)  # type: ignore[type-var]
    with_knob = encode_object(msgspec.structs.replace(TASK, training=knobs), WEIGHTS)
    assert len(with_knob) > len(plain) + 9
    assert decode_task(with_knob)[0].training == knobs


@pytest.mark.parametrize("score", [0.0, 0.8125, -3.5])
def test_an_update_may_say_what_it_scores_on_images_held_out(score: float) -> None:
    plain = encode_object(UPDATE, b"weights")
    told = encode_object(msgspec.structs.replace(UPDATE, validation=score), b"weights")
    assert decode_update(told)[0].validation == score
    assert len(told) == len(plain) + 9  # a float64, and nothing where nothing is held out
    assert decode_update(plain)[0].validation is None


@pytest.mark.parametrize("score", [math.nan, math.inf, 1e13])
def test_a_score_that_cannot_be_shown_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="header"):
        encode_object(msgspec.structs.replace(UPDATE, validation=score), b"")
