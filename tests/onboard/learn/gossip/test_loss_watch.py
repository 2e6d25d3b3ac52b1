"""A jump of a node's own losses is seen once there are enough of them; what learning does is none."""

from __future__ import annotations

import math

import pytest

from onboard.learn.gossip.outliers import RECENT, LossWatch

GUESS = math.log(10)


def watched(*losses: float) -> LossWatch:
    watch = LossWatch(math.log(10))
    for loss in losses:
        watch.add(loss)
    return watch


def test_nothing_is_said_of_a_few_batches() -> None:
    watch = watched(*[100.0] * (RECENT - 1))
    assert not watch.is_sure
    assert not watch.has_jumped
    watch.add(100.0)
    assert watch.is_sure
    assert watch.has_jumped  # with nothing before, far worse than a guess is enough


@pytest.mark.parametrize(
    ("usual", "recent", "jumped"),
    [
        (0.1, 0.1, False),
        (0.1, 2.0 * GUESS - 0.01, False),  # many times the usual, and no worse than guesses of a stranger
        (0.1, 2.0 * GUESS + 0.01, True),
        (2.0, 5.9, False),  # worse than guesses, and less than three times the usual
        (2.0, 6.1, True),
    ],
)
def test_a_jump_is_far_above_both_the_usual_and_a_guess(usual: float, recent: float, jumped: bool) -> None:
    assert watched(*[usual] * 64, *[recent] * RECENT).has_jumped is jumped


def test_after_a_rollback_the_usual_is_still_known() -> None:
    watch = watched(*[2.0] * 64, *[50.0] * RECENT)
    watch.clear()
    assert not watch.is_sure
    for _ in range(RECENT):
        watch.add(5.9)
    assert not watch.has_jumped  # as it is less than three times what was usual
