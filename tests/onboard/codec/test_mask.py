"""A mask is the same everywhere, told again here in Python's integers, and Bernoulli by every test."""

from __future__ import annotations

import re
import struct
import tracemalloc
from bisect import bisect_right
from dataclasses import replace
from hashlib import blake2s
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.codec.mask import ALL, MAX_SIZE, RUN, Draw, Indices, drawn, share_of
from tests.onboard.codec.examples import VECTORS

PAGE = (Path(__file__).parents[3] / "docs" / "gossip.md").read_text(encoding="utf-8")
U64 = (1 << 64) - 1
SHARES = st.one_of(st.integers(1, 400), st.integers(1, ALL), st.sampled_from([6554, ALL // 2, ALL - 1, ALL]))
EDGES = st.none() | st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2, unique=True).map(
    lambda nodes: (nodes[0], nodes[1])
)
RUNS = st.sampled_from([1, RUN, 2**16 - 1]) | st.integers(1, 300)
DRAWS = st.builds(Draw, st.integers(0, U64), st.integers(0, 2**32 - 1), EDGES, SHARES, RUNS)


def splitmix64(key: int, number: int) -> int:
    """Output `number` (from 0) of SplitMix64 from the state `key`."""
    z = key + (number + 1) * 0x9E3779B97F4A7C15 & U64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & U64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & U64
    return z ^ z >> 31


def told_again(draw: Draw, size: int) -> list[int]:
    """The mask by its definition in docs/gossip.md, a draw at a time."""
    low, high = sorted(draw.edge) if draw.edge else (0, 0)
    identity = struct.pack(
        "<QIIHBIII", draw.seed, draw.round, draw.share, draw.run, draw.edge is not None, low, high, size
    )
    digest = blake2s(identity, digest_size=20).digest()
    key, further = struct.unpack_from("<QQ", digest)
    left = ALL - draw.share
    bounds = [((ALL**g - left**g) << 64) // ALL**g for g in range(1, 255)]
    index, reached, number = list[int](), -1, 0
    while True:
        bits = splitmix64(key, number // 4) >> 16 * (number % 4) & 0xFFFF
        uniform = bits << 48 | splitmix64(further, number) >> 16
        step = 1 + bisect_right(bounds, uniform)
        reached += min(step, 254)
        if reached * draw.run >= size:
            return index
        if step < 255:
            index += range(reached * draw.run, min((reached + 1) * draw.run, size))
        number += 1


def picked(draw: Draw, runs: int) -> Indices:
    """The numbers of the runs in a mask of so many whole ones, which are in it whole."""
    index = drawn(draw, runs * draw.run).index.reshape(-1, draw.run)
    assert np.array_equal(index, index[:, :1] + np.arange(draw.run))
    assert not (index[:, 0] % draw.run).any()
    return index[:, 0] // np.int32(draw.run)


def test_splitmix64_is_the_published_one() -> None:
    # Seed 1234567, as the C program of Vigna (prng.di.unimi.it/splitmix64.c) prints them.
    assert [splitmix64(1234567, number) for number in range(3)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(DRAWS, st.integers(0, 200) | st.integers(0, 3000))
def test_a_mask_is_what_its_definition_says(draw: Draw, size: int) -> None:
    expected = list(range(size)) if draw.share == ALL else told_again(draw, size)
    mask = drawn(draw, size)
    assert mask.index.tolist() == expected
    assert (mask.count, mask.whole) == (len(expected), draw.share == ALL)


@pytest.mark.parametrize(
    ("share", "size", "run"), [(40_000, 150_000, 1), (3, 40_000_000, 1), (50_000, 32 * 100_000 - 1, 32)]
)
def test_so_it_is_over_several_blocks(share: int, size: int, run: int) -> None:
    draw = Draw(7, 8, (9, 10), share, run)
    mask = drawn(draw, size)
    assert mask.index.tolist() == told_again(draw, size)
    assert all(len(block) > 0 for block in mask.blocks)
    assert len(mask.blocks) > 1


def test_golden_masks() -> None:
    for seed, run, size, name in ((99, RUN, 10_000, "mask.bin"), (1, 1, 1000, "mask-single.bin")):
        golden = np.frombuffer((VECTORS / name).read_bytes(), "<i4")
        assert drawn(Draw(seed, 2, (3, 4), share_of(0.1), run), size).index.tolist() == golden.tolist()
    number = r"(\d+) \| "
    rows = re.findall(rf"^\| {number * 2}(\S+) \| {number * 4}([\d ]+) \| `(\w+)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 11
    for seed, round_number, edge, share, run, size, count, first, digest in rows:
        low, _, high = edge.partition("-")
        nodes = (int(low), int(high)) if high else None
        index = drawn(Draw(int(seed), int(round_number), nodes, int(share), int(run)), int(size)).index
        runs = np.unique(index // int(run))
        assert runs[:5].tolist() == [int(each) for each in first.split()]
        assert (len(index), index.dtype) == (int(count), np.int32)
        assert blake2s(index.astype("<i4").tobytes(), digest_size=8).hexdigest() == digest


@given(DRAWS, st.integers(1, 3000))
def test_both_ends_draw_the_same_and_check_it_alike(draw: Draw, size: int) -> None:
    turned = Draw(draw.seed, draw.round, draw.edge and draw.edge[::-1], draw.share, draw.run)
    assert drawn(turned, size).index.tolist() == drawn(draw, size).index.tolist()
    assert turned.keys(size) == draw.keys(size)
    others = [
        replace(draw, seed=draw.seed ^ 1),
        replace(draw, round=draw.round ^ 1),
        replace(draw, edge=None if draw.edge else (0, 1)),
        replace(draw, share=draw.share % ALL + 1),
        replace(draw, run=draw.run % (2**16 - 1) + 1),
    ]
    assert len({keys for other in [draw, *others] for keys in other.keys(size)}) == 18
    assert draw.keys(size + 1) != draw.keys(size)


@pytest.mark.parametrize("p", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_distances_are_geometric(p: float) -> None:
    share, size = share_of(p), int(2e5 / p)
    index = picked(Draw(11, 0, None, share, run=1), size)
    p = share / ALL
    seen = np.diff(index, prepend=np.int32(-1))
    edges = np.unique(np.r_[np.ceil(np.log1p(-np.linspace(0, 0.9999, 40)) / np.log1p(-p)), np.inf])
    expected = np.diff(1 - np.exp(np.log1p(-p) * edges)) * len(seen)
    observed = np.histogram(seen, edges + 1)[0]
    assert observed.sum() == len(seen)
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    bins = len(expected)
    # Wilson and Hilferty's cube root is normal: 4 standard deviations are 1 in 16,000, either side.
    score = ((chi_square / (bins - 1)) ** (1 / 3) - 1 + 2 / (9 * (bins - 1))) * (9 * (bins - 1) / 2) ** 0.5
    assert abs(score) < 4 if bins > 2 else chi_square < 16


@pytest.mark.parametrize("run", [1, RUN])
@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.97])
def test_every_coordinate_is_as_likely_and_counts_are_binomial(p: float, run: int) -> None:
    rounds, runs, share = 3000, 400, share_of(p)
    p, size = share / ALL, runs * run - run // 2  # the last run is a shorter one
    chosen = np.zeros((rounds, runs), np.bool_)
    for number in range(rounds):
        index = drawn(Draw(5, number, (1, 2), share, run), size).index
        coordinates = np.zeros(size, np.bool_)
        coordinates[index] = True
        chosen[number] = coordinates[::run]
        assert np.array_equal(coordinates, chosen[number].repeat(run)[:size])  # runs: all of it or nothing
    spread = (rounds * p * (1 - p)) ** 0.5
    often = (chosen.sum(axis=0) - rounds * p) / spread
    assert np.abs(often).max() < 4.5  # of 400 runs; also the first and the last one
    assert abs(float((often**2).mean()) - 1) < 4 * (2 / runs) ** 0.5
    counts = chosen.sum(axis=1)
    assert abs(float(counts.mean()) - runs * p) < 4 * (runs * p * (1 - p) / rounds) ** 0.5
    assert abs(float(counts.var()) / (runs * p * (1 - p)) - 1) < 4 * (2 / rounds) ** 0.5
    # Neighbouring runs of a mask, and the same ones of the next round, know nothing of each other.
    for one, other in ((chosen[:, 1:], chosen[:, :-1]), (chosen[1:], chosen[:-1])):
        correlation = float(((one - p) * (other - p)).mean()) / (p * (1 - p))
        assert abs(correlation) < 4 / one.size**0.5


@pytest.mark.parametrize("run", [1, RUN])
@pytest.mark.parametrize(
    "other",
    [Draw(5, 1, (1, 2), 6554), Draw(6, 0, (1, 2), 6554), Draw(5, 0, (2, 3), 6554), Draw(5, 0, None, 6554),
     Draw(5, 0, (1, 2), 6554, run=16)],
)  # fmt: skip
def test_masks_of_other_rounds_seeds_edges_and_runs_are_independent(other: Draw, run: int) -> None:
    runs, p = 2_000_000 if run == 1 else 200_000, 6554 / ALL
    other = other if other.run == 16 else replace(other, run=run)
    common = len(np.intersect1d(picked(Draw(5, 0, (1, 2), 6554, run), runs), picked(other, runs)))
    assert abs(common - runs * p * p) < 4 * (runs * p * p) ** 0.5


@pytest.mark.parametrize("run", [1, RUN])
def test_drawing_takes_little_memory(run: int) -> None:
    drawn(Draw(1, 1, None, 655), 10)  # the table is made once
    for share in (655, 6554, ALL // 2):
        tracemalloc.start()
        try:
            mask = drawn(Draw(1, 1, None, share, run), run * 3_000_000)
            assert tracemalloc.get_traced_memory()[1] < 4 * mask.count // run + 1_600_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("seed", "round_number", "edge", "share", "run"),
    [(-1, 0, None, 1, 1), (2**64, 0, None, 1, 1), (0, 2**32, None, 1, 1), (0, 0, None, 0, 1),
     (0, 0, None, ALL + 1, 1), (0, 0, (3, 3), 1, 1), (0, 0, (-1, 3), 1, 1), (0, 0, (0, 2**32), 1, 1),
     (0, 0, None, 1, 0), (0, 0, None, 1, 2**16)],
)  # fmt: skip
def test_what_is_no_draw_is_refused(
    seed: int, round_number: int, edge: tuple[int, int] | None, share: int, run: int
) -> None:
    with pytest.raises(ValueError, match=r"must|edge"):
        Draw(seed, round_number, edge, share, run)


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1])
def test_sizes_beyond_an_index_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} coordinates"):
        drawn(Draw(0, 0, None, 6554), size)


def test_probabilities_are_in_65536ths() -> None:
    assert [share_of(p) for p in (1 / ALL, 0.1, 0.5, 1.0)] == [1, 6554, ALL // 2, ALL]
    for p in (0.0, -0.1, 1.01, 1e-9, float("nan")):
        with pytest.raises(ValueError, match="p is"):
            share_of(p)
