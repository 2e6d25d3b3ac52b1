"""Bases and coordinates against exhaustive search and weighted least squares; pruning against its own words,
brute force over all coordinates, and the loss model against the loss.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.codec import alq
from onboard.codec.quantized import COORDINATE_BITS, Bases
from onboard.learn.federated import multibit

SEEDS = st.integers(0, 2**32 - 1)


def problem(seed: int, count: int, n: int, most: int = 8) -> tuple[np.ndarray, np.ndarray, Bases]:
    """Target, curvature, and bases of something near the target."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(count, n)).astype(np.float32)
    start = target + rng.normal(size=(count, n)).astype(np.float32) / 2
    bases = alq.sketch(start, rng.integers(0, most + 1, count).astype(np.uint8))
    return target, (rng.random((count, n)) + 0.01).astype(np.float32), bases


def error(target: np.ndarray, h: np.ndarray, bases: Bases) -> np.ndarray:
    return np.asarray((h * (target.astype(np.float64) - bases.reconstruct()) ** 2).sum(axis=1))


@given(SEEDS, st.integers(1, 6), st.integers(8, 12))
def test_every_weight_takes_the_best_of_all_its_values(seed: int, count: int, n: int) -> None:
    target, _, bases = problem(seed, count, n)
    chosen = Bases(bases.bits, bases.alphas, alq.nearest(target, bases))
    for g, width in enumerate(bases.bits.tolist()):
        corners = np.array(list(product((-1, 1), repeat=width)), int).reshape(1 << width, width)
        values = corners @ bases.alphas[g, :width].astype(np.float64)
        least = np.abs(target[g, :, None] - values).min(axis=1)
        got = np.abs(target[g] - chosen.reconstruct()[g])
        assert got == pytest.approx(least, abs=1e-5)
    assert (np.abs(chosen.signs[chosen.used]) == 1).all()
    assert not chosen.signs[~chosen.used].any()


@given(SEEDS, st.integers(1, 3), st.integers(1, 2))
def test_no_choice_of_signs_of_a_small_group_is_better(seed: int, count: int, width: int) -> None:
    target, h, _ = problem(seed, count, 4)
    bases = alq.sketch(target + np.float32(0.3), np.full(count, width, np.uint8))
    best = error(target, h, Bases(bases.bits, bases.alphas, alq.nearest(target, bases)))
    for signs in product((-1, 1), repeat=4 * width):
        other = np.broadcast_to(np.array(signs, np.int8).reshape(1, width, 4), (count, width, 4))
        assert (best <= error(target, h, Bases(bases.bits, bases.alphas, other)) + 1e-4).all()


@given(SEEDS, st.integers(1, 6), st.integers(12, 40), st.booleans())
def test_coordinates_are_the_weighted_least_squares_solution(
    seed: int, count: int, n: int, weighted: bool
) -> None:
    target, h, bases = problem(seed, count, n, most=4)
    h = h if weighted else np.ones_like(h)
    fit = multibit.fitted(target, bases.bits, bases.signs, h)
    root = np.sqrt(h.astype(np.float64))
    for g, width in enumerate(bases.bits.tolist()):
        B = fit.signs[g, :width].T.astype(np.float64)
        solution, _, rank, _ = np.linalg.lstsq(root[g, :, None] * B, root[g] * target[g], rcond=None)
        if rank == width:  # two bases that are the same share one coordinate as they like
            assert fit.alphas[g, :width] == pytest.approx(solution, rel=1e-2, abs=1e-3)
    assert (fit.alphas >= 0).all()
    assert not fit.alphas[~fit.used].any()


@given(SEEDS, st.integers(1, 6), st.integers(8, 60), st.booleans())
def test_optimizing_leaves_no_more_weighted_error(seed: int, count: int, n: int, weighted: bool) -> None:
    target, h, bases = problem(seed, count, n)
    h = h if weighted else np.ones_like(h)
    before = error(target, h, bases)
    for _ in range(3):
        bases = multibit.optimized(target, bases, h)
        after = error(target, h, bases)
        assert (after <= before * 1.001 + 1e-4).all()
        before = after


def test_groups_that_no_gradient_reached_keep_finite_coordinates() -> None:
    target, _, bases = problem(1, 4, 16)
    still = np.zeros_like(target)
    assert np.isfinite(multibit.optimized(target, bases, still).alphas).all()
    assert np.array_equal(multibit.stepped(bases, still, still, 0.1).alphas, bases.alphas)


@given(SEEDS, st.integers(1, 6), st.integers(8, 40))
def test_a_step_goes_down_the_gradient_of_each_coordinate(seed: int, count: int, n: int) -> None:
    target, h, bases = problem(seed, count, n)
    g = (bases.reconstruct() - target).astype(np.float32)  # of half the squared error
    rate = 1e-3
    moved = multibit.stepped(bases, g, h, rate)
    assert (moved.alphas >= 0).all()
    assert np.array_equal(moved.bits, bases.bits)
    signed = moved.alphas * np.where((moved.signs != bases.signs).any(axis=2), -1, 1)
    for group, j in np.argwhere(bases.used).tolist():
        expected = -rate * (bases.signs[group, j] @ g[group]) / h[group].sum()
        assert signed[group, j] - bases.alphas[group, j] == pytest.approx(expected, rel=1e-2, abs=1e-5)


def test_a_step_through_zero_turns_the_basis() -> None:
    bases = alq.sketch(np.full((1, 8), 0.25, np.float32), np.ones(1, np.uint8))
    moved = multibit.stepped(bases, np.ones((1, 8), np.float32), np.ones((1, 8), np.float32), 1.0)
    assert moved.alphas.tolist() == [[0.75]]
    assert (moved.signs == -1).all()


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
    got = multibit.increments(bases, g, h)
    for group, j in np.argwhere(bases.used):
        without = Bases(bases.bits, bases.alphas.copy(), bases.signs)
        without.alphas[group, j] = 0
        d = without.reconstruct()[group].astype(np.float64) - before[group]
        assert got[group, j] == pytest.approx((g[group] * d + h[group] * d * d / 2).sum(), rel=1e-3, abs=1e-3)
    assert not got[~bases.used].any()


def reference(
    increments: list[np.ndarray], models: list[Bases], costs: list[int], top: list[int], bits: float
) -> set[tuple[int, int, int]]:
    """The rule in words: each layer's least, and of these again and again the least of all."""
    candidates = []
    for layer, (f, bases, cost, most) in enumerate(zip(increments, models, costs, top, strict=True)):
        ranked = sorted((f[g, j] / cost, layer, g, j) for g, j in np.argwhere(bases.used).tolist())
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
    masks = multibit.smallest(f, models, top=top, bits=bits)
    got = {(layer, g, j) for layer, mask in enumerate(masks) for g, j in np.argwhere(mask).tolist()}
    assert got == reference(f, models, costs, top, bits)


def test_what_stays_lies_above_what_goes_in_every_layer() -> None:
    rng = np.random.default_rng(3)
    bases = random_bases(rng, 200, 25)
    f = multibit.increments(bases, *random_moments(rng, 200, 25))
    [mask] = multibit.smallest([f], [bases], top=[bases.used.size], bits=50 * (25 + COORDINATE_BITS))
    assert mask.sum() == 50
    assert f[mask].max() <= f[bases.used & ~mask].min()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_increments_that_cannot_be_ranked_are_refused(value: float) -> None:
    bases = alq.sketch(np.ones((1, 8), np.float32), np.ones(1, np.uint8))
    with pytest.raises(ValueError, match="not finite"):
        multibit.smallest([np.array([[value]], np.float32)], [bases], top=[1], bits=1)
