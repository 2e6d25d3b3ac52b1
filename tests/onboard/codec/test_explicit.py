"""Values with their index come back as they were, by gaps or bitmap; hostile bytes are named and cheap."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.codec.explicit import HEADER, IndexForm, decode, encode
from onboard.codec.mask import Indices
from onboard.codec.sparse import BadExchange
from onboard.codec.values import Form
from tests.onboard.codec.examples import VECTORS

CHOSEN = st.lists(st.integers(0, 2999), unique=True, max_size=60).map(sorted)
FORMS = st.sampled_from(IndexForm)


def array(index: list[int]) -> Indices:
    return np.array(index, np.int32)


@given(CHOSEN, FORMS, st.sampled_from([Form.FP32, Form.INT8]))
def test_round_trip(chosen: list[int], index_form: IndexForm, form: Form) -> None:
    values = np.arange(len(chosen), dtype=np.float32)
    index, back = decode(encode(array(chosen), values, 3000, index_form, form), 3000)
    assert index.tolist() == chosen
    assert back == pytest.approx(values, abs=0.5)


@given(CHOSEN)
def test_a_distance_of_more_than_a_byte_takes_more_bytes(chosen: list[int]) -> None:
    data = encode(array(chosen), np.zeros(len(chosen), np.float32), 3000, IndexForm.GAPS, Form.FP32)
    distances = np.diff(array(chosen), prepend=-1)
    assert len(data) - HEADER.size - 4 * len(chosen) == sum(-(-int(d) // 254) for d in distances)


def test_golden_bytes() -> None:
    chosen, values = array([0, 2, 256, 511, 1999]), np.array([1, -2, 0.5, 0, 3], np.float32)
    for index_form in IndexForm:
        golden = (VECTORS / f"explicit-{index_form.name.lower()}.bin").read_bytes()
        assert encode(chosen, values, 2000, index_form, Form.FP16) == golden
        index, back = decode(golden, 2000)
        assert (index.tolist(), back.tolist()) == (chosen.tolist(), values.tolist())
    gaps = (VECTORS / "explicit-gaps.bin").read_bytes()[HEADER.size : -10]
    assert gaps == bytes((1, 2, 254, 255, 1, *[255] * 5, 1488 - 5 * 254))


@settings(max_examples=400)
@given(st.binary(max_size=80), st.integers(0, 40), FORMS, st.integers(0, 12), st.integers(0, 30))
def test_any_bytes_are_values_or_bad(
    data: bytes, size: int, index_form: IndexForm, count: int, length: int
) -> None:
    for head in (b"", HEADER.pack(1, index_form, Form.INT8, 0, size, count, length)):
        try:
            index, values = decode(head + data, size)
        except BadExchange:
            continue
        assert len(index) == len(values)
        assert np.all(np.diff(index, prepend=-1) > 0)
        assert np.all(index < size)


@given(CHOSEN, FORMS, st.data())
def test_a_part_more_than_all_or_another_vectors_is_bad(
    chosen: list[int], index_form: IndexForm, data: st.DataObject
) -> None:
    whole = encode(array(chosen), np.zeros(len(chosen), np.float32), 3000, index_form, Form.FP16)
    for bad in (whole[: data.draw(st.integers(0, len(whole) - 1))], whole + b"\0"):
        with pytest.raises(BadExchange):
            decode(bad, 3000)
    with pytest.raises(BadExchange, match="3000 coordinates; known is 1, expected 2999"):
        decode(whole, 2999)


@pytest.mark.parametrize(
    ("index_form", "packed", "said"),
    [
        (IndexForm.GAPS, b"\0", "gaps of 0"),
        (IndexForm.GAPS, b"\1\xff", "picks none"),
        (IndexForm.GAPS, b"\1\x14", "past 20 coordinates"),
        (IndexForm.GAPS, b"\1\1", "index of 2 coordinates for 1 values"),
        (IndexForm.BITMAP, b"\1\0", "bitmap of 2 bytes"),
        (IndexForm.BITMAP, b"\1\0\x10", "after the last coordinate"),
    ],
)
def test_what_is_wrong_with_an_index_is_said(index_form: IndexForm, packed: bytes, said: str) -> None:
    head = HEADER.pack(1, index_form, Form.FP32, 0, 20, 1, len(packed))
    with pytest.raises(BadExchange, match=said):
        decode(head + packed + bytes(4), 20)


@pytest.mark.parametrize("chosen", [[1, 1], [2, 1], [-1], [20]])
def test_an_index_that_does_not_rise_or_leaves_the_vector_is_refused(chosen: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise and end below 20"):
        encode(array(chosen), np.zeros(len(chosen), np.float32), 20, IndexForm.GAPS, Form.FP32)


def test_claims_cost_nothing() -> None:
    size = 1 << 30
    data = HEADER.pack(1, IndexForm.GAPS, Form.FP32, 0, size, size, 1000) + b"\xff" * 999 + b"\1"
    tracemalloc.start()
    try:
        with pytest.raises(BadExchange, match=f"0 bytes of values, {size} in FP32"):
            decode(data, size)
        with pytest.raises(BadExchange, match="bitmap of 1000 bytes"):
            decode(HEADER.pack(1, IndexForm.BITMAP, Form.FP32, 0, size, 0, 1000) + bytes(1000), size)
        with pytest.raises(BadExchange, match="index of 1 coordinates for 0 values"):
            decode(HEADER.pack(1, IndexForm.GAPS, Form.FP32, 0, size, 0, 1000) + data[HEADER.size :], size)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
