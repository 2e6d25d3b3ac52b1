"""Pruning against its own words: brute force over all coordinates, and the loss model against the loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.codec import alq, prune
from onboard.codec.alq import Bases

SEEDS = st.integers(0, 2**32 - 1)


def random_bases(rng: np.random.Generator, count: int, n: int) -> Bases:
    groups = (rng.normal(size=(count, n)) * np.exp(rng.normal(size=(count, 1)))).astype(np.float32)
    return alq.sketch(groups, rng.integers(0, 5, count).astype(np.uint8))


def random_moments(rng: np.random.Generator, count: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(count, n)).astype(np.float32), rng.random((count, n)).astype(np.float32)


@given(SEEDS, st.integers(1, 6), st.integers(8, 30))
def test_an_increment_is_the_quadratic_models_loss_without_the_coordinate(
    seed: int, count: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    bases = random_bases(rng, count, n)
    g, h = random_moments(rng, count, n)
    before = bases.reconstruct().astype(np.float64)
    got = prune.increments(bases, g, h)
    for group, j in np.argwhere(bases.used):
        without = Bases(bases.bits, bases.alphas.copy(), bases.signs)
        without.alphas[group, j] = 0
        d = without.reconstruct()[group].astype(np.float64) - before[group]
        assert got[group, j] == pytest.approx((g[group] * d + h[group] * d * d / 2).sum(), rel=1e-3, abs=1e-3)
    assert not got[~bases.used].any()


def reference(
    increments: list[np.ndarray], used: list[np.ndarray], costs: list[int], top: list[int], bits: float
) -> set[tuple[int, int, int]]:
    """The rule in words: each layer's least, and of these again and again the least of all."""
    candidates = []
    for layer, (f, exists, cost, most) in enumerate(zip(increments, used, costs, top, strict=True)):
        ranked = sorted((f[g, j] / cost, layer, g, j) for g, j in np.argwhere(exists).tolist())
        candidates += ranked[:most]
    gone: set[tuple[int, int, int]] = set()
    removed = 0.0
    for _, layer, g, j in sorted(candidates):
        if removed >= bits:
            break
        removed += costs[layer]
        gone.add((layer, g, j))
    return gone


@given(
    SEEDS,
    st.lists(st.tuples(st.integers(1, 8), st.integers(8, 40), st.integers(0, 12)), min_size=1, max_size=4),
    st.floats(0, 600),
)
def test_the_smallest_increments_go(seed: int, layers: list[tuple[int, int, int]], bits: float) -> None:
    rng = np.random.default_rng(seed)
    models = [random_bases(rng, count, n) for count, n, _ in layers]
    f = [rng.normal(size=bases.alphas.shape).astype(np.float32) for bases in models]
    costs, top = [n + 8 for _, n, _ in layers], [most for _, _, most in layers]
    masks = prune.smallest(f, [bases.used for bases in models], costs, top=top, bits=bits)
    got = {(layer, g, j) for layer, mask in enumerate(masks) for g, j in np.argwhere(mask).tolist()}
    assert got == reference(f, [bases.used for bases in models], costs, top, bits)


def test_what_stays_lies_above_what_goes_in_every_layer() -> None:
    rng = np.random.default_rng(3)
    bases = random_bases(rng, 200, 25)
    f = prune.increments(bases, *random_moments(rng, 200, 25))
    [mask] = prune.smallest([f], [bases.used], [1], top=[bases.used.size], bits=50)
    assert mask.sum() == 50
    assert f[mask].max() <= f[bases.used & ~mask].min()


@given(SEEDS, st.integers(1, 6), st.integers(8, 30))
def test_what_is_dropped_is_gone_and_the_rest_is_as_it_was(seed: int, count: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    bases = random_bases(rng, count, n)
    mask = bases.used & (rng.random(bases.used.shape) < 0.4)
    less = prune.drop(bases, mask)
    silent = Bases(bases.bits, np.where(mask, np.float32(0), bases.alphas), bases.signs)
    assert np.array_equal(less.bits, bases.bits - mask.sum(axis=1))
    assert less.reconstruct() == pytest.approx(silent.reconstruct(), rel=1e-5, abs=1e-6)
    assert less.alphas.shape[1] == less.bits.max()
    assert not less.alphas[~less.used].any()
    assert not less.signs[~less.used].any()
    assert (np.abs(less.signs[less.used]) == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_increments_that_cannot_be_ranked_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        prune.smallest([np.array([[value]], np.float32)], [np.array([[True]])], [9], top=[1], bits=1)
