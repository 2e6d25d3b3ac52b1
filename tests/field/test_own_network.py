"""Step 9 of docs/tutorial.md, as printed: a network that is none of the shipped ones is exported, trains two
rounds in the demo, and answers images. Only the images are others: few, and drawn here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.field.commands import blocks, the
from tests.field.machines import ROOT

pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
HEADING = "9. Train a network of your own"
BOARDS = ("raspberry-pi-4", "jetson-nano", "xiphos-q8s")
CLASSES = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
    "Residential", "River", "SeaLake",
)  # fmt: skip


def pictures(folder: Path) -> None:
    """A folder of each class, with images of 64 pixels whose colour is the class's, more or less."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for row in range(8):
            pixels = rng.integers(0, 60, (64, 64, 3)) + 19 * np.array([number, 9 - number, number % 2 * 9])
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{name}_{row}.jpg")


def as_here(line: str) -> list[str]:
    """The command with this Python's programs, and fewer images."""
    line = re.sub(r'^make demo ARGS="(.*)"$', r"firmware-sim demo \1 --images 12", line)
    program, *arguments = line.split()
    return [sys.executable, "-m", program.replace("-", "_"), *arguments]


def test_a_network_of_ones_own_as_in_the_tutorial(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    pictures(tmp_path / "EuroSAT_RGB")
    shutil.copy(tmp_path / "EuroSAT_RGB" / "River" / "River_0.jpg", tmp_path / "picture.jpg")
    printed = blocks("docs/tutorial.md", HEADING)
    told = [
        subprocess.run(
            as_here(line), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        ).stdout
        for line in [*the(printed, "groundstation export examples/"), *the(printed, "make demo")]
    ]  # fmt: skip
    exported, demonstrated, written, answered = told
    assert exported.startswith("own: own, classify, ")
    assert "Everything the run wrote: demo-out" in demonstrated
    summary = json.loads((tmp_path / "demo-out" / "summary.json").read_text())
    assert {board: answers["answered"] for board, answers in summary["answers"].items()} == dict.fromkeys(
        BOARDS, 2
    )
    assert written
    assert re.match(rf"picture\.jpg  ({'|'.join(CLASSES)}) \d+\.\d %", answered)
