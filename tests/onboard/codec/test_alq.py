"""Groups, bases and coordinates: against least squares, brute force and their own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.codec import alq
from onboard.codec.layout import Layout, Weights, in_groups
from onboard.codec.layout import layout as layout_of
from onboard.codec.model import Budget
from onboard.codec.pack import pack, unpack
from onboard.codec.quantized import COORDINATE_BITS, MAX_BASES, Bases, rounded
from onboard.learn.graph import TrainGraph
from tests.onboard.codec.examples import LAYOUTS, LENET5, SMALL, quantize_average, quantized, weights

SEEDS = st.integers(0, 2**32 - 1)


def error(groups: np.ndarray, bases: Bases, h: np.ndarray | None = None) -> np.ndarray:
    squares = (groups.astype(np.float64) - bases.reconstruct()) ** 2
    return np.asarray((squares if h is None else h * squares).sum(axis=1))


def test_lenet_has_the_papers_groups() -> None:
    layout = layout_of(LENET5)
    assert layout.parameters == 431_080
    assert {t.name: (t.groups, t.group) for t in layout.grouped} == {
        "conv1.weight": (20, 25),
        "conv2.weight": (1000, 25),
        "fc1.weight": (1000, 400),
        "fc2.weight": (10, 500),
    }
    assert [t.name for t in layout.raw] == ["conv1.bias", "conv2.bias", "fc1.bias", "fc2.bias"]


@given(SEEDS, st.integers(1, 12), st.integers(8, 60), st.integers(0, 8), st.booleans())
def test_coordinates_are_the_weighted_least_squares_solution(
    seed: int, count: int, n: int, bits: int, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.normal(size=(count, n)).astype(np.float32)
    h = rng.random((count, n)).astype(np.float32) + np.float32(0.01) if weighted else None
    bases = alq.sketch(groups, np.full(count, bits, np.uint8), h)
    root = np.sqrt(np.ones((count, n)) if h is None else h)
    for g in range(count):
        B = bases.signs[g].T.astype(np.float64)
        solution = np.linalg.lstsq(root[g, :, None] * B, root[g] * groups[g], rcond=None)[0]
        assert bases.alphas[g] == pytest.approx(solution, rel=1 / 15, abs=1e-4)


@given(SEEDS, st.integers(1, 8), st.integers(8, 60))
def test_one_basis_is_sign_and_mean(seed: int, count: int, n: int) -> None:
    groups = np.random.default_rng(seed).normal(size=(count, n)).astype(np.float32)
    bases = alq.sketch(groups, np.ones(count, np.uint8))
    assert np.array_equal(bases.signs[:, 0], np.where(groups < 0, -1, 1))
    mean = np.abs(groups.astype(np.float64)).mean(axis=1)
    assert np.array_equal(bases.alphas[:, 0], rounded(mean)) or bases.alphas[:, 0] == pytest.approx(
        mean, 1 / 15
    )


@given(SEEDS, st.integers(1, 8), st.integers(8, 60), st.booleans())
def test_more_bases_leave_no_more_error(seed: int, count: int, n: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.normal(size=(count, n)).astype(np.float32)
    h = rng.random((count, n)).astype(np.float32) if weighted else None
    gains = alq.gains(groups, MAX_BASES, h)
    assert (gains >= 0).all()
    assert (np.diff(gains, axis=1) <= 0).all()
    energy = (groups.astype(np.float64) ** 2 * (1 if h is None else h)).sum(axis=1)
    before = energy
    for bits in range(1, MAX_BASES + 1):
        after = error(groups, alq.sketch(groups, np.full(count, bits, np.uint8), h), h)
        # A coordinate off by 1/16 costs 1/256 of the energy it carries; bases overlap, hence twice that.
        assert (after <= before + energy * bits / 128).all()
        before = after


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-30])
def test_a_constant_group_leaves_no_residual_and_no_trouble(value: float) -> None:
    groups = np.full((3, 16), value, np.float32)
    bases = alq.sketch(groups, np.array([0, 1, 8], np.uint8))
    assert not bases.reconstruct()[0].any()
    assert bases.reconstruct()[1:] == pytest.approx(groups[1:], rel=1 / 15, abs=1e-7)


@given(SEEDS, st.integers(1, 12), st.integers(8, 40))
def test_the_forward_pass_is_what_the_far_end_rebuilds(seed: int, count: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    groups, bits = rng.normal(size=(count, n)).astype(np.float32), rng.integers(0, 9, count).astype(np.uint8)
    far = alq.sketch(groups, bits).reconstruct()
    project = alq.Projection({"w": bits})
    assert list(project.order) == ["w"] * int(bits.any())
    for name, at in project.order.items():
        assert sorted(at) == np.flatnonzero(bits).tolist()
        assert project({name: groups[at]})[name] == pytest.approx(far[at], abs=1e-5)
    assert not far[bits == 0].any()


@given(st.lists(st.floats(-1e6, 1e6), max_size=20))
def test_rounding_is_idempotent_and_near(values: list[float]) -> None:
    exact = np.array(values)
    once = rounded(exact)
    assert np.array_equal(rounded(once), once)
    assert np.isfinite(once).all()
    normal = (np.abs(exact) >= 2.0**-14) & (np.abs(exact) <= 61_440)  # float16's, with 3 bits of mantissa
    assert once[normal] == pytest.approx(np.abs(exact[normal]), rel=1 / 15.5)


def reference_allocation(
    layout: Layout,
    values: dict[str, np.ndarray],
    budget: float,
    max_bases: int,
    h: dict[str, np.ndarray] | None,
) -> dict[str, list[int]]:
    """The rule in words: again and again the best next basis of all groups, until it does not fit."""
    groups, weighed = in_groups(layout, values), in_groups(layout, h) if h else {}
    gain = {name: alq.gains(w, max_bases, weighed.get(name)) for name, w in groups.items()}
    bits = {t.name: [0] * t.groups for t in layout.grouped}
    left = budget
    while True:
        best, best_rate, cost = None, 0.0, 0
        for t in layout.grouped:
            for g in range(t.groups):
                if bits[t.name][g] < max_bases:
                    rate = gain[t.name][g, bits[t.name][g]] / (t.group + COORDINATE_BITS)
                    if rate > best_rate:
                        best, best_rate, cost = (t.name, g), rate, t.group + COORDINATE_BITS
        if best is None or cost > left:
            return bits
        left -= cost
        bits[best[0]][best[1]] += 1


@settings(max_examples=40)
@given(LAYOUTS, SEEDS, st.floats(0, 6), st.integers(0, 8), st.booleans())
def test_allocation_is_greedy_by_gain_per_bit(
    layout: Layout, seed: int, per_weight: float, max_bases: int, with_curvature: bool
) -> None:
    values = weights(layout, seed)
    h = {name: np.abs(v) for name, v in weights(layout, seed + 1).items()} if with_curvature else None
    got = alq.allocate(layout, values, bits_per_weight=per_weight, max_bases=max_bases, curvature=h)
    expected = reference_allocation(layout, values, per_weight * layout.parameters, max_bases, h)
    assert {name: bits.tolist() for name, bits in got.items()} == expected
    spent = alq.quantize(layout, values, got).budget_bits
    assert spent <= per_weight * layout.parameters


def test_curvature_draws_bases_to_the_weights_that_matter() -> None:
    layout = layout_of({"w": (2, 32)})
    values = {"w": np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)}
    for row in (0, 1):
        h = np.full((2, 32), 0.01, np.float32)
        h[row] = 1.0
        bits = alq.allocate(layout, values, bits_per_weight=40 / 64, curvature={"w": h})["w"]
        assert bits.tolist() == [int(row == 0), int(row == 1)]


@given(SEEDS, st.integers(1, 127))
def test_a_grid_is_off_by_half_a_step_and_keeps_zero(seed: int, levels: int) -> None:
    values = np.random.default_rng(seed).normal(size=30).astype(np.float32)
    values[3] = 0.0
    raw = alq.on_grid(values, levels)
    # The step is a float16: the outermost value may lie up to 1/2048 of itself beyond the last line.
    slack = np.abs(values).max() / 1024
    assert (np.abs(raw.reconstruct() - values) <= raw.step / 2 + slack).all()
    assert raw.reconstruct()[3] == 0.0
    assert np.abs(raw.codes).max() <= levels


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    values = weights(SMALL, 0)
    values["dense"][1, 2] = value
    bits = {t.name: np.ones(t.groups, np.uint8) for t in SMALL.grouped}
    with pytest.raises(ValueError, match="not finite"):
        alq.quantize(SMALL, values, bits)
    with pytest.raises(ValueError, match="not finite"):
        alq.allocate(SMALL, values, bits_per_weight=1.0)
    with pytest.raises(ValueError, match="not finite"):
        alq.on_grid(np.array([value], np.float32), 7)


def test_a_wrong_shape_is_refused_by_name() -> None:
    values = weights(SMALL, 0) | {"dense": np.zeros((24, 4), np.float32)}
    with pytest.raises(ValueError, match=r"dense has shape \(24, 4\), the layout says \(4, 24\)"):
        alq.allocate(SMALL, values, bits_per_weight=1.0)
    with pytest.raises(ValueError, match="max_bases is 9"):
        alq.allocate(SMALL, values, bits_per_weight=1.0, max_bases=9)


@given(LAYOUTS, SEEDS)
def test_reconstruction_has_every_tensor_in_its_shape(layout: Layout, seed: int) -> None:
    rebuilt = quantized(layout, seed).reconstruct()
    assert {name: w.shape for name, w in rebuilt.items()} == {t.name: t.shape for t in layout.tensors}
    assert all(w.dtype == np.float32 for w in rebuilt.values())


def test_running_statistics_are_finer_in_a_whole_model() -> None:
    """A variance of 0.05 beside one of 5 is lost among 15 values, and images are judged by both."""
    whole, moved = (Budget(1.0, 1, whole=whole) for whole in (True, False))
    like = layout_of({"conv": (8, 4, 3, 3), "scale": (8,), "variance": (8,)}, ["variance"])
    vector = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0], np.float32)
    values = {"conv": np.ones((8, 4, 3, 3), np.float32), "scale": vector, "variance": vector}
    fine, coarse = (alq.AlqCodec().quantize(like, values, budget) for budget in (whole, moved))
    assert np.abs(fine.reconstruct()["variance"] - vector).max() <= 5.0 / (2 * 63) * 1.001
    assert np.abs(fine.reconstruct()["scale"] - vector).max() <= 5.0 / (2 * 7) * 1.001
    assert np.abs(coarse.reconstruct()["scale"] - vector).max() <= 5.0 / (2 * 3) * 1.001
    assert np.array_equal(coarse.reconstruct()["variance"], coarse.reconstruct()["scale"])
    alq.AlqCodec().check(unpack(pack(fine), like), whole)
    with pytest.raises(ValueError, match="variance is beside its grid of 15 values"):
        alq.AlqCodec().check(unpack(pack(fine), like), moved)


def test_what_goes_down_has_statistics_that_no_other_value_of_theirs_can_hide() -> None:
    like = layout_of({"conv": (8, 4, 3, 3), "scale": (4,), "variance": (4,)}, ["variance"])
    vector = np.array([-0.995, -0.98, 3.0, 400.0], np.float32)  # from first ones of 1
    values = {"conv": np.ones((8, 4, 3, 3), np.float32), "scale": vector, "variance": vector}
    down = Budget(1.0, 1, whole=True, exact_statistics=True)
    model = unpack(pack(alq.AlqCodec().quantize(like, values, down)), like)
    assert 1 + model.reconstruct()["variance"] == pytest.approx(1 + vector, rel=0.05)
    assert model.reconstruct()["scale"][:3].tolist() == [0, 0, 0]
    alq.AlqCodec().check(model, down)
    for up in (Budget(1.0, 1, whole=True), Budget(1.0, 1)):
        with pytest.raises(ValueError, match="variance is in half precision, asked for was a grid"):
            alq.AlqCodec().check(model, up)


def test_a_graph_says_which_of_its_vectors_are_running_statistics() -> None:
    tensors = TrainGraph.load("resnet20").layout.tensors
    assert {t.name for t in tensors if t.is_statistic} == {t.name for t in tensors if ".running_" in t.name}


def test_what_many_rounds_have_moved_is_hardly_changed_by_the_next_quantization() -> None:
    """A server quantizes the whole model after every round, and one round moves a small part of it."""
    like = layout_of({"conv": (64, 16, 3, 3), "dense": (40, 512)})
    for seed in range(5):
        rng = np.random.default_rng(seed)
        moves = {t.name: rng.choice([-1, 1], (30, *t.shape)) for t in like.tensors}
        values = {
            name: np.tensordot(0.9 ** np.arange(30), each, 1).astype(np.float32)
            for name, each in moves.items()
        }
        model = quantize_average(like, values, 9.0)
        sketched = alq.quantize(like, values, {name: bases.bits for name, bases in model.grouped.items()})
        off, before = (_distance(each.reconstruct(), values) for each in (model, sketched))
        assert off < 0.04
        assert off < 0.7 * before


@given(LAYOUTS, SEEDS, st.floats(1, 9))
def test_no_average_is_further_off_than_its_sketch(layout: Layout, seed: int, bits: float) -> None:
    values = in_groups(layout, weights(layout, seed))
    model = quantize_average(layout, weights(layout, seed), bits)
    for name, bases in model.grouped.items():
        sketched = alq.sketch(values[name], bases.bits)
        off, before = (np.square(each.reconstruct() - values[name]).sum() for each in (bases, sketched))
        assert off <= before * 1.0001


def _distance(found: Weights, values: Weights) -> float:
    error = sum(float(np.square(found[name] - values[name]).sum()) for name in values)
    return math.sqrt(error / sum(float(np.square(each).sum()) for each in values.values()))
