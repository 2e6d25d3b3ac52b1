"""Values come back within what their form promises, in the size it promises; hostile bytes cost nothing."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.codec.layout import Floats
from onboard.codec.values import BLOCK, LEVELS, Form, decode, encode

COUNTS = st.one_of(st.integers(0, 700), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1]))


def drawn_values(count: int, seed: int) -> Floats:
    """Values of very different sizes, some exactly 0."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=count) * np.exp(1.5 * rng.normal(size=count)) * (rng.random(count) > 0.1)
    return np.asarray(values, np.float32)


@given(COUNTS, st.integers(0, 2**32 - 1), st.sampled_from(Form))
def test_round_trip(count: int, seed: int, form: Form) -> None:
    values = drawn_values(count, seed)
    data = encode(values, form)
    back = decode(data, count, form)
    assert (back.shape, back.dtype) == ((count,), np.float32)
    off = np.abs(back - values)
    if form is Form.FP32:
        assert back.tobytes() == values.tobytes()
    elif form is Form.FP16:
        assert np.all(off <= np.maximum(np.abs(values) * 2.0**-11, 2.0**-25))
    elif form is Form.INT8:
        blocks = -(-count // BLOCK)
        padded = np.zeros(blocks * BLOCK, np.float32)
        padded[:count] = np.abs(values)
        largest = np.repeat(padded.reshape(-1, BLOCK).max(axis=1), BLOCK)[:count]
        assert np.all(off <= largest / LEVELS * (0.5 + 1e-4))
        assert len(data) == count + 4 * blocks
    else:
        # The largest is never off by more than itself and its coordinate's rounding.
        assert off.max(initial=0) <= 1.1 * np.abs(values).max(initial=0) + 4e-6


def test_gaussian_values_lose_what_the_page_says() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    lost = {f: float(((decode(encode(values, f), len(values), f) - values) ** 2).mean()) for f in Form}
    assert lost[Form.FP32] == 0
    assert lost[Form.FP16] < 1e-7
    assert lost[Form.INT8] < 1e-4
    assert lost[Form.ALQ] < 0.03
    sizes = {form: len(encode(values, form)) / len(values) for form in Form}
    assert sizes == pytest.approx({Form.FP32: 4, Form.FP16: 2, Form.INT8: 1.016, Form.ALQ: 0.51}, rel=0.01)


@settings(max_examples=300)
@given(st.binary(max_size=600), COUNTS, st.sampled_from(Form))
def test_any_bytes_are_values_or_an_error(data: bytes, count: int, form: Form) -> None:
    try:
        values = decode(data, count, form)
    except ValueError:
        return
    assert values.shape == (count,)
    assert np.isfinite(values).all()


@given(COUNTS, st.sampled_from(Form), st.data())
def test_a_part_or_more_than_all_is_refused(count: int, form: Form, data: st.DataObject) -> None:
    whole = encode(drawn_values(count, count), form)
    with pytest.raises(ValueError, match="bytes"):
        decode(whole + data.draw(st.binary(min_size=1, max_size=9)), count, form)
    if whole:
        with pytest.raises(ValueError):  # noqa: PT011 - ALQ says it in many ways
            decode(whole[: data.draw(st.integers(0, len(whole) - 1))], count, form)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_neither_leave_nor_arrive(form: Form, value: float) -> None:
    values = np.ones(300, np.float32)
    data = bytearray(encode(values, form))
    values[7] = value
    with pytest.raises(ValueError, match="not finite"):
        encode(values, form)
    if form is not Form.ALQ:  # its coordinates cannot be infinite
        data[:4] = np.array([value, value], "<f2" if form is Form.FP16 else "<f4").tobytes()[:4]
        with pytest.raises(ValueError, match="not finite"):
            decode(bytes(data), 300, form)


def test_what_a_form_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"70000\.0 is too large for fp16"):
        encode(np.array([1.0, -70000.0], np.float32), Form.FP16)
    with pytest.raises(ValueError, match="a code of -128"):
        decode(np.float32(1).tobytes() + b"\x80", 1, Form.INT8)


@pytest.mark.parametrize("form", Form)
def test_a_large_count_costs_nothing_before_the_bytes_are_there(form: Form) -> None:
    data = encode(np.zeros(100, np.float32), form)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bytes|packed for"):
            decode(data, 50_000_000, form)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
