"""A ring that was killed goes on after its last whole epoch, and leaves what it would have left."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from firmware_sim.cli import main
from firmware_sim.ring.simulation import FILES, TOTALS

EPOCHS, STATE, WISHES = FILES.results, FILES.state.rstrip("*"), FILES.asked
SMALL = (
    "ring", "--data", "digits", "--nodes", "4", "--images", "40", "--batch-size", "8", "--epochs", "3",
    "--frame-bytes", "65507",
)  # fmt: skip
HARD = ("--dead", "3@0.9", "--cut", "1-2@0.2:1.5", "--patience", "0.3", "--loss", "0.2", "--values", "int8")


def run(*options: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(main, [*SMALL, *map(str, options)])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch that is over."""
    folder = tmp_path_factory.mktemp("over") / "out"
    run("--epochs", "1", "--out", folder)
    return folder


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "firmware_sim", *SMALL, *HARD, "--json", "--out", str(killed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.kill()  # in its second epoch
    assert process.returncode == -signal.SIGKILL
    assert (killed / EPOCHS).read_bytes().startswith(first)
    (state,) = killed.glob(STATE + "*")
    shutil.copytree(state, early := tmp_path / state.name)
    told = [json.loads(line) for line in run(*HARD, "--json", "--out", killed).splitlines()]
    assert [epoch["epoch"] for epoch in told] == [1, 2, 3]
    run(*HARD, "--out", whole)
    kept = (whole / EPOCHS).read_bytes()
    assert (killed / EPOCHS).read_bytes() == kept
    assert sorted(path.name for path in killed.iterdir()) == [EPOCHS, "lock", WISHES, "ring.png"]
    # Killed before the older state went: it does no harm.
    shutil.copytree(early, killed / early.name)
    epoch = int(early.name.removeprefix(STATE))
    (killed / EPOCHS).write_bytes(b"".join(kept.splitlines(keepends=True)[:epoch]))
    run(*HARD, "--out", killed)
    assert (killed / EPOCHS).read_bytes() == kept


def test_a_run_that_is_over_is_told_and_not_played_again(over: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "onboard.data.loading.load", lambda *_, **__: pytest.fail("a finished run was played again")
    )
    assert run("--epochs", "1", "--json", "--out", over) == (over / EPOCHS).read_text()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("--epochs 2", "epochs 1, not 2"),
        ("--loss 0.1", "link.frame_loss 0.0, not 0.1"),
        ("--momentum 0.8", "recipe.momentum 0.9, not 0.8"),
        ("--dead 3@20", "dead.3 None, not 20.0"),
        ("--cut 1-2@3:4", "cuts.1-2 None, not [3.0, 4.0]"),
        ("--data mnist", "data 'digits', not 'mnist'"),
    ],
)
def test_other_settings_are_refused_in_a_line(over: Path, options: str, what: str) -> None:
    kept = (over / WISHES).read_bytes()
    told = run("--epochs", "1", *options.split(), "--out", over, code=2)
    line = f"firmware-sim: {over}: holds a run with {what}; choose another folder with --out"
    assert told.splitlines() == [line]
    assert (over / WISHES).read_bytes() == kept


def test_a_folder_that_is_not_its_own_is_left_alone(tmp_path: Path, over: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "exists and is no ring's folder" in run("--out", tmp_path, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert "holds a run on the virtual clock" in run("--processes", "--out", over, code=2)


def test_a_state_that_is_none_is_named(tmp_path: Path) -> None:
    run("--epochs", "1", "--out", tmp_path)
    kept = json.loads((tmp_path / WISHES).read_text())
    (tmp_path / WISHES).write_text(json.dumps(kept | {"epochs": 2}))
    (tmp_path / f"{STATE}1").mkdir()
    (tmp_path / f"{STATE}1" / TOTALS).write_bytes(b"none")
    assert f"{tmp_path}: not a ring's state" in run("--epochs", "2", "--out", tmp_path, code=2)


def test_fewer_images_than_asked_for_are_told_of(tmp_path: Path) -> None:
    told = run("--epochs", "1", "--images", "400", "--batch-size", "99", "--out", tmp_path)
    assert told.splitlines()[0] == "359 images a node: digits has no more"
