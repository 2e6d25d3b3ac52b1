"""What the table's numbers rest on: the paper's cells, budgets that hold them, and runs that are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.claims.learning import table1
from benchmarks.claims.learning.table1 import CELLS, ROOM, as_fedavg, bytes_until, for_bits
from benchmarks.harness.progress import ProgressLine
from firmware_sim.fleet.cli import PRESETS, SKETCH_DOWN
from firmware_sim.fleet.result import RoundResult
from firmware_sim.fleet.simulation import FILES, FleetConfig, FleetRun, FleetSettings
from firmware_sim.runs.folder import claim

RESULT = RoundResult(
    round=1, score=0.9, loss=0.5, bits_up=0.1, bits_down=0.2, width_up=0.08, width_down=0.15,
    bytes_up=1000, bytes_down=100, airtime_up_s=1.0, airtime_down_s=0.1, energy_j=5.0, clock_s=9.0,
    asked=5, answered=5, gone=0, merged=0, late=0, refused=0,
)  # fmt: skip


def test_the_cells_are_the_papers() -> None:
    assert len(CELLS) == 9
    assert CELLS[5, 0.8] == (0.4054, 98.26)
    assert min(bits for bits, _ in CELLS.values()) == 0.3986  # "0.39 weight bit-width, the best performance"
    assert max(accuracy for _, accuracy in CELLS.values()) == 98.67


@pytest.mark.parametrize(("ratio", "bits"), [(ratio, bits) for (_, ratio), (bits, _) in CELLS.items()])
def test_a_cells_budget_is_what_pruning_leaves(ratio: float, bits: float) -> None:
    training = for_bits(ratio, bits)
    assert (training.method, training.prune_ratio) == ("spacedml", ratio)
    assert training.bits_up * (1 - ratio) == pytest.approx(ROOM * bits)
    assert training.bits_up <= training.max_bases < training.bits_up + 1
    assert training.bits_down == SKETCH_DOWN


def test_fedavg_has_as_many_epochs() -> None:
    assert as_fedavg(PRESETS["spacedml"]).epochs == 1 + 4 + 1 + 1
    fast = PRESETS["spacedml-fast"]
    same = as_fedavg(fast)
    assert (same.method, same.epochs) == ("fedavg", fast.epochs + fast.pretrain_epochs)
    assert (same.learning_rate, same.distortion) == (fast.learning_rate, fast.distortion)
    assert as_fedavg(same) == same


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.floats(0, 1))
def test_bytes_are_counted_until_the_devices_have_the_model(accuracies: list[float], wanted: float) -> None:
    run = [replace(RESULT, score=a, bytes_up=1000, bytes_down=10**n) for n, a in enumerate(accuracies)]
    found = bytes_until(run, wanted)
    reached = [n for n, accuracy in enumerate(accuracies) if accuracy >= wanted]
    if not reached:
        assert found is None
        return
    first = reached[0]
    downs = [10**n for n in range(len(run))] + [10 ** (len(run) - 1)]
    assert found == 1000 * (first + 1) + sum(downs[: first + 2])


def kept(monkeypatch: pytest.MonkeyPatch, accuracy: Callable[[FleetSettings], float]) -> list[str]:
    """Puts finished rounds into every run's folder before it is played; returns the names of the runs."""
    names: list[str] = []

    class Finished(FleetRun):
        def __init__(self, wishes: FleetConfig) -> None:
            out, rounds, reached = wishes.out, wishes.settings.rounds, accuracy(wishes.settings)
            names.append(out.name)
            out.mkdir(parents=True)
            claim(out / FILES.asked, wishes.as_json())
            results = [replace(RESULT, round=number, score=reached) for number in range(1, rounds + 1)]
            (out / FILES.results).write_text("".join(json.dumps(asdict(each)) + "\n" for each in results))
            (out / FILES.state.replace("*", str(rounds))).write_bytes(b"weights")
            super().__init__(wishes)

    monkeypatch.setattr(table1, "FleetRun", Finished)
    monkeypatch.setattr(
        "onboard.data.loading.load", lambda *_, **__: pytest.fail("a finished run was played again")
    )
    return names


def test_one_cell_runs_alone_and_is_held_to_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = kept(monkeypatch, lambda settings: 0.98 + 0.002 * settings.seed)
    rows = table1.measure(
        ProgressLine("table1", StringIO()),
        select="5",
        prune_ratio="0.8",
        part=None,
        seeds=(1, 2),
        out=tmp_path,
        data_dir=None,
    )
    assert names == ["spacedml-5-0.8-1", "spacedml-5-0.8-2"]
    accuracy, width, bits, *_ = rows
    assert (accuracy.value, accuracy.bound, accuracy.holds) == (pytest.approx(98.3), 98.26, True)
    assert (width.value, width.bound) == (pytest.approx(0.08), 0.4054)
    assert (bits.value, bits.bound) == (pytest.approx(0.1), 0.4054)


def test_the_whole_table_has_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(monkeypatch, lambda settings: 0.99 if settings.training.method == "fedavg" else 0.96)
    options = ["--out", str(tmp_path), "--seeds", "0", "--json"]
    done = CliRunner().invoke(main, ["table1", *options])
    assert done.exit_code == 1, done.output  # 96 % is below most of the paper's cells
    for k, ratio in CELLS:
        assert f"SpaceDML-{ratio}, K = {k}: accuracy" in done.output
    assert len(re.findall(r"^FedAvg, .* K = \d+: accuracy .* 99 % .* holds$", done.output, re.MULTILINE)) == 6
    assert re.search(r"Dirichlet 0.3, K = 5: spacedml-fast, accuracy +96 % +at least 97 +BROKEN", done.output)
    assert re.search(r"spacedml-fast, K = 5: runs that reach 98 % +0 of 1 +at least 1 +BROKEN", done.output)


def test_bad_seeds_are_a_line() -> None:
    done = CliRunner().invoke(main, ["table1", "--seeds", "1,x"])
    assert done.exit_code == 2
    assert "'1,x': must be whole numbers joined by commas" in done.output
