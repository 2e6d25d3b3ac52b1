"""Shares of a data set: of one size, from a seed, no image twice, and as unlike as alpha says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_sim.runs.run import dirichlet, iid
from onboard.data.images import DataError, Labels, Rows

LABELS = st.lists(st.integers(0, 4), min_size=8, max_size=200).map(lambda y: np.array(y, np.int64))


def check(shares: list[Rows], y: Labels, devices: int, images: int) -> None:
    """Equal sizes, as many as can be, every row at most once."""
    assert len(shares) == devices
    assert {len(share) for share in shares} == {min(images, len(y) // devices)}
    together = np.concatenate(shares)
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < len(y)


@given(LABELS, st.integers(1, 8), st.integers(1, 50), st.integers(0, 2**31))
def test_iid_shares_are_disjoint_and_repeat(y: Labels, devices: int, images: int, seed: int) -> None:
    shares = iid(y, devices, images, seed)
    check(shares, y, devices, images)
    assert all(np.array_equal(a, b) for a, b in zip(shares, iid(y, devices, images, seed), strict=True))


@given(LABELS, st.integers(1, 8), st.integers(1, 50), st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_dirichlet_shares_are_disjoint_and_repeat(
    y: Labels, devices: int, images: int, alpha: float, seed: int
) -> None:
    shares = dirichlet(y, 5, devices, images, alpha, seed)
    check(shares, y, devices, images)
    again = dirichlet(y, 5, devices, images, alpha, seed)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))


def unlikeness(shares: list[Rows], y: Labels) -> float:
    """Mean share of a device's largest class."""
    return float(np.mean([np.bincount(y[share]).max() / len(share) for share in shares]))


def test_the_smaller_alpha_the_more_unlike_and_a_large_one_is_iid() -> None:
    y = np.repeat(np.arange(10), 1000)
    found = {alpha: unlikeness(dirichlet(y, 10, 40, 100, alpha, 7), y) for alpha in (0.1, 0.3, 1.0, 1000.0)}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    # Of 40 draws the mean largest share is off by 0.03 (one sigma); of a uniform mixture 100 draws give 0.16.
    drawn = np.random.default_rng(1).dirichlet([0.3] * 10, 10_000)
    assert found[0.3] == pytest.approx(drawn.max(axis=1).mean(), abs=0.09)
    assert found[1000.0] < 0.2
    assert unlikeness(iid(y, 40, 100, 7), y) < 0.2


def test_seeds_differ() -> None:
    y = np.repeat(np.arange(10), 100)
    assert not np.array_equal(iid(y, 4, 50, 1)[0], iid(y, 4, 50, 2)[0])
    assert not np.array_equal(dirichlet(y, 10, 4, 50, 0.3, 1)[0], dirichlet(y, 10, 4, 50, 0.3, 2)[0])


def test_a_class_without_images_is_in_no_mixture() -> None:
    y = np.repeat(np.array([0, 2]), 50)
    shares = dirichlet(y, 4, 5, 20, 0.3, 3)
    check(shares, y, 5, 20)
    assert {int(label) for share in shares for label in y[share]} == {0, 2}


def test_what_cannot_be_split() -> None:
    y = np.zeros(3, np.int64)
    with pytest.raises(DataError, match="3 images cannot make 4 shares"):
        iid(y, 4, 10, 0)
    with pytest.raises(DataError, match="3 images cannot make 4 shares"):
        dirichlet(y, 1, 4, 10, 0.3, 0)
    for alpha in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="alpha is"):
            dirichlet(y, 1, 2, 10, alpha, 0)
