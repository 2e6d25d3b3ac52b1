"""Signs come back whatever their order, in no more bytes than bits need, and a bomb is refused unexploded."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.codec.quantized import decode_signs, encode_signs


@given(st.integers(0, 2**32 - 1), st.integers(0, 3000), st.floats(0, 1), st.binary(max_size=9))
def test_round_trip_wherever_they_lie(seed: int, count: int, change: float, around: bytes) -> None:
    turns = np.random.default_rng(seed).random(count) < change
    ones = np.cumsum(turns) % 2 == 1
    deflated, data = encode_signs(ones)
    assert len(data) <= -(-count // 8)
    back, end = decode_signs(around + data + around, len(around), count, deflated)
    assert np.array_equal(back, ones)
    assert end == len(around) + len(data)


def test_signs_in_patches_take_fewer_bytes_and_random_ones_stay_plain() -> None:
    rng = np.random.default_rng(1)
    patches = np.cumsum(rng.random(20_000) < 0.15) % 2 == 1
    deflated, data = encode_signs(patches)
    assert deflated
    assert len(data) < 0.8 * 2500  # 0.61 of it is the entropy of a chain that turns 15 times in a hundred
    deflated, data = encode_signs(rng.random(20_000) < 0.5)
    assert (deflated, len(data)) == (False, 2500)


@given(st.binary(max_size=80), st.integers(0, 500), st.booleans())
def test_any_bytes_are_signs_or_an_error(data: bytes, count: int, deflated: bool) -> None:
    try:
        back, end = decode_signs(data, 0, count, deflated)
    except ValueError:
        return
    assert back.shape == (count,)
    assert set(back.tolist()) <= {0, 1}
    assert end <= len(data)


@pytest.mark.parametrize("claimed", [1000, 1 << 24])
def test_more_than_the_signs_is_refused_at_little_cost(claimed: int) -> None:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = coder.compress(bytes(claimed)) + coder.flush()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="other than 100 bytes"):
            decode_signs(bomb, 0, 800, deflated=True)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(bomb) + 64_000  # zlib's window has 32,768
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("deflated", [False, True])
def test_fewer_than_the_signs_is_refused(deflated: bool) -> None:
    _, data = encode_signs(np.zeros(800, np.bool_))
    with pytest.raises(ValueError, match=r"100 (bytes|signs)|800 signs"):
        decode_signs(data[:-1], 0, 800, deflated)
    with pytest.raises(ValueError, match="after the last sign"):
        decode_signs(b"\xff", 0, 5, deflated=False)
