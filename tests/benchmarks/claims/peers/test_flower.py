"""The rows say how many times better ours is, and why nothing was measured where it was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.claims.peers import flower
from benchmarks.claims.peers.fleets import (
    ClosedRound,
    FlowerFleet,
    OurFleet,
    SharedTask,
    link_profile,
    with_method,
)
from benchmarks.claims.peers.stories import BoardCost, CutSeen, IdleSeen, RaceSeen
from hw_profiles import load_link

TASK = SharedTask(Path("task"), ("board-1", "board-2", "board-3"), 0.95, 0)


def a_race(times: float, *accuracies: float) -> RaceSeen:
    """One that costs so many times what ours does."""
    cost = BoardCost(0.3 * times, 10e6 * times, 20e6 * times)
    rounds = [ClosedRound(float(at), 3, accuracy) for at, accuracy in enumerate(accuracies)]
    return RaceSeen(cost, cost, rounds, 20 * times, int(30_000 * times), int(50_000 * times))


def seen() -> flower.Seen:
    idle = {
        "Flower": IdleSeen(28_000.0, 0.36, BoardCost(0, 280e6, 0)),
        "spacedml-fast": IdleSeen(70.0, 0.01, BoardCost(0, 28e6, 0)),
    }
    cuts = {"Flower": (1_200_000.0, 2), "fedavg": (9000.0, 3), "spacedml-fast": (1100.0, 3)}
    return {
        "Flower": a_race(250.0, 0.77, 0.96),
        "spacedml-fast": [a_race(times, 0.8, 0.94, 0.951) for times in (1.0, 0.5, 8.0)],
        "fedavg": a_race(200.0, 0.8, 0.96),
        "Flower, slow": a_race(1.0),
        "spacedml-fast, slow": a_race(1.0, 0.8, 0.96),
        **{f"{who}, idle": each for who, each in idle.items()},
        **{f"{who}, cut": CutSeen(*each, 200.0) for who, each in cuts.items()},
    }


def told(seen: flower.Seen, *, timed: bool = True) -> dict[str, list[tuple[float, float | None]]]:
    """Values and bounds by what they are of; the lines that belong to it in order."""
    by_what: dict[str, list[tuple[float, float | None]]] = {}
    for row in flower.rows("Flower 1", seen, timed=timed):
        if not row.what.startswith("  "):
            by_what[row.what.partition(": Flower 1")[0]] = lines = []
        lines.append((row.value, row.bound))
    return by_what


def test_ours_is_the_median_of_its_runs_and_flowers_stands_over_it() -> None:
    rows = told(seen())
    assert rows["rounds until 95 %"] == [(2, None), (3, None), (2 / 3, None)]
    assert rows["seconds"] == [(5000, None), (20, None), (250, 8)]
    assert rows["bytes, both ways"][:3] == [(20_000, None), (80, None), (250, 200)]
    assert rows["idle link"] == [(28_000, None), (70, None), (400, 100)]


def test_every_promise_can_be_broken() -> None:
    worse = seen() | {"Flower": a_race(2.0, 0.96)}
    worse["Flower, idle"] = IdleSeen(100.0, 0.1, BoardCost(0, 30e6, 0))
    worse["fedavg, cut"] = CutSeen(0.0, 2, 200.0)
    worse["spacedml-fast, slow"] = a_race(100.0, 0.9)
    assert all(row.holds for row in flower.rows("Flower 1", seen(), timed=True))
    broken = [row.what for row in flower.rows("Flower 1", worse, timed=True) if not row.holds]
    assert len(broken) == 7 + 2


def test_a_round_that_is_not_closed_in_time_says_so() -> None:
    lost = seen() | {"Flower, cut": CutSeen(0.0, 0, 300.0)}
    whats = [row.what for row in flower.rows("Flower 1", lost, timed=True)]
    assert "  the round is not closed in 300 s," in whats
    assert "64 kbit/s, Flower: 95 % not reached in the limit of 300 s; stopped after" in whats
    assert "64 kbit/s, spacedml-fast: 95 % after" in whats


def test_a_fast_link_promises_no_seconds_and_needs_no_slow_ones() -> None:
    names = ("Flower", "spacedml-fast", "Flower, idle", "spacedml-fast, idle")
    rows = told({name: seen()[name] for name in names}, timed=False)
    assert rows["seconds"][-1] == (250, None)
    assert rows["bytes, both ways"][2] == (250, 200)
    assert not [what for what in rows if "kbit/s" in what or "cut" in what]


@pytest.mark.parametrize(
    ("user", "options", "why"),
    [
        (1000, ["--flower-python", sys.executable], "network namespaces take root"),
        (0, [], "--flower-python names no interpreter that has flwr and torch"),
        (0, ["--flower-python", "/no/such/python"], "--flower-python /no/such/python: No such file"),
        (0, ["--flower-python", sys.executable], f"--flower-python {sys.executable}: "),
    ],
)
def test_what_cannot_be_measured_is_skipped_with_its_reason(
    user: int, options: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    done = CliRunner().invoke(main, ["flower", *options])
    assert done.exit_code == 0
    (line,) = done.output.splitlines()
    assert line.startswith(f"skipped: {why}")


def test_a_run_removes_what_killed_ones_have_left_and_no_other(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"spacedml-flower-{dead.pid}-x/a", f"spacedml-flower-{os.getpid()}-x", "spacedml-race-1-x"):
        (tmp_path / name).mkdir(parents=True)
    flower.remove_left(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"spacedml-flower-{os.getpid()}-x", "spacedml-race-1-x"]


def test_rounds_are_read_from_the_log_of_our_ground_and_from_the_file_of_flowers(tmp_path: Path) -> None:
    closed: dict[str, Any] = {"event": "closed", "at": 1e9, "answered": ["a", "b"], "accuracy": 0.5}
    yard: Any = SimpleNamespace(folder=tmp_path, said={"ground": [{"event": "serving"}, closed]})
    assert [(each.results, each.accuracy) for each in OurFleet(yard, TASK, "fedavg").closed()] == [(2, 0.5)]
    theirs = FlowerFleet(yard, TASK, tmp_path / "python")
    assert theirs.closed() == []
    lines = [{"event": "Asked"}, {"event": "Closed", "at_s": 7.0, "results": 3, "accuracy": 0.9}]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert theirs.closed() == [ClosedRound(7.0, 3, 0.9)]


def test_a_mission_has_the_link_and_the_method_of_the_benchmark(tmp_path: Path) -> None:
    link = load_link("sband-256k")
    profile = tmp_path / "link.toml"
    for rate_bps in (64e3, 2e6):
        profile.write_text(link_profile(SimpleNamespace(rate_up_bps=rate_bps)))  # type: ignore[arg-type]
        loaded = load_link(profile)
        assert (loaded.rate_up_bps, loaded.rate_down_bps) == (rate_bps, rate_bps)
        assert (loaded.mtu_bytes, loaded.delay_s) == (link.mtu_bytes, link.delay_s)
    toml = 'a = "method"\nmethod = "spacedml-fast"\nepochs = 2\npretrain_epochs = 1\n'
    assert with_method(toml, "spacedml-fast") == toml
    dense = 'a = "method"\nmethod = "fedavg"\nepochs = 3\npretrain_epochs = 1\n'
    assert with_method(toml, "fedavg") == dense
