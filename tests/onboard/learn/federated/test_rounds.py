"""The server's rules: a choice anyone can check, an average in any order, rounds that close once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.codec.layout import Floats, in_groups
from onboard.learn.federated.rounds import (
    PartialAverage,
    Round,
    RoundState,
    SparseMean,
    UpdateFate,
    choose,
    finished,
    staleness_weight,
)
from tests.onboard.codec.examples import SMALL, quantize_average, weights

NODES = st.frozensets(st.integers(0, 10_000), min_size=1, max_size=30)


@given(NODES, st.integers(1, 40), st.integers(0, 2**64 - 1), st.integers(1, 1000))
def test_a_choice_is_k_nodes_and_the_same_from_any_order(
    nodes: frozenset[int], k: int, seed: int, number: int
) -> None:
    chosen = choose(nodes, k, seed, number)
    assert len(chosen) == min(k, len(nodes))
    assert set(chosen) <= nodes
    assert list(chosen) == sorted(set(chosen))
    assert choose(sorted(nodes, reverse=True), k, seed, number) == chosen


@given(NODES, st.integers(1, 10), st.integers(0, 99), st.integers(10_001, 10_100))
def test_a_newcomer_displaces_at_most_one(nodes: frozenset[int], k: int, seed: int, newcomer: int) -> None:
    before, after = set(choose(nodes, k, seed, 1)), set(choose(nodes | {newcomer}, k, seed, 1))
    assert len(before - after) <= 1
    assert after - before <= {newcomer}


def test_choices_are_golden_and_spread() -> None:
    assert choose(range(100), 5, seed=42, round_number=3) == (4, 36, 39, 81, 92)
    counts = np.bincount(np.concatenate([choose(range(20), 5, 0, r) for r in range(1, 401)]), minlength=20)
    assert counts.sum() == 2000
    assert counts.min() > 60  # binomial: mean 100, deviation 8.7
    assert counts.max() < 140
    with pytest.raises(ValueError, match="k is 0"):
        choose(range(3), 0, 1, 1)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 5000)), min_size=1, max_size=6))
def test_the_average_is_weighted_by_samples_in_any_order(parts: list[tuple[int, int]]) -> None:
    average = PartialAverage(SMALL)
    for seed, samples in parts:
        average.add(weights(SMALL, seed), samples)
    total = sum(samples for _, samples in parts)
    for t in SMALL.tensors:
        expected = sum(weights(SMALL, seed)[t.name].astype(np.float64) * n for seed, n in parts) / total
        assert average.mean()[t.name] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    backwards = PartialAverage(SMALL)
    for seed, samples in reversed(parts):
        backwards.add(weights(SMALL, seed), samples)
    assert all(np.allclose(average.mean()[n], backwards.mean()[n], rtol=1e-7, atol=0) for n in average.mean())


def spoiled(name: str, value: Floats | None) -> dict[str, Floats]:
    update = weights(SMALL, 1)
    if value is None:
        del update[name]
    else:
        update[name] = value
    return update


@pytest.mark.parametrize(
    ("update", "samples", "says"),
    [
        (spoiled("tiny", None), 5, "tensors"),
        (spoiled("more", np.zeros(1, np.float32)), 5, "tensors"),
        (spoiled("tiny", np.zeros((3, 2), np.float32)), 5, r"tiny has shape \(3, 2\)"),
        (spoiled("tiny", np.full((2, 3), np.nan, np.float32)), 5, "tiny has values that are not finite"),
        (spoiled("scale", np.array(np.inf, np.float32)), 5, "scale has values that are not finite"),
        (weights(SMALL, 1), 0, "0 samples"),
        (weights(SMALL, 1), -4, "-4 samples"),
    ],
)
def test_a_bad_update_is_refused_and_changes_nothing(
    update: dict[str, Floats], samples: int, says: str
) -> None:
    average = PartialAverage(SMALL)
    average.add(weights(SMALL, 0), 7)
    before = average.mean()
    with pytest.raises(ValueError, match=says):
        average.add(update, samples)
    assert all(np.array_equal(average.mean()[name], before[name]) for name in before)


def test_no_update_no_average() -> None:
    with pytest.raises(ValueError, match="no update"):
        PartialAverage(SMALL).mean()


def test_the_downlink_keeps_its_budget() -> None:
    values = weights(SMALL, 2)
    errors = []
    for budget in (0.0, 1.0, 3.0, 6.0):
        model = quantize_average(SMALL, values, budget)
        assert model.budget_bits <= budget * SMALL.parameters
        rebuilt = model.reconstruct()
        errors.append(sum(float(((rebuilt[t.name] - values[t.name]) ** 2).sum()) for t in SMALL.grouped))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


def a_round(quorum: int = 2) -> Round:
    return Round(number=1, asked=frozenset({1, 2, 3}), quorum=quorum, deadline_s=100.0)


def test_a_quorum_closes_and_what_comes_later_is_late() -> None:
    r = a_round()
    assert r.answer(2, 10.0) is UpdateFate.TAKEN
    assert r.judge(10.0) is RoundState.OPEN
    assert r.answer(2, 11.0) is UpdateFate.AGAIN
    assert r.answer(9, 11.0) is UpdateFate.UNASKED
    assert r.answer(1, 12.0) is UpdateFate.TAKEN
    assert r.judge(12.0) is RoundState.QUORUM
    assert r.answer(3, 13.0) is UpdateFate.LATE
    assert r.answered == {1, 2}


def test_a_deadline_closes_with_whoever_answered() -> None:
    r = a_round()
    assert r.answer(2, 99.9) is UpdateFate.TAKEN
    assert r.judge(99.9) is RoundState.OPEN
    assert r.judge(100.0) is RoundState.DEADLINE
    assert r.answer(1, 100.0) is UpdateFate.LATE
    assert a_round().judge(100.0) is RoundState.EMPTY


def test_a_caller_that_stood_still_past_the_deadline_takes_what_came_meanwhile() -> None:
    r = a_round()
    r.answer(2, 99.0)
    assert r.answer(1, 5000.0) is UpdateFate.TAKEN
    assert r.judge(5000.0) is RoundState.QUORUM


def test_a_round_that_nobody_answered_takes_the_first_that_does() -> None:
    r = a_round()
    assert r.judge(100.0) is RoundState.EMPTY
    assert r.answer(1, 130.0) is UpdateFate.TAKEN
    assert r.verdict is RoundState.DEADLINE
    assert r.answer(2, 131.0) is UpdateFate.LATE
    failed = a_round(quorum=3)
    for node in (1, 2, 3):
        failed.lose(node, 1.0)
    assert failed.verdict is RoundState.EMPTY
    assert failed.answer(1, 2.0) is UpdateFate.TAKEN
    assert failed.verdict is RoundState.EXHAUSTED


def test_lost_nodes_close_a_round_that_cannot_go_on() -> None:
    r = a_round(quorum=3)
    r.answer(1, 1.0)
    assert r.lose(2, 2.0) is RoundState.OPEN
    assert r.lose(1, 2.0) is RoundState.OPEN  # it has answered already
    assert r.lose(8, 2.0) is RoundState.OPEN  # nobody asked it
    assert r.answer(2, 3.0) is UpdateFate.TAKEN  # it came back
    assert r.lose(3, 4.0) is RoundState.EXHAUSTED
    none = a_round()
    assert [none.lose(n, 1.0) for n in (1, 2, 3)][-1] is RoundState.EMPTY


def test_a_late_update_is_discarded_or_merged_once() -> None:
    r = Round(number=5, asked=frozenset({1, 2}), quorum=2, deadline_s=100.0)
    assert r.answer(7, 1.0, of_round=4) is UpdateFate.LATE
    merging = Round(number=5, asked=frozenset({1, 2}), quorum=2, deadline_s=100.0, merges=True)
    assert merging.answer(7, 1.0, of_round=4, was_asked=False) is UpdateFate.UNASKED  # nobody wants it
    assert merging.answer(7, 1.0, of_round=4) is UpdateFate.MERGED
    assert merging.answer(7, 1.0, of_round=3) is UpdateFate.LATE  # once a node
    assert merging.answer(1, 1.0, of_round=4) is UpdateFate.LATE  # it was asked again
    assert merging.answer(1, 1.0, of_round=5) is UpdateFate.TAKEN
    assert (merging.answered, merging.merged, merging.verdict) == ({1}, {7}, RoundState.OPEN)
    assert merging.answer(2, 2.0) is UpdateFate.TAKEN
    assert merging.answer(8, 3.0, of_round=4) is UpdateFate.LATE  # closed
    nobody = Round(number=5, asked=frozenset({1}), quorum=1, deadline_s=100.0, merges=True)
    nobody.answer(7, 1.0, of_round=4)
    assert nobody.judge(100.0) is RoundState.EMPTY  # what is late makes no round


@given(st.integers(0, 50), st.floats(0, 5))
def test_the_older_the_lighter(rounds_late: int, exponent: float) -> None:
    weight = staleness_weight(rounds_late, exponent)
    assert 0 < weight <= 1
    assert staleness_weight(rounds_late + 1, exponent) <= weight
    assert staleness_weight(0, exponent) == 1.0
    assert staleness_weight(rounds_late, None) == (rounds_late == 0)


def test_the_weight_of_age_is_the_polynomial() -> None:
    assert staleness_weight(3, 0.5) == 0.5
    for rounds_late, exponent in ((-1, 0.5), (1, -0.5), (1, float("nan"))):
        with pytest.raises(ValueError, match="rounds late"):
            staleness_weight(rounds_late, exponent)


def test_a_mission_ends_at_its_target_or_after_its_rounds() -> None:
    assert finished([], 10, 0.96) is None
    assert finished([0.5, 0.97, 0.9], 10, 0.96) == "target"
    assert finished([0.5, 0.9], 10, 0.96) is None
    assert finished([0.5, 0.9], 2, 0.96) == "rounds"
    assert finished([0.5, 0.97], 2, 0.96) == "target"
    assert finished([1.0], 2, None) is None


@pytest.mark.parametrize("quorum", [0, 4])
def test_a_quorum_that_cannot_be_met(quorum: int) -> None:
    with pytest.raises(ValueError, match=f"quorum of {quorum}"):
        a_round(quorum)


@given(
    st.lists(
        st.tuples(st.sampled_from(["answer", "lose", "wait"]), st.integers(0, 4), st.floats(0, 60)),
        max_size=20,
    )
)
def test_a_round_closes_once_and_takes_nothing_after(moves: list[tuple[str, int, float]]) -> None:
    r, now = a_round(), 0.0
    for kind, node, dt in moves:
        now += dt
        before, taken = r.verdict, set(r.answered)
        if kind == "answer":
            outcome = r.answer(node, now)
            assert (outcome is UpdateFate.TAKEN) == (r.answered != taken)
        elif kind == "lose":
            r.lose(node, now)
        else:
            r.judge(now)
        if before not in (RoundState.OPEN, RoundState.EMPTY):
            assert r.verdict is before
            assert r.answered == taken
        assert r.answered <= r.asked
        assert r.verdict is not RoundState.EMPTY or not r.answered
        assert now < r.deadline_s or r.judge(now) is not RoundState.OPEN


def test_a_sparse_mean_moves_further_what_few_have_moved() -> None:
    """Of three boards one leaves the first group of each matrix, and all leave the last."""
    sparse, plain = SparseMean(SMALL), PartialAverage(SMALL)
    updates = [(weights(SMALL, seed), samples) for seed, samples in ((1, 100), (2, 300), (3, 200))]
    for index, (update, samples) in enumerate(updates):
        for name, groups in in_groups(SMALL, update).items():
            groups[-1] = 0
            if not index:
                groups[0] = 0
            assert np.shares_memory(groups, update[name])
        sparse.add(update, samples, 0.5)
        plain.add(update, samples, 0.5)
    found, mean = sparse.mean(), plain.mean()
    for t in SMALL.tensors:
        if t not in SMALL.grouped:
            assert np.array_equal(found[t.name], mean[t.name])
    for name, groups in in_groups(SMALL, found).items():
        expected = in_groups(SMALL, mean)[name].copy()
        expected[0] *= np.sqrt(600 / 500)
        assert groups == pytest.approx(expected, rel=1e-6)
        assert not groups[-1].any()
    assert found.keys() == mean.keys()


def test_where_all_move_all_a_sparse_mean_is_the_mean() -> None:
    sparse, plain = SparseMean(SMALL), PartialAverage(SMALL)
    for seed in (1, 2):
        sparse.add(weights(SMALL, seed), 10 * seed)
        plain.add(weights(SMALL, seed), 10 * seed)
    assert all(np.array_equal(sparse.mean()[name], value) for name, value in plain.mean().items())
