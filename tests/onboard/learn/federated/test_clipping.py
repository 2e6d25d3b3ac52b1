"""What one answer may count for: nothing that a single board says moves the bound that holds for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.learn.federated.clipping import Bounds, Claim, Part, Share, norm, odd_one, shares

HONEST = {1: Claim(1.0, 600), 2: Claim(1.1, 500), 3: Claim(0.9, 700), 4: Claim(1.05, 600)}


def test_boards_alike_count_for_all_that_they_claim_but_the_first_of_each() -> None:
    given_, outliers = shares(HONEST, Bounds())
    assert outliers == []
    # The largest is brought to the second largest.
    assert given_[2] == Share(pytest.approx(1.05 / 1.1), 500)
    assert given_[3] == Share(1.0, 600)
    assert given_[1] == Share(1.0, 600)
    assert given_[4] == Share(1.0, 600)


def test_an_outlier_counts_as_much_as_the_largest_of_the_others_and_is_told() -> None:
    given_, (first, second) = shares(HONEST | {5: Claim(1e30, 2**32 - 1)}, Bounds())
    assert given_[5].factor * 1e30 == pytest.approx(1.1)
    assert given_[5].samples == 700
    assert [given_[node] for node in HONEST] == [Share(1.0, claim.samples) for claim in HONEST.values()]
    assert (first.node, first.what, first.value, first.median) == (5, "norm", 1e30, 1.05)
    assert (second.node, second.what, second.median) == (5, "samples", 600)
    assert second.log_fields() == {"samples": 2**32 - 1, "median": 600, "ratio": round((2**32 - 1) / 600, 2)}


def test_two_that_agree_are_held_to_the_median() -> None:
    given_, _ = shares(HONEST | {5: Claim(1e9, 10**9), 6: Claim(1e9, 10**9)}, Bounds())
    for node in (5, 6):
        assert given_[node].factor * 1e9 == pytest.approx(2 * 1.05)
        assert given_[node].samples == 2 * 600


def test_of_two_the_smaller_says_what_is_much_unless_earlier_rounds_do() -> None:
    two = {1: Claim(1.0, 600), 5: Claim(50.0, 10**6)}
    given_, outliers = shares(two, Bounds())
    assert [given_[node].factor * two[node].norm for node in two] == [1.0, 1.0]
    assert given_[5].samples == 600
    assert len(outliers) == 2
    given_, _ = shares({1: Claim(1.0, 600), 5: Claim(0.0, 1)}, Bounds(), [1.2, 1.1])
    assert given_[1].factor == 1.0  # an answer of zeros does not silence the other


def test_one_alone_is_held_to_the_rounds_before() -> None:
    assert shares({5: Claim(1e9, 600)}, Bounds())[0][5] == Share(1.0, 600)  # nobody to say what is much
    given_, (outlier,) = shares({5: Claim(1e9, 600)}, Bounds(), [1.0, 1.1])
    assert given_[5].factor * 1e9 == pytest.approx(1.1)
    assert outlier.median == 1.1


def test_bounds_can_be_turned_off_and_samples_have_one_of_their_own() -> None:
    big = HONEST | {5: Claim(40.0, 50_000)}
    off = Bounds(clip=0, clip_samples=0)
    assert shares(big, off) == ({node: Share(1.0, c.samples) for node, c in big.items()}, [])
    given_, outliers = shares(big, Bounds(clip=0, clip_samples=0, max_samples=550))
    assert [share.samples for share in given_.values()] == [550, 500, 550, 550, 550]
    assert outliers == []


def parts(*moves: list[float]) -> tuple[dict[int, Part], float]:
    """Of these moves, each of weight 1, and the length of their average."""
    vectors = np.array(moves)
    mean = vectors.mean(axis=0)
    found = {n: Part(1.0, float(np.linalg.norm(v)), float(v @ mean)) for n, v in enumerate(vectors, start=1)}
    return found, float(np.linalg.norm(mean))


def test_the_only_one_against_all_others_is_named_and_of_several_nobody() -> None:
    alike = [[1.0, 0.2, 0.0], [1.0, 0.0, 0.2], [1.0, 0.1, 0.1]]
    outlier = odd_one(*parts(*alike, [-1.0, 0.0, 0.0]))
    assert outlier is not None
    assert (outlier.node, outlier.what) == (4, "cosine")
    assert outlier.value == pytest.approx(-3.0 / np.linalg.norm([3.0, 0.3, 0.3]))
    assert outlier.log_fields()["median"] > 0
    assert outlier.keeps == 0
    assert odd_one(*parts(*alike, [0.1, 1.0, 0.0])) is None  # another direction is none against
    assert odd_one(*parts([1.0, 0.0, 0.0], [-1.0, 0.0, 0.0])) is None  # of two nobody knows
    assert odd_one(*parts([2.0, -1, -1], [-1, 2.0, -1], [-1, -1, 2.0])) is None  # each learns something else


@pytest.mark.parametrize("apart", [[0.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]], ids=["noise", "zeros"])
def test_the_only_one_that_shares_nothing_counts_half_and_of_several_all_count(apart: list[float]) -> None:
    alike = [[1.0, 0.2, 0.0, 0.0], [1.0, 0.0, 0.2, 0.0], [1.0, 0.1, 0.1, 0.0]]
    outlier = odd_one(*parts(*alike, apart))
    assert outlier is not None
    assert (outlier.node, outlier.keeps, outlier.log_fields()["counts"]) == (4, 0.5, 0.5)
    assert odd_one(*parts([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])) is None  # nobody shares anything
    turned = odd_one(*parts(*alike, apart, [-1.0, 0.0, 0.0, 0.0]))
    assert turned is not None
    assert (turned.node, turned.keeps) == (5, 0.0)  # who points against them comes first


CLAIMS = st.builds(Claim, st.floats(0, 1e300), st.integers(1, 2**32 - 1))


@given(st.lists(CLAIMS, min_size=1, max_size=9), st.lists(st.floats(0, 1e300), max_size=3))
def test_any_claims_get_a_share_that_can_be_averaged(claims: list[Claim], earlier: list[float]) -> None:
    given_, _ = shares(dict(enumerate(claims)), Bounds(), earlier)
    for node, claim in enumerate(claims):
        assert 0 <= given_[node].factor <= 1
        assert 1 <= given_[node].samples <= claim.samples


def test_a_norm_is_over_all_tensors_and_never_infinite() -> None:
    assert norm({"a": np.full((2, 2), 3.0, np.float32), "b": np.full(4, 4.0, np.float32)}) == 10.0
    assert math.isfinite(norm({"a": np.full(10**5, np.finfo(np.float32).max)}))
