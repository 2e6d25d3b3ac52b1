"""Whitening is undone by itself, leaves no frame longer, and gives no two transmissions the same bytes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.link.ports.framing import cobs_stream, kiss_stream, whiten
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import Sealer

KEY = bytes(range(32))


@given(st.binary(max_size=2000))
def test_twice_is_the_frame_again_at_the_same_length(frame: bytes) -> None:
    white = whiten(frame)
    assert whiten(white) == frame
    assert len(white) == len(frame)
    assert white[-1:] == frame[-1:]  # which says the table


def test_the_longest_frames_and_every_table() -> None:
    for last in range(256):
        frame = bytes(range(256)) * 2 + bytes((last,))
        white = whiten(frame)
        assert whiten(white) == frame
        assert white[-1] == last
        # No other value, but the one that has no partner, stays what it is.
        assert sum(a == b for a, b in zip(white[:256], frame[:256], strict=True)) == 2
    assert len({whiten(bytes(300) + bytes((last,))) for last in range(256)}) == 256
    assert len(whiten(bytes(65_507))) == 65_507


CONTENTS = {
    "random": Random(1).randbytes(200),
    "all XON": b"\x11" * 200,
    "zeros": bytes(200),
    "each value once": bytes(range(200)),
    "XON and XOFF": b"\x11\x13" * 100,
    "a text": b"the quick brown fox jumps over the lazy dog " * 5,
}


@pytest.mark.parametrize("eaten", [b"\x11", b"\x11\x13", b"\x11\x13\x0d\xff"], ids=len)
@pytest.mark.parametrize("size", [25, 50, 100, 200])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_frame_survives_what_a_line_eats_as_random_bytes_do(
    content: bytes, size: int, eaten: bytes
) -> None:
    """Of a sequence that changes from byte to byte (1 - k / 256) ^ n survive, whatever the content."""
    random, tries = Random(size), 1000
    bodies = (random.randbytes(14) + content[:size] + random.randbytes(8) for _ in range(tries))
    survived = sum(not set(eaten) & set(whiten(frame)) for frame in bodies) / tries
    ideal = (1 - len(eaten) / 256) ** (size + 22)
    assert survived > 0.6 * ideal - 0.01
    assert survived > ideal - 0.07


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
    for stream in (cobs_stream(222), kiss_stream(222, 3)):
        assert stream.feed(b"".join(stream.encode(frame) for frame in frames)) == frames


def test_any_bytes_are_some_frame_or_none() -> None:
    stream = cobs_stream(222)
    taken = 0
    for nth in range(256):
        frames = stream.feed(bytes((nth, 255 - nth, 1)) * 20 + b"\0")
        assert all(len(frame) <= 222 for frame in frames)
        taken += len(frames)
    assert taken > 0
    assert stream.broken > 0
