"""Packing: the same model comes back, every byte has its section, hostile bytes are one cheap error."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.codec import alq
from onboard.codec.layout import Layout
from onboard.codec.layout import layout as layout_of
from onboard.codec.model import BadPack
from onboard.codec.pack import account, pack, unpack
from onboard.codec.quantized import HEADER, MAX_BASES, HalfPrecision, Quantized, Raw
from onboard.codec.rangecoder import Encoder, context, tree
from tests.onboard.codec.examples import LAYOUTS, LENET5, SMALL, SMALL_BY_KERNEL, VECTORS, quantized, weights

SEEDS = st.integers(0, 2**32 - 1)
STATISTICS = "running_mean", "running_var", "scalar"


def assert_same(one: Quantized, other: Quantized) -> None:
    assert one.layout == other.layout
    for name, bases in one.grouped.items():
        assert np.array_equal(bases.bits, other.grouped[name].bits)
        assert np.array_equal(bases.alphas, other.grouped[name].alphas)
        assert np.array_equal(bases.signs, other.grouped[name].signs)
    for name, raw in one.raw.items():
        back = other.raw[name]
        assert isinstance(raw, Raw)
        assert isinstance(back, Raw)
        assert np.array_equal(raw.codes, back.codes)
        assert raw.step == back.step


EXACT = layout_of(LENET5 | {"running_mean": (50,), "running_var": (50,), "scalar": ()}, STATISTICS)


@given(SEEDS, st.floats(1e-6, 1e6))
def test_exact_statistics_are_within_a_half_of_a_thousandth(seed: int, size: float) -> None:
    values = weights(EXACT, seed)
    values |= {name: values[name] * np.float32(size) for name in STATISTICS}
    model = alq.quantize(EXACT, values, {t.name: np.zeros(t.groups, np.uint8) for t in EXACT.grouped},
                         whole=True, exact_statistics=True)  # fmt: skip
    data = pack(model)
    assert sum(account(model).values()) == len(data)
    plain = layout_of({t.name: t.shape for t in EXACT.tensors})
    for layout in (EXACT, plain):  # whoever only answers images does not know which are statistics
        back = unpack(data, layout).reconstruct()
        assert pack(unpack(data, layout)) == data
        for name in STATISTICS:
            largest = np.abs(values[name]).max()
            assert back[name] == pytest.approx(values[name], rel=2**-11, abs=1e-9 * float(largest) + 1e-7)
        assert np.abs(back["conv1.bias"] - values["conv1.bias"]).max() > 1e-3


def test_golden_bytes_of_half_precision() -> None:
    """Vectors of pack.bin's model in half precision, as running statistics go down."""
    layout = Layout(tuple(replace(t, is_statistic=not t.group) for t in SMALL_BY_KERNEL.tensors))
    bits = {name: bases.bits for name, bases in quantized(SMALL_BY_KERNEL, 7).grouped.items()}
    model = alq.quantize(layout, weights(SMALL_BY_KERNEL, 7), bits, exact_statistics=True)
    golden = (VECTORS / "pack-half.bin").read_bytes()
    assert pack(model) == golden == pack(unpack(golden, SMALL_BY_KERNEL))
    assert golden[:9] == (VECTORS / "pack.bin").read_bytes()[:9]
    back = unpack(golden, SMALL_BY_KERNEL).reconstruct()
    for t in layout.raw:
        assert back[t.name] == pytest.approx(weights(SMALL_BY_KERNEL, 7)[t.name], rel=2**-11)


def test_bytes_in_half_precision_made_by_hand() -> None:
    layout = layout_of({"bias": (2,), "variance": (3,)}, ["variance"])
    values = {"bias": np.array([1, -0.5], np.float32), "variance": np.array([-0.995, 0.25, 1000], np.float32)}
    data = pack(alq.quantize(layout, values, {}, whole=True, exact_statistics=True))
    coded, steps = "7c 4b 01 a4 43 80 14 d0", "92 30 00 bc"  # 1/7, and -1: its values are in halves
    low_bytes = "f6 00 d0"  # of bbf6, 3400 and 63d0
    assert data == bytes.fromhex(f"01 3a6b19c0b192e984 08000000 {coded} {steps} {low_bytes}")
    assert unpack(data, layout).reconstruct()["variance"].tolist() == [-0.9951171875, 0.25, 1000.0]


def test_values_in_halves_that_are_not_finite_are_refused() -> None:
    layout = layout_of({"running_var": (4,)}, ("running_var",))
    data = pack(alq.quantize(layout, weights(layout, 1), {}, whole=True, exact_statistics=True))
    hostile = pack(
        Quantized(layout, {}, {"running_var": HalfPrecision(np.full(4, np.inf, np.float16), np.float32(1))})
    )
    assert len(hostile) < len(data)
    with pytest.raises(BadPack, match="running_var has values that are not finite"):
        unpack(hostile, layout)


@given(LAYOUTS, SEEDS, st.integers(0, 8))
def test_round_trip(layout: Layout, seed: int, max_bits: int) -> None:
    model = quantized(layout, seed, max_bits)
    data = pack(model)
    assert_same(unpack(data, layout), model)
    assert sum(account(model).values()) == len(data)
    rebuilt, expected = unpack(memoryview(data), layout).reconstruct(), model.reconstruct()
    assert all(np.array_equal(rebuilt[name], expected[name]) for name in expected)


def test_golden_bytes() -> None:
    # It was written by pack(quantized(SMALL_BY_KERNEL, 7)), and is readable as long as Quantized.format is 1.
    golden = (VECTORS / "pack.bin").read_bytes()
    model = unpack(golden, SMALL_BY_KERNEL)
    assert pack(model) == golden
    assert {name: bases.bits.tolist() for name, bases in model.grouped.items()} == {
        "conv": [6, 2, 2, 8, 1, 2],
        "dense": [5, 7, 5, 7],
    }
    assert model.grouped["dense"].alphas[0].tolist() == [
        0.5625,
        0.3125,
        0.203125,
        0.09375,
        0.05859375,
        0.0,
        0.0,
    ]
    bias = model.raw["conv.bias"]
    assert isinstance(bias, Raw)
    assert bias.codes.tolist() == [7, -2, 0]


def test_lenet_at_a_tenth_of_a_bit() -> None:
    layout = layout_of(LENET5)
    values = weights(layout, 3)
    model = alq.quantize(layout, values, alq.allocate(layout, values, bits_per_weight=0.1))
    sections = account(model)
    bases = sum(
        int(b.bits.sum(dtype=np.int64)) * t.group
        for t, b in zip(layout.grouped, model.grouped.values(), strict=True)
    )
    assert sections["signs"] <= bases // 8 + len(layout.grouped)
    assert sections["header"] == HEADER.size
    assert len(pack(model)) * 8 / layout.parameters < 0.107  # with biases, widths and header


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_model_or_bad(data: bytes, with_header: bool) -> None:
    if with_header:
        data = HEADER.pack(Quantized.format, SMALL.digest, len(data) // 3) + data
    try:
        model = unpack(data, SMALL)
    except BadPack:
        return
    assert all(np.isfinite(w).all() for w in model.reconstruct().values())


@settings(max_examples=300)
@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_altered_bytes_are_a_model_or_bad(seed: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray(pack(quantized(SMALL, seed, 3)))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        model = unpack(bytes(data), SMALL)
    except BadPack:
        return
    assert all(np.isfinite(w).all() for w in model.reconstruct().values())
    pack(model)


@given(st.integers(0, 50), st.data())
def test_a_part_or_more_than_all_is_bad(seed: int, data: st.DataObject) -> None:
    packed = pack(quantized(SMALL, seed))
    with pytest.raises(BadPack):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))], SMALL)
    with pytest.raises(BadPack, match="ends after"):
        unpack(packed + data.draw(st.binary(min_size=1, max_size=9)), SMALL)


def test_another_models_bytes_are_named() -> None:
    other = layout_of({"dense": (4, 24)})
    with pytest.raises(BadPack, match=other.digest.hex()):
        unpack(pack(quantized(SMALL, 1)), other)


def test_another_format_is_named() -> None:
    data = pack(quantized(SMALL, 1))
    with pytest.raises(BadPack, match="format 3"):
        unpack(b"\x03" + data[1:], SMALL)


def test_a_step_that_is_no_step() -> None:
    layout = layout_of({"bias": (4,)})
    data = pack(alq.quantize(layout, weights(layout, 1), {}))
    for step in (np.inf, np.nan, -0.0, -np.inf):
        with pytest.raises(BadPack, match="step"):
            unpack(data[:-2] + np.array([step], "<f2").tobytes(), layout)
    with pytest.raises(BadPack, match="the bit-widths in them ask for more"):  # as if these were high bytes
        unpack(data[:-2] + np.array([-1.0], "<f2").tobytes(), layout)
    with pytest.raises(BadPack, match="steps alone"):
        unpack(data[:-1], layout)


def test_coordinates_that_are_not_rounded_do_not_leave() -> None:
    model = quantized(SMALL, 1)
    dense = model.grouped["dense"]
    dense.alphas[dense.used] *= np.float32(1.01)
    with pytest.raises(ValueError, match="not rounded"):
        pack(model)


@pytest.mark.parametrize("coded_bytes", [0, 80, 1 << 30, (1 << 32) - 1])
@pytest.mark.parametrize("fill", [0x00, 0x5A, 0xFF])
def test_a_small_lie_costs_little(coded_bytes: int, fill: int) -> None:
    layout = layout_of(LENET5)
    data = HEADER.pack(Quantized.format, layout.digest, coded_bytes) + bytes([fill]) * 87
    tracemalloc.start()
    try:
        with pytest.raises(BadPack):
            unpack(data, layout)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def one_group(exponent: int, mantissa: int = 0, bits: int = 0, signs: bytes = b"\xaa") -> bytes:
    """A layout of one group of 8 with one basis, coded by hand as the format says."""
    coder = Encoder()
    coder.put(1, context())  # one basis,
    coder.put(0, context())  # not two
    coder.put_numbers([exponent], 8, [tree(8)])
    coder.put_numbers([bits], 4, [tree(4)])
    coder.put_numbers([0], bits, [tree(bits)])
    coder.put(0, context())  # signs are plain
    coded = coder.finish()
    return HEADER.pack(Quantized.format, ONE.digest, len(coded)) + coded + bytes([mantissa << 5]) + signs


ONE = layout_of({"w": (1, 8)})


def test_bytes_made_by_hand() -> None:
    model = unpack(one_group(exponent=15, mantissa=0b100), ONE)  # 2^0 * 1.5
    assert model.reconstruct()["w"].tolist() == [[1.5, -1.5] * 4]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (one_group(exponent=31), "a coordinate is not finite"),  # float16's infinity
        (one_group(exponent=31, mantissa=1), "a coordinate is not finite"),  # not a number
        (one_group(exponent=200), "a coordinate is not finite"),
        (one_group(exponent=15, bits=9), "numbers of 9 bits"),
        (one_group(exponent=15, signs=b""), "0 bytes of signs, 8 signs take 1"),
        (one_group(exponent=15, signs=b"\0\0"), "ends after"),
    ],
)
def test_hostile_bytes_made_by_hand(data: bytes, says: str) -> None:
    with pytest.raises(BadPack, match=says):
        unpack(data, ONE)


def test_the_largest_model_in_few_bytes_takes_the_memory_of_a_model() -> None:
    layout = layout_of(LENET5)
    bits = {t.name: np.full(t.groups, MAX_BASES, np.uint8) for t in layout.grouped}
    data = pack(alq.quantize(layout, {t.name: np.zeros(t.shape, np.float32) for t in layout.tensors}, bits))
    assert len(data) < 0.05 * layout.parameters
    tracemalloc.start()
    try:
        unpack(data, layout)
        assert tracemalloc.get_traced_memory()[1] < 32 * layout.parameters
    finally:
        tracemalloc.stop()
