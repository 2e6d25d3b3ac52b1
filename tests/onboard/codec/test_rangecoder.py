"""The range coder gives back what was put, near its entropy, and reads any bytes."""

from __future__ import annotations

import random
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.codec.rangecoder import Decoder, Encoder, context, tree


def coded(bits: list[int], contexts: int) -> bytes:
    coder, contexts_ = Encoder(), [context() for _ in range(contexts)]
    for i, bit in enumerate(bits):
        coder.put(bit, contexts_[i % contexts])
    return coder.finish()


def decoded(data: bytes, count: int, contexts: int) -> list[int]:
    coder, contexts_ = Decoder(data), [context() for _ in range(contexts)]
    return [coder.get(contexts_[i % contexts]) for i in range(count)]


@given(st.lists(st.integers(0, 1), max_size=400), st.integers(1, 5))
def test_round_trip(bits: list[int], contexts: int) -> None:
    assert decoded(coded(bits, contexts), len(bits), contexts) == bits


@pytest.mark.parametrize("probability", [0.0, 0.003, 0.1, 0.5, 0.997, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_long_runs_with_carries(probability: float, seed: int) -> None:
    rng = random.Random(seed)
    bits = [int(rng.random() < probability) for _ in range(20_000)]
    assert decoded(coded(bits, 2), len(bits), 2) == bits


@pytest.mark.parametrize("ones", [100, 1000, 5000])
def test_size_is_near_the_entropy(ones: int) -> None:
    bits = [1] * ones + [0] * (10_000 - ones)
    random.Random(1).shuffle(bits)
    p = ones / 10_000
    entropy = -10_000 * (p * log2(p) + (1 - p) * log2(1 - p))
    assert len(coded(bits, 1)) * 8 <= 1.02 * entropy + 40  # learning the one probability, and the last bytes


@given(st.binary(max_size=60), st.integers(0, 300))
def test_any_bytes_are_some_bits(data: bytes, count: int) -> None:
    bits = decoded(data, count, 3)
    assert len(bits) == count
    assert decoded(coded(bits, 3), count, 3) == bits


def test_nothing_takes_no_bytes() -> None:
    assert coded([], 1) == b""


@given(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 2)), max_size=200), st.binary(max_size=60))
def test_numbers_come_back_and_are_read_from_any_bytes(numbers: list[tuple[int, int]], noise: bytes) -> None:
    def trees() -> list[list[list[int]]]:
        three = [tree(5) for _ in range(3)]
        return [three[which] for _, which in numbers]

    values, coder = [value for value, _ in numbers], Encoder()
    coder.put(1, context())
    coder.put_numbers(values, 5, trees())
    coder.put(0, context())
    back = Decoder(coder.finish())
    assert (back.get(context()), back.get_numbers(5, trees()), back.get(context())) == (1, values, 0)
    assert all(0 <= value < 32 for value in Decoder(noise).get_numbers(5, trees()))


def test_numbers_are_coded_as_their_bits_are() -> None:
    rng = random.Random(2)
    values, nodes = [min(int(rng.expovariate(0.3)), 15) for _ in range(3000)], tree(4)
    one, other, same = Encoder(), Encoder(), tree(4)
    one.put_numbers(values, 4, [nodes] * len(values))
    for value in values:
        node = 1
        for shift in (3, 2, 1, 0):
            other.put(value >> shift & 1, same[node])
            node = node << 1 | value >> shift & 1
    assert one.finish() == other.finish()
