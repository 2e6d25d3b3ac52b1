"""The rows of `gossip` are the issue's bounds, and its bytes those that the forms' layouts say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from benchmarks.claims.learning.gossip import BYTES_AT, OVERHEAD_BYTES, TIMED, crossover, measure, on_link
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from onboard.codec.mask import RUN

PARAMETERS = 200_000


@pytest.fixture(scope="module")
def plot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gossip") / "bytes.png"


@pytest.fixture(scope="module")
def rows(plot: Path) -> list[Row]:
    return measure(ProgressLine("gossip", io.StringIO()), plot=plot, repeats=3, parameters=PARAMETERS)


def test_times_are_bounded_by_copies_at_a_tenth_and_by_top_k(rows: list[Row]) -> None:
    copies = [row for row in rows if row.unit == "dense copies" and row.bound is not None]
    assert [(row.what, row.bound) for row in copies] == [("p = 0.1: index, extract, expand and mix", 4.0)]
    slower = [row for row in rows if row.unit == "times" and row.bound is not None]
    assert len(slower) in (len(TIMED), 2 * len(TIMED))  # with torch, where it is installed
    assert all((row.bound, row.at_least) == (10.0, True) for row in slower)
    assert all(row.value > 0 for row in rows)


def test_bytes_are_values_a_header_and_frames(rows: list[Row]) -> None:
    value = {row.what: row.value for row in rows}
    assert value["a dense exchange, with its frames"] == on_link(4 * PARAMETERS) / 1e6
    assert value["most bytes beside values and frames"] == 20
    for p in BYTES_AT:
        seed = 1e6 * value[f"p = {p:g}: with a seed"]
        expected = on_link(round(4 * p * PARAMETERS))
        assert seed == pytest.approx(expected, rel=5 * (RUN * (1 - p) / (p * PARAMETERS)) ** 0.5 + 1e-3)
    assert value["crossover with dense, seed"] == pytest.approx(1, abs=1e-3)
    assert value["crossover with dense, gaps"] == pytest.approx(0.8, abs=0.01)
    assert value["crossover with dense, bitmap"] == pytest.approx(1 - 1 / 32, abs=0.01)


def test_frames_and_crossovers() -> None:
    payload = 1400 - OVERHEAD_BYTES
    assert [on_link(size) for size in (1, payload, payload + 1)] == [23, 1400, 1423]
    assert crossover({0.5: 50, 0.75: 100, 1.0: 150}, 75) == 0.625
    assert crossover({0.5: 50, 1.0: 99}, 100) == 1.0


def test_the_plot_is_a_picture(rows: list[Row], plot: Path) -> None:
    assert plot.read_bytes().startswith(b"\x89PNG")
