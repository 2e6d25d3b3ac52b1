"""A frame's bytes are those of the documented layout, and no altered frame is decoded."""

from __future__ import annotations

import struct
from hashlib import blake2s

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import OVERHEAD_BYTES, TAG_BYTES, BadFrame, Frame, Type
from tests.onboard.wire.examples import FRAME, KEY, VECTORS, encoded

bytes8 = st.integers(0, 0xFF) | st.sampled_from([0x00, 0xF8, 0xFF])
bytes16 = st.integers(0, 0xFFFF) | st.sampled_from([0xF8F8, 0x00F8, 0xF800])
frames = st.builds(
    Frame,
    type=st.sampled_from(Type),
    source=bytes8,
    destination=bytes8,
    epoch=bytes16,
    seq=st.integers(0, 0xFFFFFFFF),
    object_id=bytes16,
    fragment=bytes16,
    payload=st.binary(max_size=1500),
    priority=st.integers(0, 7),
    poll=st.booleans(),
    over=st.booleans(),
    encrypted=st.booleans(),
    key_id=st.integers(0, 3),
)
keys = st.binary(min_size=32, max_size=32)


@given(frames, keys)
def test_decode_undoes_encode(frame: Frame, key: bytes) -> None:
    raw = encoded(frame, key)
    assert len(raw) == len(frame.payload) + OVERHEAD_BYTES
    assert framing.is_shaped(raw)
    assert framing.decode(raw, framing.keyed(key)) == frame


def test_golden_bytes() -> None:
    golden = (VECTORS / "frame.bin").read_bytes()
    assert encoded(FRAME, KEY) == golden
    assert framing.decode(golden, framing.keyed(KEY)) == FRAME


def test_layout_by_hand() -> None:
    header = bytes.fromhex("22 90 03 00 0007 00000102 0005 0009")  # as the table in docs/wire.md says
    body = swapped(header) + FRAME.payload
    assert encoded(FRAME, KEY) == body + blake2s(body, digest_size=8, key=KEY).digest()


def swapped(header: bytes) -> bytes:
    """0x00 and 0xF8 in each other's place."""
    return bytes({0x00: 0xF8, 0xF8: 0x00}.get(byte, byte) for byte in header)


@given(frames, keys)
def test_zeros_and_f8_change_places_in_the_header_alone(frame: Frame, key: bytes) -> None:
    raw = encoded(frame, key)
    numbers = frame.source, frame.destination, frame.epoch, frame.seq, frame.object_id, frame.fragment
    flags = frame.priority << 5 | frame.poll << 4 | frame.over << 3 | frame.encrypted << 2 | frame.key_id
    header = struct.pack(">BBBBHIHH", 1 << 5 | frame.type, flags, *numbers)
    assert raw[:-TAG_BYTES] == swapped(header) + frame.payload
    assert framing.route(frame.source, frame.destination) == raw[2:4]
    assert framing.unproven(raw) == frame
    assert framing.is_hello(raw) == (frame.type is Type.HELLO)
    assert framing.is_broadcast(raw) == (frame.destination == 0xFF)


@given(frames, keys, st.data())
def test_any_flipped_bit_is_noticed(frame: Frame, key: bytes, data: st.DataObject) -> None:
    raw = bytearray(encoded(frame, key))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadFrame) as caught:
        framing.decode(bytes(raw), framing.keyed(key))
    known = (raw[0] & 0x1F) in list(Type)
    assert caught.value.reason == ("version" if bit in (5, 6, 7) else "tag" if known else "type")


@given(frames, keys, st.data())
def test_a_truncated_frame_is_noticed(frame: Frame, key: bytes, data: st.DataObject) -> None:
    raw = encoded(frame, key)
    length = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(BadFrame) as caught:
        framing.decode(raw[:length], framing.keyed(key))
    assert caught.value.reason == ("short" if length < OVERHEAD_BYTES else "tag")


@given(frames, keys, keys)
def test_another_key_is_noticed(frame: Frame, key: bytes, other: bytes) -> None:
    if key == other:
        return
    with pytest.raises(BadFrame) as caught:
        framing.decode(encoded(frame, key), framing.keyed(other))
    assert caught.value.reason == "tag"


@given(st.binary(max_size=200), keys)
def test_any_bytes_raise_bad_frame_only(raw: bytes, key: bytes) -> None:
    with pytest.raises(BadFrame):
        framing.decode(raw, framing.keyed(key))


@given(st.binary(max_size=200), keys)
def test_bytes_of_no_frame_s_shape_have_a_reason(raw: bytes, key: bytes) -> None:
    with pytest.raises(BadFrame) as caught:
        framing.decode(raw, framing.keyed(key))
    assert (caught.value.reason != "tag") == (not framing.is_shaped(raw))


@pytest.mark.parametrize("kind", range(len(Type), 32))
def test_an_authentic_frame_of_an_unknown_type(kind: int) -> None:
    body = bytes((framing.VERSION << 5 | kind,)) + bytes(13)
    raw = body + blake2s(body, digest_size=TAG_BYTES, key=KEY).digest()
    with pytest.raises(BadFrame, match=f"type: {kind}"):
        framing.decode(raw, framing.keyed(KEY))


@pytest.mark.parametrize(
    "change",
    [
        {"flags": 256}, {"flags": -1}, {"source": 256}, {"destination": -1}, {"epoch": 1 << 16},
        {"seq": 1 << 32}, {"object_id": 1 << 16}, {"fragment": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_field_out_of_range_is_refused(change: dict[str, int]) -> None:
    fields = {
        "flags": 0, "source": 3, "destination": 0, "epoch": 7, "seq": 258, "object_id": 5, "fragment": 9
    }  # fmt: skip
    wrong = fields | change
    ends = [wrong.pop(name) for name in ("source", "destination", "epoch")]

    def encode() -> bytes:
        sender = framing.tagging(framing.keyed(KEY), *ends)
        return framing.encode(sender, Type.DATA, payload=b"", **wrong)

    with pytest.raises(ValueError, match=str(next(iter(change.values())))):
        encode()
