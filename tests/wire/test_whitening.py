"""Whitening is undone by itself, leaves the tag alone, and gives no two transmissions the same bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onboard.link.framing import CobsStream, KissStream
from onboard.link.whitening import whiten
from onboard.wire import cobs
from onboard.wire.frame import TAG_BYTES, Type
from onboard.wire.seal import Sealer

KEY = bytes(range(32))


@given(st.binary(max_size=2000))
def test_twice_is_the_frame_again_at_the_same_length(frame: bytes) -> None:
    white = whiten(frame)
    assert whiten(white) == frame
    assert len(white) == len(frame)
    assert white[-TAG_BYTES:] == frame[-TAG_BYTES:]


def test_the_longest_frames_and_every_start_fit_the_table() -> None:
    for start in (0, 1, 0xFFFF):
        frame = bytes(65_507 - 2) + start.to_bytes(2, "big")
        assert whiten(whiten(frame)) == frame
        assert len(set(whiten(frame)[:4096])) == 256


def test_no_byte_of_a_resent_frame_stays_where_it_was() -> None:
    """Also of node 0x11 in epoch 0x13FF, whose header would hold what lines eat in every frame."""
    sealer = Sealer(KEY, source=0x11, destination=0xFF - 1, epoch=0x13FF)
    payload = b"\xff\x11\x13\x0d" * 8
    sent = [cobs.encode(whiten(sealer.seal(Type.DATA, payload, object_id=1))) for _ in range(400)]
    columns = list(zip(*(white for white in sent if len(white) == len(sent[0])), strict=True))
    # The first says how far the first zero is, and most have none; the last is the delimiter.
    assert min(len(set(column)) for column in columns[1:-1]) > 100


@given(st.lists(st.binary(min_size=22, max_size=200), max_size=5))
def test_what_two_ends_frame_they_get_back(frames: list[bytes]) -> None:
    for stream in (CobsStream(222), KissStream(222, 3)):
        assert stream.feed(b"".join(stream.encode(frame) for frame in frames)) == frames


def test_any_bytes_are_some_frame_or_none() -> None:
    stream = CobsStream(222)
    for nth in range(256):
        stream.feed(bytes((nth, 255 - nth, 1)) * 20 + b"\0")
