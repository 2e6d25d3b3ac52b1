"""What frames and objects say comes out as it went in, and hostile bytes raise BadMessage only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.inference.downlink import decode_answers, encode_answers
from onboard.mission.commands import Command, CommandResult, decode_body, encode_body
from onboard.mission.health import decode_health, encode_health
from onboard.mission.objects import decode_task, decode_update, encode_object
from onboard.wire import messages
from onboard.wire.messages import MAX_FRAGMENTS, BadMessage, Cancel, Done, Offer
from onboard.wire.security.security_context import Hello
from tests.onboard.wire.examples import (
    ANSWER,
    ANSWERING,
    CANCEL,
    COMMAND,
    DIGEST,
    DONE,
    FAILED,
    HEALTH,
    HELLO,
    OFFER,
    RESULT,
    SMALLEST_PAYLOAD,
    TASK,
    UPDATE,
    VECTORS,
    WEIGHTS,
    u8,
    u32,
)

digests = st.binary(min_size=16, max_size=16)
ids = st.binary(min_size=8, max_size=8)
offers = st.builds(Offer, digests, u32, st.integers(1, 0xFFFF), u8, u32).filter(
    lambda offer: offer.fragments <= MAX_FRAGMENTS
)


@given(offers)
def test_offer(offer: Offer) -> None:
    payload = offer.encode()
    assert len(payload) == 27 <= SMALLEST_PAYLOAD
    assert Offer.decode(payload) == offer


@given(digests, u8)
def test_done_and_cancel(digest: bytes, reason: int) -> None:
    assert Done.decode(Done(digest).encode()) == Done(digest)
    assert Cancel.decode(Cancel(digest, reason).encode()) == Cancel(digest, reason)
    assert len(Cancel(digest, reason).encode()) == 17 <= SMALLEST_PAYLOAD


@given(ids.filter(any), ids, ids)
def test_hello(challenge: bytes, answer: bytes, salt: bytes) -> None:
    hello = Hello(challenge, answer, salt)
    assert Hello.decode(hello.encode()) == hello
    assert len(hello.encode()) == 24


def decode_command(payload: bytes) -> Command:
    return decode_body(payload, Command)


def decode_result(payload: bytes) -> CommandResult:
    return decode_body(payload, CommandResult)


GOLDEN: dict[str, tuple[bytes, Callable[[bytes], object], object]] = {
    "offer": (OFFER.encode(), Offer.decode, OFFER),
    "done": (DONE.encode(), Done.decode, DONE),
    "cancel": (CANCEL.encode(), Cancel.decode, CANCEL),
    "hello": (HELLO.encode(), Hello.decode, HELLO),
    "health": (encode_health(HEALTH), decode_health, HEALTH),
    "health-failed": (encode_health(FAILED), decode_health, FAILED),
    "health-answers": (encode_health(ANSWERING), decode_health, ANSWERING),
    "task": (encode_object(TASK, WEIGHTS), decode_task, (TASK, WEIGHTS)),
    "update": (encode_object(UPDATE, WEIGHTS), decode_update, (UPDATE, WEIGHTS)),
    "answers": (encode_answers((ANSWER,), b"file"), decode_answers, ((ANSWER,), b"file")),
    "command": (encode_body(COMMAND), decode_command, COMMAND),
    "result": (encode_body(RESULT), decode_result, RESULT),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    encoded, decode, value = GOLDEN[name]
    golden = (VECTORS / f"{name}.bin").read_bytes()
    assert encoded == golden
    assert decode(golden) == value


DECODERS = [
    Offer.decode,
    Done.decode,
    Cancel.decode,
    Hello.decode,
    decode_health,
    decode_task,
    decode_update,
    decode_command,
    decode_result,
]


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__qualname__)
@given(data=st.data())
def test_any_bytes_decode_or_raise_bad_message(
    decode: Callable[[bytes], object], data: st.DataObject
) -> None:
    payload = data.draw(st.binary(max_size=120))
    try:
        decode(payload)
    except BadMessage as error:
        assert "\n" not in str(error)  # noqa: PT017 - what decodes is fine, too


@pytest.mark.parametrize("name", GOLDEN)
@given(data=st.data())
def test_a_damaged_message_decodes_or_raises_bad_message(name: str, data: st.DataObject) -> None:
    encoded, decode, _ = GOLDEN[name]
    damaged = bytearray(encoded)
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(u8)
    try:
        decode(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    except BadMessage as error:
        assert str(error)  # noqa: PT017 - what decodes is fine, too


@pytest.mark.parametrize(
    "offer",
    [Offer(DIGEST, 65_536, 1, 1), Offer(DIGEST, 10, 0, 1), Offer(DIGEST, 1 << 32, 65_535, 1)],
    ids=str,
)
def test_an_offer_of_too_many_fragments(offer: Offer) -> None:
    with pytest.raises(ValueError, match="too many fragments"):
        offer.encode()


def test_an_offer_that_would_divide_by_zero() -> None:
    with pytest.raises(BadMessage, match="0 B"):
        Offer.decode(OFFER.encode()[:20] + b"\0\0" + OFFER.encode()[22:])


def test_digest_depends_on_kind_and_payload() -> None:
    digests_of = {messages.digest(kind, payload) for kind in (1, 2) for payload in (b"", b"a")}
    assert len(digests_of) == 4
    assert all(len(digest) == messages.DIGEST_BYTES for digest in digests_of)


@given(u32, st.integers(1, 0xFFFF))
def test_fragments_of(size: int, fragment_bytes: int) -> None:
    count = messages.fragments_of(size, fragment_bytes)
    assert (count - 1) * fragment_bytes < size <= count * fragment_bytes or size == count == 0
