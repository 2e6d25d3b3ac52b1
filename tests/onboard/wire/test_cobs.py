"""COBS carries any bytes without a zero, in the size it promises, and a splitter finds them in any stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.link.ports.framing import whiten
from onboard.wire.framing import cobs
from tests.onboard.wire.examples import VECTORS

# Zeros, and runs around the block length of 254, are where an encoder can go wrong.
runs = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda n: b"x" * n, st.integers(250, 260) | st.integers(505, 512)),
    st.builds(bytes, st.integers(0, 40)),
)
payloads = st.lists(runs, max_size=6).map(b"".join)


@given(payloads)
def test_decode_undoes_encode(data: bytes) -> None:
    stuffed = cobs.encode(data)
    assert stuffed.endswith(b"\0")
    assert stuffed.count(0) == 1
    assert len(stuffed) <= cobs.wire_bytes(len(data))
    assert cobs.decode(stuffed[:-1]) == data


@pytest.mark.parametrize("length", [0, 1, 253, 254, 255, 507, 508, 509, 1422])
def test_the_promised_size_is_reached_without_zeros(length: int) -> None:
    stuffed = cobs.encode(b"x" * length)
    full_last_block = length > 0 and length % 254 == 0  # saves the byte that would open an empty block
    assert len(stuffed) == cobs.wire_bytes(length) - full_last_block


@pytest.mark.parametrize(
    ("data", "stuffed"),
    [
        ("", "01"),
        ("00", "01 01"),
        ("00 00", "01 01 01"),
        ("11 22 00 33", "03 11 22 02 33"),
        ("11 00 00 00", "02 11 01 01 01"),
        ("01" * 254, "ff" + "01" * 254),
        ("00" + "01" * 254, "01 ff" + "01" * 254),
        ("01" * 255, "ff" + "01" * 254 + "02 01"),
        ("01" * 254 + "00", "ff" + "01" * 254 + "01 01"),
        ("01" * 253 + "00 02", "fe" + "01" * 253 + "02 02"),
    ],
)
def test_the_paper_s_rules(data: str, stuffed: str) -> None:
    assert cobs.encode(bytes.fromhex(data)) == bytes.fromhex(stuffed) + b"\0"
    assert cobs.decode(bytes.fromhex(stuffed)) == bytes.fromhex(data)


def test_golden_bytes() -> None:
    frame, stuffed = (VECTORS / "frame.bin").read_bytes(), (VECTORS / "cobs.bin").read_bytes()
    assert cobs.encode(whiten(frame)) == stuffed
    assert whiten(cobs.decode(stuffed[:-1])) == frame


@given(st.binary(max_size=600) | st.binary(max_size=600).map(lambda data: data.replace(b"\0", b"\xff")))
def test_any_bytes_decode_or_raise_bad_cobs(chunk: bytes) -> None:
    try:
        data = cobs.decode(chunk)
    except cobs.BadCobs:
        return
    assert len(data) < len(chunk)


@pytest.mark.parametrize(
    "chunk", [b"", b"\0", b"\x01\0", b"\x03a", b"\xff", b"\x02a\x05", b"\xff" + b"a" * 253]
)
def test_a_chunk_that_no_encoder_writes(chunk: bytes) -> None:
    with pytest.raises(cobs.BadCobs):
        cobs.decode(chunk)


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=8), st.lists(st.integers(1, 50), min_size=1))
def test_splitter_finds_every_chunk_however_the_stream_is_cut(datas: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(cobs.encode(data) for data in datas)
    splitter = cobs.Splitter(100)
    chunks = []
    at = turn = 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        chunks += splitter.feed(stream[at : at + step])
        at, turn = at + step, turn + 1
    assert [cobs.decode(chunk) for chunk in chunks] == datas
    assert splitter.overlong == 0


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=10), st.integers(30, 2000))
def test_splitter_survives_a_flood_and_finds_the_next_frame(noise: list[bytes], flood: int) -> None:
    splitter = cobs.Splitter(30)
    for piece in noise:
        for chunk in splitter.feed(piece):
            assert 0 < len(chunk) < cobs.wire_bytes(30)
    before = splitter.overlong
    assert splitter.feed(b"\0" + b"x" * (flood + 2)) is not None
    assert splitter.overlong == before + 1
    assert splitter.feed(b"x" * flood) == []
    assert splitter.overlong == before + 1  # one run is counted once, however long
    assert splitter.feed(b"x\0" + cobs.encode(b"next")) == [cobs.encode(b"next")[:-1]]
