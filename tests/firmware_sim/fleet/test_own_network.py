"""What the tutorial promises: a network of one's own is exported, trains in a fleet, and answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

import firmware_sim.cli
import groundstation.cli
import onboard.cli
from tests.models_made import mission_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_network.py"


def test_the_examples_network_trains_two_rounds_and_answers(tmp_path: Path) -> None:
    arguments = ["export", f"{EXAMPLE}:network(channels=1)", "--input", "1x28x28", "--classes", "10"]
    exported = CliRunner().invoke(groundstation.cli.main, [*arguments, str(tmp_path / "own")])
    assert exported.exit_code == 0, exported.output
    options = ["--data", "digits", "--rounds", "2", "--devices", "2", "--select", "2", "--quorum", "2"]
    fleet = ["fleet", "--model", str(tmp_path / "own"), *options, "--images", "60"]
    played = CliRunner().invoke(firmware_sim.cli.main, [*fleet, "--out", str(tmp_path / "out")])
    assert played.exit_code == 0, played.output
    first, second = (float(line.split()[1]) for line in played.output.splitlines() if "2 of 2" in line)
    assert second > max(first, 20)

    path = str(tmp_path / "model.onnx")
    mission = mission_of(tmp_path / "mission", str(tmp_path / "own"))
    written = CliRunner().invoke(groundstation.cli.main, ["model", str(mission), "--out", path])
    assert written.exit_code == 0, written.output
    pytest.importorskip("PIL.Image").fromarray(np.eye(50, dtype=np.uint8)).save(tmp_path / "picture.png")
    asked = ["infer", "--model", path, "--json", str(tmp_path / "picture.png")]
    answered = CliRunner().invoke(onboard.cli.main, asked)
    assert answered.exit_code == 0, answered.output
    assert {each["class"] for each in json.loads(answered.stdout)["classes"]} <= {
        f"class {i}" for i in range(10)
    }
