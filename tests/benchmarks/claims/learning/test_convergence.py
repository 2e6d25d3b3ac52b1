"""What `convergence` rests on: runs are played once and kept, curves add up, bounds are held."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.claims.learning import convergence
from benchmarks.claims.learning.convergence import (
    CENTRAL,
    DENSE,
    METHODS,
    SPARSE,
    ConvergenceBench,
    ConvergenceSettings,
    Point,
    measure,
    points_of,
)
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from firmware_sim.fleet.cli import PRESETS
from tests.benchmarks.claims.learning.test_table1 import RESULT

TRY = ("convergence", "--data", "digits", "--epochs", "1", "--json")
ONLY = ("--method", DENSE, "--method", SPARSE, "--method", CENTRAL)


def test_a_run_is_played_once_and_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*TRY, *ONLY, "--out", str(tmp_path / "out"))
    played = CliRunner().invoke(main, options)
    rows = {row["what"]: row["value"] for row in json.loads(played.stdout.splitlines()[-1])["rows"]}
    assert rows[f"{DENSE}: accuracy after 1 epochs"] > 10
    sent = [value for what, value in rows.items() if what == "  sent on all links"]
    assert sent, played.output
    monkeypatch.setattr(
        "onboard.data.loading.load", lambda *_, **__: pytest.fail("a finished run was played again")
    )
    plot = tmp_path / "curves.png"
    again = CliRunner().invoke(main, [*options, "--plot", str(plot)])
    assert again.stdout == played.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    options = (*TRY, "--method", SPARSE, "--out", str(tmp_path))
    assert CliRunner().invoke(main, options).exit_code == 0
    (path,) = tmp_path.iterdir()
    assert path.name == "digits-1-rd-psgd-0.1-0.json"
    kept = json.loads(path.read_bytes())
    kept["asked"]["settings"]["recipe"]["learning_rate"] *= 2
    path.write_text(json.dumps(kept))
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 2
    assert f"{path}: holds a run with other settings" in done.output


class Cut(ProgressLine):
    """Ends the program in the second epoch."""

    def __call__(self, stage: str, left_s: float | None = None) -> None:
        if "epoch 2" in stage:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_after_its_last_epoch(tmp_path: Path) -> None:
    task = replace(convergence.TASKS["digits"], epochs=2, images=32)
    tell, told = ProgressLine("convergence", io.StringIO()), io.StringIO()
    whole = ConvergenceBench(task, tmp_path / "whole", None, tell).ring(SPARSE, 0)
    with pytest.raises(KeyboardInterrupt):
        ConvergenceBench(task, tmp_path / "cut", None, Cut("convergence", io.StringIO())).ring(SPARSE, 0)
    assert (
        ConvergenceBench(task, tmp_path / "cut", None, ProgressLine("convergence", told)).ring(SPARSE, 0)
        == whole
    )
    assert "epoch 2 of 2" in told.getvalue()
    assert "epoch 1 of 2" not in told.getvalue()
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["digits-2-rd-psgd-0.1-0.json"]


def rows_of(monkeypatch: pytest.MonkeyPatch, below: dict[str, float]) -> list[Row]:
    """The table of MNIST if every run ends at 98 %, but for what a method is `below` that."""

    def run(self: ConvergenceBench, name: str, seed: int) -> list[Point]:
        accuracy = 0.98 - below.get(name, 0) / 100
        return [Point(epoch, accuracy - 0.001 * (8 - epoch), 10**6 * epoch) for epoch in range(1, 9)]

    monkeypatch.setattr(ConvergenceBench, "ring", run)
    monkeypatch.setattr(ConvergenceBench, "central", lambda self, seed: run(self, CENTRAL, seed))
    return measure(
        ProgressLine("convergence", io.StringIO()), ConvergenceSettings(data="mnist", out=Path("unused"))
    )


@pytest.mark.parametrize(("below", "holds"), [(0.4, True), (0.6, False)])
def test_p_of_a_tenth_is_held_to_dense(monkeypatch: pytest.MonkeyPatch, below: float, holds: bool) -> None:
    rows = rows_of(monkeypatch, {SPARSE: below, CENTRAL: 50.0})
    (bound,) = (row for row in rows if row.bound is not None)
    assert (bound.what, bound.bound, bound.holds) == ("  below D-PSGD", 0.5, holds)
    assert bound.value == pytest.approx(below)
    assert {row.what.partition(":")[0] for row in rows if "accuracy" in row.what} == {*METHODS, CENTRAL}
    moved = [row.value for row in rows if "moved" in row.what]
    assert moved == [pytest.approx(0.2)] * len(moved)
    assert {row.value for row in rows if "sent" in row.what} == {8.0}


def test_eurosat_may_be_further_below_and_a_try_promises_nothing() -> None:
    assert {name: task.points for name, task in convergence.TASKS.items()} == {
        "mnist": 0.5, "eurosat": 1.5, "eurosat-full": 1.5, "digits": None
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=9))
def test_a_fleets_rounds_are_points_after_their_epochs(sent: list[tuple[int, int]]) -> None:
    training = PRESETS["spacedml-fast"]
    rounds = [replace(RESULT, round=n, bytes_up=up, bytes_down=down) for n, (up, down) in enumerate(sent, 1)]
    points = points_of(rounds, training)
    assert [point.epoch for point in points] == [1 + 10 * n for n in range(1, len(sent) + 1)]
    assert points[-1].bytes_sent == sum(up + down for up, down in sent)
