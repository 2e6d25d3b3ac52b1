"""`groundstation export` makes a network for boards of a torch module, or says in one line why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from groundstation.cli import main  # noqa: E402
from onboard.learn.graph import InferGraph, TrainGraph  # noqa: E402
from onboard.learn.networks import Network  # noqa: E402

NETS = """
import torch
from torch import nn

def tiny(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
                         nn.Flatten(), nn.Linear(16 * width, 3))

def masks():
    return nn.Conv2d(3, 3, 3, padding=1)

class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor([2.0]))
        self.spare = nn.Linear(2, 2)
        self.spare.requires_grad_(False)
    def forward(self, x):
        return self.head(self.norm(self.trunk(x)).relu().mean((2, 3))) * self.scale

class Idle(Split):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(2, 2)

class Spectrum(Split):
    def forward(self, x):
        return self.head(torch.fft.fft(self.norm(self.trunk(x)).mean((2, 3))).real)

class Mixing(Split):
    def forward(self, x):
        return super().forward(x - x.flip(0))

number = 3

def failing():
    raise OSError("weights.pt is not there\\nand more")
"""


def run(folder: Path, *arguments: str) -> Any:
    (folder / "nets.py").write_text(NETS)
    network, *options = arguments
    return CliRunner().invoke(main, ["export", f"{folder}/nets.py:{network}", str(folder / "out"), *options])


def test_a_module_becomes_a_network_that_describes_itself(tmp_path: Path) -> None:
    options = ["--input", "3x8x8", "--class-names", "sea, land, cloud", "--mean", "0.5,0.4,0.3"]
    result = run(tmp_path, "tiny(width=2)", *options, "--std", "0.2,0.2,0.2", "--label-smoothing", "0.1")
    assert result.exit_code == 0, result.output
    assert "159 parameters learn, 0 are frozen" in result.stdout
    assert "drawn from the mission's seed" in result.stdout
    assert "comparing a batch of 33 with torch" in result.stderr
    file = Network.load(tmp_path / "out").file
    assert (file.name, file.task, file.input, file.outputs) == ("out", "classify", (3, 8, 8), 3)
    assert (file.classes, file.mean) == (("sea", "land", "cloud"), (0.5, 0.4, 0.3))
    assert file.forward_macs == 27 * 2 * 16 + 32 * 3
    assert file.image_bytes > 0
    assert file.made_with.keys() == {"spacedml-edge", "torch", "onnx"}
    graph = TrainGraph.load(tmp_path / "out")
    assert graph.takes_seed
    x, y = np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32), np.array([0, 1, 2, 0])
    losses = [graph.step(graph.initial(1), x, y, seed)[0] for seed in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]


def test_frozen_parameters_stay_and_bring_their_weights(tmp_path: Path) -> None:
    result = run(tmp_path, "Split", "--input", "3x8x8", "--classes", "3", "--train", "head.*")
    assert result.exit_code == 0, result.output
    assert "15 parameters learn" in result.stdout
    train, infer = TrainGraph.load(tmp_path / "out"), InferGraph.load(tmp_path / "out")
    assert list(train.shapes) == list(infer.shapes) == ["head.weight", "head.bias"]
    assert set(train.frozen) == {"trunk.weight", "trunk.bias", "norm.weight", "norm.bias"}
    assert set(train.initial(1)) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("task", "network", "options"),
    [
        ("segment", "masks", ("--classes", "3", "--ignore", "255", "--class-weights", "1,2,3")),
        ("regress", "Split", ("--outputs", "3",)),
        ("reconstruct", "masks", ()),
    ],
)  # fmt: skip
def test_every_task_has_its_loss(task: str, network: str, options: tuple[str, ...], tmp_path: Path) -> None:
    result = run(tmp_path, network, "--input", "3x8x8", "--task", task, "--weights", "module", *options)
    assert result.exit_code == 0, result.output
    graph = TrainGraph.load(tmp_path / "out")
    assert graph.objective.kind == task
    x = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    labels = {
        "segment": np.full((2, 8, 8), 255),
        "regress": np.zeros((2, 3), np.float32),
        "reconstruct": np.empty(0),
    }[task]
    loss, gradients, _ = graph.step(graph.initial(0), x, labels)
    if task == "segment":  # no pixel counts
        assert loss == 0
        assert not any(value.any() for value in gradients.values())
    elif task == "reconstruct":
        answers = InferGraph.load(tmp_path / "out").logits(graph.initial(0), x)
        assert loss == pytest.approx(float(np.square(answers - x).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("nothing", "nets.py: has no nothing"),
        ("number", "is a int, needs a torch.nn.Module"),
        ("failing", "nets.py:failing: OSError: weights.pt is not there"),
        ("tiny(height=3)", "unexpected keyword argument 'height'"),
        ("tiny(three)", "text needs quotes"),
        ("tiny(3", "is no name, and no call with plain arguments"),
        ("masks", "out: the network gives (N, 3, 8, 8), classify needs (N, 3)"),
        ("Idle", "out: idle.weight has no part in the loss"),
        ("Spectrum", "out: the operator _fft_r2c.default has no ONNX form here"),
    ],
)
def test_what_cannot_be_exported_is_named(network: str, why: str, tmp_path: Path) -> None:
    result = run(tmp_path, network, "--input", "3x8x8", "--classes", "3")
    assert result.exit_code == 2
    assert why in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_images_of_a_batch_that_answer_for_each_other_are_refused(tmp_path: Path) -> None:
    result = run(tmp_path, "Mixing", "--input", "3x8x8", "--classes", "3")
    assert result.exit_code == 1
    assert "an image's answer depends on its batch" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (("--input", "3x8"), "'3x8' is not CxHxW"),
        (("--input", "3x8x8"), "classify needs --classes"),
        (("--input", "3x8x8", "--classes", "3", "--mean", "1,2"), "--mean has 2 numbers, needs 3"),
        (
            ("--input", "3x8x8", "--classes", "3", "--class-names", "a,b"),
            "--class-names has 2 names, needs 3",
        ),
        (("--input", "3x8x8", "--outputs", "3"), "--outputs is not for classify"),
        (("--input", "3x8x8", "--classes", "3", "--ignore", "0"), "--ignore is not for classify"),
        (("--input", "3x8x8", "--classes", "3", "--weights", "seed", "--train", "0.*"), "--weights seed"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: tuple[str, ...], wrong: str, tmp_path: Path) -> None:
    result = run(tmp_path, "tiny", *options)
    assert result.exit_code == 2
    assert wrong in str(result.exception) + result.output


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    result = run(tmp_path, "masks", "--input", "3x8x8", "--task", "reconstruct")
    assert result.exit_code == 1
    assert "is no network's folder, as it holds thesis.tex" in result.stderr
    assert "tracing" not in result.stderr  # said before a minute of work
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
