"""KISS carries any bytes between two FENDs, in the size it promises, and refuses what is not for its port."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.wire.framing import cobs, kiss
from tests.onboard.wire.examples import VECTORS

# FEND, FESC and their substitutes are where an encoder can go wrong.
payloads = st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"\xc0", b"\xdb", b"\xdc", b"\xdd"])))
payloads = payloads.map(b"".join)
ports = st.integers(0, 15)


@given(payloads, ports)
def test_decode_undoes_encode(data: bytes, port: int) -> None:
    framed = kiss.encode(data, port)
    assert framed[:1] == framed[-1:] == kiss.FEND
    assert framed.count(kiss.FEND) == 2
    assert len(framed) <= kiss.most_bytes(len(data))
    assert kiss.decode(framed[1:-1], port) == data


@given(st.lists(payloads, max_size=6), ports, st.data())
def test_a_stream_cut_anywhere_gives_the_same_frames(
    sent: list[bytes], port: int, data: st.DataObject
) -> None:
    stream = b"".join(kiss.encode(one, port) for one in sent)
    splitter = cobs.Splitter(kiss.most_bytes(400), kiss.FEND)
    heard: list[bytes] = []
    while stream:
        piece = data.draw(st.integers(1, len(stream)))
        heard += [kiss.decode(chunk, port) for chunk in splitter.feed(stream[:piece])]
        stream = stream[piece:]
    assert heard == sent


@given(st.binary(max_size=60), ports)
def test_any_bytes_are_data_of_the_port_or_refused(chunk: bytes, port: int) -> None:
    try:
        data = kiss.decode(chunk, port)
    except kiss.BadKiss:
        return
    if kiss.FEND not in chunk:
        assert kiss.encode(data, port)[1:-1] == chunk


def test_the_paper_s_rules() -> None:
    assert kiss.encode(b"TEST") == bytes.fromhex("c0 00 54 45 53 54 c0")
    assert kiss.encode(b"Hello", port=5) == bytes.fromhex("c0 50 48 65 6c 6c 6f c0")
    assert kiss.encode(b"\xc0\xdb") == bytes.fromhex("c0 00 db dc db dd c0")
    assert kiss.encode(b"", port=12) == bytes.fromhex("c0 db dc c0")  # its own lead would be a FEND


def test_golden_bytes() -> None:
    assert kiss.encode(bytes.fromhex("01 c0 02 db 03"), port=1) == (VECTORS / "kiss.bin").read_bytes()


@pytest.mark.parametrize(
    ("chunk", "what"),
    [("", "nothing leads"), ("10 41", "10 leads"), ("01 32", "01 leads"), ("00 db", "nothing behind FESC"),
     ("00 db 41", "41 behind FESC")],
)  # fmt: skip
def test_what_is_no_data_of_this_port_is_refused(chunk: str, what: str) -> None:
    with pytest.raises(kiss.BadKiss, match=what):
        kiss.decode(bytes.fromhex(chunk))


@pytest.mark.parametrize("port", [-1, 16])
def test_a_port_that_kiss_has_not(port: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.15"):
        kiss.encode(b"", port)


def test_random_bytes_take_what_is_promised() -> None:
    source = random.Random(1)
    for length in (24, 222, 1422):
        sizes = [len(kiss.encode(source.randbytes(length))) for _ in range(500)]
        assert sum(sizes) / 500 == pytest.approx(kiss.wire_bytes(length), abs=1.2)
    assert kiss.most_bytes(3) == len(kiss.encode(b"\xc0" * 3, port=12))
