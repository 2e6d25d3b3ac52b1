"""`consensus` measures the rates of its theory, with fewer coordinates less exactly, and knows wrong ones."""

from __future__ import annotations

import io
from math import comb
from pathlib import Path

import numpy as np
import pytest

from benchmarks.claims.learning import consensus
from benchmarks.claims.learning.consensus import (
    LEMMA_ROUNDS,
    LEMMA_RUNS,
    NODES,
    RHO,
    SHARES,
    at_least,
    least_averaged,
    left_of_slowest,
    measure,
    rate,
    theory,
)
from benchmarks.harness.progress import ProgressLine


def test_every_bound_of_the_issue_is_a_row_and_holds(tmp_path: Path) -> None:
    plot = tmp_path / "rates.png"
    rows = measure(ProgressLine("consensus", io.StringIO()), plot=plot, runs=10_000)
    rates = [row for row in rows if row.what.startswith("  off 1 - p")]
    lemma = [row for row in rows if "400 trials" in row.what]
    assert (len(rates), len(lemma)) == (7, 3 * 7)
    assert all(row.bound == 1e-3 for row in rates)
    assert all(row.bound is not None and row.at_least for row in lemma)
    assert all(row.holds for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_rings_eigenvalue_and_the_rates_of_its_theory() -> None:
    ring = (np.eye(NODES) + np.roll(np.eye(NODES), 1, 0) + np.roll(np.eye(NODES), -1, 0)) / 3
    assert sorted(np.linalg.eigvalsh(ring))[-2] ** 2 == pytest.approx(RHO)
    assert round(RHO, 7) == 0.6476030
    rounded = [round(theory(p), 4) for p in SHARES]
    assert rounded == [0.9648, 0.9295, 0.8943, 0.8238, 0.7533, 0.6828, 0.6476]


def test_binomial_tails_and_the_most_that_keeps_them() -> None:
    assert at_least(0.5, 4, 3) == pytest.approx((comb(4, 3) + 1) / 16)
    for p in SHARES:
        least = least_averaged(p, LEMMA_ROUNDS, 0.9)
        assert at_least(p, LEMMA_ROUNDS, least) ** LEMMA_RUNS >= 0.9
        assert least == LEMMA_ROUNDS or at_least(p, LEMMA_ROUNDS, least + 1) ** LEMMA_RUNS < 0.9


def test_a_weight_that_is_not_the_rings_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "WEIGHT", 0.32)
    assert abs(rate(left_of_slowest(0.5, 10_000, per_edge=False)) - theory(0.5)) > 2e-3
