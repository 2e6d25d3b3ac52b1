"""A demo's summary names who failed: it cannot look like a success where boards never answered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

import firmware_sim.demo.run
from firmware_sim.cli import main
from firmware_sim.demo.run import BOARDS as PLACES
from firmware_sim.demo.run import DemoConfig, memory_of, sum_up
from firmware_sim.demo.view import DemoView, Scene, summary_table
from onboard.learn.graph import TrainGraph

BOARDS = ["pi", "nano", "q8s", "q7s"]


def side(sent_bytes: int) -> dict[str, Any]:
    counts = dict.fromkeys(("lost", "collided", "cut", "flipped"), 0)
    return {"bytes": sent_bytes, "frames": 9, "airtime_s": 1.0, **counts}


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    """Two rounds, as the programs tell of them: `pi` answers both and `q7s` one, the others cannot train."""
    scene = Scene(BOARDS, parameters=1000, started_s=time.monotonic())
    for board in BOARDS:
        scene.handle(f"cable:{board}", {"up": True, "ground": side(100), "board": side(200)})
    ground: list[dict[str, Any]] = []
    for number in (1, 2):
        ground += [
            {"event": "round", "number": number, "asked": BOARDS},
            {"event": "answered", "node": "pi", "round": number},
            {
                "event": "board-failed",
                "node": "nano",
                "round": number,
                "failure": "memory",
                "why": "out of it",
            },
            {"event": "closed", "round": number, "accuracy": 0.85},
        ]
    ground.insert(1, {"event": "answered", "node": "q7s", "round": 1})
    for event in ground:
        scene.handle("ground", event)
    return sum_up(DemoConfig(out=tmp_path), scene)


def test_who_never_answered_is_named_with_the_reason(summary: dict[str, Any]) -> None:
    assert summary["never_answered"] == {"nano": "memory: out of it", "q8s": "never heard"}
    assert summary["answers"]["pi"] == {"answered": 2, "asked": 2, "failure": None}
    console = Console(record=True, width=120)
    summary_table(summary, console)
    text = console.export_text()
    assert "nano answered in 0 of 2 rounds: memory: out of it" in text
    assert "q8s answered in 0 of 2 rounds: never heard" in text
    assert "q7s answered in 1 of 2 rounds: it was too late" in text
    assert "pi answered" not in text


def test_bytes_are_compared_for_answers_alone(summary: dict[str, Any]) -> None:
    assert summary["fp32_fedavg_bytes"] == 3 * 2 * 4 * 1000
    assert summary["ratio"] == pytest.approx(24_000 / (4 * 300))


@pytest.mark.parametrize(("answered", "code"), [(False, 1), (True, 0)])
def test_the_exit_code_says_it_too(
    answered: bool, code: int, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(wishes: DemoConfig, view: DemoView) -> dict[str, Any]:
        return summary | ({"never_answered": {}} if answered else {})

    monkeypatch.setattr(firmware_sim.demo.run, "run", run)
    assert CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "out")]).exit_code == code


def test_a_large_network_gets_the_memory_that_it_needs_and_a_small_one_the_profiles() -> None:
    small, large = TrainGraph.load("lenet5"), TrainGraph.load("vit-tiny-64")
    assert [memory_of(place, small) for place in PLACES] == [256, 1024, 256]
    pi, nano, q8s = (memory_of(place, large) for place in PLACES)
    assert (nano, pi) == (1024, q8s)
    assert pi > 256
