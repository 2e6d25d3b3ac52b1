"""Dense models: bit for bit there and back, compressed only where smaller, and hostile bytes cost nothing."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.codec import dense
from onboard.codec.dense import Dense
from onboard.codec.layout import Layout, layout
from onboard.codec.model import PREFIX, BadPack
from onboard.codec.pack import account, pack, unpack
from tests.onboard.codec.examples import LAYOUTS, LENET5, SMALL, SMALL_BY_KERNEL, VECTORS, weights

HEAD = PREFIX.pack(Dense.format, SMALL.digest)


@given(LAYOUTS, st.integers(0, 2**32 - 1), st.booleans())
def test_round_trip(layout: Layout, seed: int, compress: bool) -> None:
    model = Dense(layout, weights(layout, seed), compress)
    data = pack(model)
    back = unpack(data, layout).reconstruct()
    assert back.keys() == model.weights.keys()
    assert all(np.array_equal(back[name], model.weights[name]) for name in back)
    assert all(back[name].dtype == np.float32 for name in back)
    assert sum(account(model).values()) == len(data)
    assert len(data) <= PREFIX.size + 1 + 4 * layout.parameters


def test_golden_bytes() -> None:
    golden = (VECTORS / "pack-dense.bin").read_bytes()
    model = unpack(golden, SMALL_BY_KERNEL)
    assert isinstance(model, Dense)
    assert pack(model) == golden
    assert model.weights["conv.bias"].tolist() == weights(SMALL, 7)["conv.bias"].tolist()


def test_trained_like_weights_compress_and_random_bits_do_not_grow() -> None:
    big = layout(LENET5)
    plain, compressed = (Dense(big, weights(big, 1), compress) for compress in (False, True))
    assert len(pack(compressed)) < 0.95 * len(pack(plain))
    noise = np.random.default_rng(0).integers(0, 2**31 - 2**24, 40, np.uint32).view(np.float32)
    vector = layout({"noise": (40,)})
    plain, compressed = (Dense(vector, {"noise": noise}, compress) for compress in (False, True))
    assert len(pack(compressed)) == len(pack(plain))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_neither_leave_nor_arrive(value: float) -> None:
    bad = weights(SMALL, 0)
    data = bytearray(pack(Dense(SMALL, bad)))
    data[-4:] = np.array([value], "<f4").tobytes()
    with pytest.raises(BadPack, match="not finite"):
        unpack(bytes(data), SMALL)
    bad["scale"] = np.array(value, np.float32)
    for compress in (False, True):
        with pytest.raises(ValueError, match="not finite"):
            pack(Dense(SMALL, bad, compress))


@settings(max_examples=300)
@given(
    st.binary(max_size=600),
    st.sampled_from([b"", HEAD, HEAD + b"\0", HEAD + b"\1", HEAD + b"\1\x28\xb5\x2f\xfd"]),
)
def test_any_bytes_are_a_model_or_bad(data: bytes, head: bytes) -> None:
    try:
        model = unpack(head + data, SMALL)
    except BadPack:
        return
    assert all(np.isfinite(values).all() for values in model.reconstruct().values())


@pytest.mark.parametrize("compress", [False, True])
@given(data=st.data())
def test_a_part_or_more_than_all_is_bad(compress: bool, data: st.DataObject) -> None:
    zeros = {t.name: np.zeros(t.shape, np.float32) for t in SMALL.tensors}
    packed = pack(Dense(SMALL, zeros, compress))
    with pytest.raises(BadPack):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))], SMALL)
    with pytest.raises(BadPack):
        unpack(packed + data.draw(st.binary(min_size=1, max_size=9)), SMALL)


@pytest.mark.parametrize("claimed", [4, 1 << 30])
def test_a_claim_of_another_size_costs_little(claimed: int) -> None:
    # A zstd frame of one run-length block: a hundred bytes or fewer, and any size claimed.
    frame = (
        b"\x28\xb5\x2f\xfd\xa0"
        + claimed.to_bytes(4, "little")
        + ((4 << 3) | 2 | 1).to_bytes(3, "little")
        + b"\0"
    )
    assert zstandard.get_frame_parameters(frame).content_size == claimed
    big = layout(LENET5)
    tracemalloc.start()
    try:
        with pytest.raises(
            BadPack, match=f"zstd frame of {claimed} bytes of weights, the layout has 1724320"
        ):
            unpack(PREFIX.pack(Dense.format, big.digest) + b"\1" + frame, big)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_another_models_bytes_are_named() -> None:
    other = layout({"dense": (4, 24)})
    with pytest.raises(BadPack, match=other.digest.hex()):
        unpack(pack(Dense(SMALL, weights(SMALL, 1))), other)


def test_without_zstandard_bytes_leave_plain_and_compressed_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zeros = {t.name: np.zeros(t.shape, np.float32) for t in SMALL.tensors}
    model = Dense(SMALL, zeros, compress=True)
    compressed, plain = pack(model), pack(Dense(SMALL, zeros))
    assert len(compressed) < len(plain)
    monkeypatch.setattr(dense, "zstandard", None)
    assert pack(model) == plain
    with pytest.raises(BadPack, match="zstandard is not installed"):
        unpack(compressed, SMALL)
