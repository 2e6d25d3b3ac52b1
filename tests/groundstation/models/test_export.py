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

class Named(Split):
    def forward(self, x):
        return {"out": super().forward(x), "aux": x}

class Pair(nn.Module):
    @classmethod
    def sized(cls, width):
        from beside import Inner
        return nn.DataParallel(Inner(width))

class Listed(Split):
    def __init__(self):
        super().__init__()
        self.extra = [nn.Parameter(torch.zeros(3))]
    def forward(self, x):
        return super().forward(x) + self.extra[0]

class Asking(Split):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)

class Half(Split):
    def forward(self, x):
        return super().forward(x.half().float())

class Broken(Split):
    def __init__(self):
        super().__init__()
        self.head.weight.data[0] = float("nan")

def fixed():
    return Split().requires_grad_(False)

def empty():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

def scripted():
    return torch.jit.script(tiny())

def unmade():
    with torch.device("meta"):
        return tiny()

def leaving():
    raise SystemExit

class Plain(nn.Module):
    # Says float32, holds a tensor that is no buffer, works on its images in place, is compiled in part, and
    # has a normalization of one value a channel.
    def __init__(self):
        super().__init__()
        self.head, self.norm = torch.compile(nn.Linear(192, 3)), nn.BatchNorm1d(3)
        self.turned = torch.randn(3, 3)
    def forward(self, x):
        x.sub_(0.5)
        first = torch.zeros(len(x), 3)
        return act(first + self.norm(self.head(x.flatten(1).float())) @ self.turned)

class Tokens(nn.Module):
    # A convolution's places as tokens: torch's gradient of one image's normalization is wrong here.
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 3)
    def forward(self, x):
        return self.head(torch.tanh(self.stem(x).flatten(2).transpose(1, 2)).mean(1))

@torch.compile
def act(x):
    return x + torch.arange(3, dtype=torch.float32)

class Gains(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(192, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.gain, self.more = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)) * self.gain) * self.more)

ready = tiny()
number = 3

def failing():
    raise OSError("weights.pt is not there\\nand more")

def mismatched():  # as an `import torchvision` does whose operators need another torch
    torch.library.register_fake("torchvision::nms")(lambda *_: None)
"""

BESIDE = """
from torch import nn

class Inner(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Flatten(), nn.Linear(192, width), nn.Linear(width, 3))
"""


def run(folder: Path, *arguments: str) -> Any:
    (folder / "nets.py").write_text(NETS)
    (folder / "beside.py").write_text(BESIDE)
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


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("nothing", "nets.py: has no nothing"),
        ("number", "is a int, needs a torch.nn.Module"),
        ("failing", "nets.py:failing: OSError: weights.pt is not there"),
        ("mismatched", "nms does not exist; torchvision, which timm imports, was built for another torch"),
        ("tiny(height=3)", "unexpected keyword argument 'height'"),
        ("tiny(three)", "text needs quotes"),
        ("tiny(3", "is no name, and no call with plain arguments"),
        ("masks", "out: the network gives (N, 3, 8, 8), classify needs (N, 3)"),
        ("Idle", "out: idle.weight has no part in the loss: take it out of the module, or freeze it"),
        ("Spectrum", "out: _fft_r2c.default: complex64 tensors are not taken"),
        ("Half", "out: _to_copy.default: float16 tensors are not taken"),
        ("Named", "out: the network gives a dict of out, aux; a graph gives one tensor"),
        ("Listed", "out: a parameter of (3,) is none of the module's, and would never learn"),
        ("Asking", "out: the network asks for a tensor's value, as by .item() or an `if`"),
        ("fixed", "out: no parameter learns: all are frozen, and --train names what shall"),
        ("empty", "out: no parameter learns: the network has none"),
        ("scripted", "nets.py:scripted: it is TorchScript, needs the module in Python"),
        ("unmade", "nets.py:unmade: NotImplementedError: Cannot copy out of meta tensor"),
        ("leaving", "nets.py:leaving: ends the program, by exit()"),
        ("ready(2)", "ready is a module already, and takes no arguments"),
        ("Split.sized()", "nets.py: has no Split.sized"),
    ],
)
def test_what_cannot_be_exported_is_named(network: str, why: str, tmp_path: Path) -> None:
    result = run(tmp_path, network, "--input", "3x8x8", "--classes", "3")
    assert result.exit_code == 2
    assert why in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    result = run(tmp_path, "Broken", "--input", "3x8x8", "--classes", "3", "--weights", "module")
    assert result.exit_code == 1
    assert "out: head.weight holds numbers that are not finite" in result.stderr


def test_code_as_people_write_it_is_taken(tmp_path: Path) -> None:
    result = run(tmp_path, "Plain", "--input", "3x8x8", "--classes", "3")
    assert result.exit_code == 0, result.output
    assert list(TrainGraph.load(tmp_path / "out").shapes)[:2] == ["head.weight", "head.bias"]
    assert "comparing a batch of 1 with torch" not in result.stderr  # which torch does not train on


def test_one_image_behind_whose_normalization_are_tokens_is_compared(tmp_path: Path) -> None:
    result = run(tmp_path, "Tokens", "--input", "3x8x8", "--classes", "3")
    assert result.exit_code == 0, result.output
    assert "comparing a batch of 1 with torch" in result.stderr


def test_a_network_that_drawn_weights_hold_still_needs_its_own(tmp_path: Path) -> None:
    options = ["--input", "3x8x8", "--classes", "3"]
    result = run(tmp_path, "Gains", *options)
    assert result.exit_code == 1
    assert "out: gain never learns from weights drawn from a seed: needs --weights module" in result.stderr
    assert run(tmp_path, "Gains", *options, "--weights", "module").exit_code == 0


def test_a_factory_may_be_a_part_of_a_class_import_later_and_wrap_what_it_makes(tmp_path: Path) -> None:
    result = run(tmp_path, "Pair.sized(4)", "--input", "3x8x8", "--classes", "3")
    assert result.exit_code == 0, result.output
    assert list(TrainGraph.load(tmp_path / "out").shapes) == ["1.weight", "1.bias", "2.weight", "2.bias"]


def test_a_file_of_a_package_imports_its_neighbours(tmp_path: Path) -> None:
    package = tmp_path / "my nets" / "clouds"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "beside.py").write_text(BESIDE)
    (package / "net.py").write_text("from .beside import Inner\n")
    arguments = ["export", f"{package}/net.py:Inner(2)", str(tmp_path / "out"), "--input", "3x8x8"]
    result = CliRunner().invoke(main, [*arguments, "--classes", "3"])
    assert result.exit_code == 0, result.output
    assert "395 parameters learn" in result.stdout


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
