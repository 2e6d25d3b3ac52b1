"""Any torch module becomes two graphs with autograd's loss, gradients and statistics, or is refused by
name."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from groundstation.models.folder import write_network  # noqa: E402
from groundstation.models.from_torch import (  # noqa: E402
    Authored,
    forward_macs,
    freeze,
    infer_graph,
    train_graph,
)
from groundstation.models.tracing import UnsupportedError  # noqa: E402
from onboard.learn.graph import InferGraph, TrainGraph  # noqa: E402
from onboard.learn.networks import INFER, TRAIN, NetworkFile, PartName  # noqa: E402

CLASSES = 10


class Patches(nn.Module):
    """A small ViT: patches, a class token, positions, attention blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16) * 0.02)
        block = nn.TransformerEncoderLayer(
            16, 2, 32, 0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.blocks(x)[:, 0])


class Recurrent(nn.Module):
    """Reads an image's rows one after another."""

    def __init__(self, kind: type[Any]) -> None:
        super().__init__()
        self.rows = kind(12, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.head(self.rows(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1])


class LevelTable(nn.Module):
    """Looks pixels' levels up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.head(self.table((x * 7).long()).mean((1, 2, 3)))


class Picks(nn.Module):
    """Chooses bands, pixels and biases by lists, of which some name one entry twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = nn.Conv2d(3, 6, 3, padding=1), nn.Parameter(torch.randn(2, 5))
        self.head = nn.Linear(8 + 24 + 12 + 8, CLASSES)

    def forward(self, x: Any) -> Any:
        x = torch.tanh(self.first(x[:, [2, 0, 1]])) * 1.0
        x[:, [1, 4]] = x[:, [4, 1]] * 0.5
        rows, columns = torch.tensor([[0, 3], [3, 7]]), torch.tensor([1, 5])
        neighbours = x[:, :2, rows, columns]  # (N, 2, 2, 2)
        apart = x[:, [0, 2, 2], :, [1, 1, 5]].transpose(0, 1)  # (N, 3, 8)
        biased = x[:, :2, 0, :6] + self.bias[:, [0, 1, 1, 4, 2, 0]]  # (N, 2, 6)
        tables = x[:, 0, :2, :4] * self.bias[:, torch.tensor([[0, 1], [4, 4]])].flatten(1)  # (N, 2, 4)
        return self.head(torch.cat([part.flatten(1) for part in (neighbours, apart, biased, tables)], 1))


class Largest(nn.Module):
    """Takes the largest and smallest of maps, and puts back what a pool took where it was."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * (3 + 2 + 16), CLASSES)

    def forward(self, x: Any) -> Any:
        kept, where = functional.max_pool2d(torch.tanh(self.first(x)), 2, return_indices=True)
        x = torch.tanh(self.second(functional.max_unpool2d(kept, where, 2))).flatten(2)
        largest, smallest = x.topk(3, 2)[0], x.topk(2, 2, largest=False)[0]
        ordered = x.sort(2, descending=True)[0][:, :, ::4] * x.sort(dim=1, stable=True)[0][:, :, ::4]
        return self.head(torch.cat([largest, smallest, ordered], 2).flatten(1))


class Rolled(nn.Module):
    """Windows that are shifted, as Swin's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, CLASSES)

    def forward(self, x: Any) -> Any:
        x = torch.tanh(self.first(torch.roll(x, 3, 1)))
        x = torch.roll(x, (-2, 11), (2, 3)) * torch.roll(x, (8, 0), (-2, -1))
        return self.head(x.unfold(2, 4, 4).unfold(3, 2, 2).mean((2, 5)).flatten(1))


class Keeping(nn.Module):
    """Keeps what it computes: maps for whoever looks, and in inference a table that training made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4, 3))
        self.head = nn.Linear(144, CLASSES)
        self.table: Any = None

    def forward(self, x: Any) -> Any:
        if self.training or self.table is None:
            self.table = self.bias[:, [2, 1, 0, 0]].sum(1)
        self.maps = self.first(x) + self.table.reshape(1, 4, 1, 1)
        if self.training:
            self.table = None
        return self.head(torch.tanh(self.maps).flatten(1))


class Signs(nn.Module):
    """Weights of one bit with a straight-through gradient (Bengio et al. 2013)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3 * 64, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Any) -> Any:
        weight = self.hidden.weight
        signs = weight + (torch.sign(weight) - weight).detach()
        return self.head(torch.tanh(functional.linear(x.flatten(1), signs, self.hidden.bias)))


class Skips(nn.Module):
    """A U-Net of one level with a classifier behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up, self.joined = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(12, CLASSES, 1)

    def forward(self, x: Any) -> Any:
        first = torch.tanh(self.down(x))
        deep = torch.tanh(self.deep(functional.max_pool2d(first, 2)))
        return self.joined(torch.cat([self.up(deep), first], 1)).mean((2, 3))


class Masked(nn.Module):
    """Attention in which each of an image's rows sees those before it, and the first one sees none."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.both = nn.Linear(24, 8), nn.Linear(24, 16)
        self.head = nn.Sequential(nn.GELU("tanh"), nn.Flatten(), nn.Linear(64, CLASSES))

    def forward(self, x: Any) -> Any:
        rows = x.transpose(1, 2).flatten(2)
        key, value = self.both(rows).chunk(2, -1)
        sees = torch.ones(8, 8, dtype=torch.bool).tril(-1)
        return self.head(functional.scaled_dot_product_attention(self.query(rows), key, value, sees))


class Tied(nn.Module):
    """Shares a weight between two layers, and a whole part under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(3)
        self.rest = nn.Sequential(self.third, self.norm, nn.Tanh(), self.norm)
        self.head = nn.Linear(3 * 64, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.rest(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return self.head(self.third(x).flatten(1))


class Parametrized(nn.Module):
    """Its weights are functions of others, which bring statistics of their own."""

    def __init__(self) -> None:
        super().__init__()
        made = nn.utils.parametrizations
        self.first = made.spectral_norm(nn.Conv2d(3, 4, 3))
        self.second = made.weight_norm(nn.Linear(144, CLASSES))

    def forward(self, x: Any) -> Any:
        return self.second(torch.tanh(self.first(x)).flatten(1))


def head(*layers: Any, features: int) -> Any:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, CLASSES))


NETWORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "weights with two names": (Tied, 8),
    "weights made of others": (Parametrized, 8),
    "MLP, LayerNorm, GELU": (
        lambda: head(nn.Flatten(), nn.Linear(192, 32), nn.LayerNorm(32), nn.GELU(), features=32),
        8,
    ),
    "BatchNorm, depthwise, SiLU": (
        lambda: head(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, 2, 1, groups=8),
            nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), features=8,
        ),
        8,
    ),
    "GroupNorm, ELU": (
        lambda: head(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ELU(), features=288),
        8,
    ),
    "grouped, strided, dilated": (
        lambda: head(
            nn.Conv2d(3, 8, 3, 2, 2, 2), nn.Tanh(), nn.Conv2d(8, 12, (3, 2), (2, 1), (1, 0), groups=4),
            nn.Tanh(), nn.AdaptiveAvgPool2d((2, 3)), features=72,
        ),
        17,
    ),
    "transposed convolutions": (
        lambda: head(
            nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1),
            nn.Tanh(), nn.ConvTranspose2d(4, 4, 2, 2, groups=2), nn.AvgPool2d(4), features=64,
        ),
        8,
    ),
    "pools that overlap": (
        lambda: head(
            nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), features=32
        ),
        8,
    ),
    "resized": (
        lambda: head(
            nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=1.5, mode="bilinear"),
            nn.PixelUnshuffle(2), nn.InstanceNorm2d(16, affine=True, track_running_stats=True),
            nn.PReLU(), nn.Softplus(), features=1296,
        ),
        8,
    ),
    "borders": (
        lambda: head(
            nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.Tanh(),
            nn.ReplicationPad2d(1), nn.LeakyReLU(), features=576,
        ),
        8,
    ),
    "attention": (Patches, 16),
    "masked attention, GELU by tanh": (Masked, 8),
    "GRU": (lambda: Recurrent(nn.GRU), 4),
    "LSTM": (lambda: Recurrent(nn.LSTM), 4),
    "embedding": (LevelTable, 8),
    "chosen by lists": (Picks, 8),
    "shifted windows": (Rolled, 8),
    "largest, and put back": (Largest, 8),
    "what was computed is kept": (Keeping, 8),
    "signs": (Signs, 8),
    "U-Net": (Skips, 8),
}  # fmt: skip


def graphs(module: Any, side: int, folder: Path) -> tuple[TrainGraph, InferGraph, Authored]:
    authored = Authored(module, (3, side, side), CLASSES)
    about = NetworkFile(
        name="net", task="classify", input=authored.image, outputs=CLASSES, forward_macs=0, files={}
    )
    parts: dict[PartName, bytes] = {
        TRAIN: train_graph(authored, "net").SerializeToString(),
        INFER: infer_graph(authored, "net").SerializeToString(),
    }
    write_network(folder, about, parts)
    return TrainGraph.load(folder), InferGraph.load(folder), authored


def batch_of(count: int, side: int) -> tuple[Any, Any]:
    """Returns random images float32 (N, 3, side, side) and labels."""
    rng = np.random.default_rng(count)
    return rng.random((count, 3, side, side), dtype=np.float32), rng.integers(0, CLASSES, count)


def by_torch(module: Any, x: Any, y: Any) -> dict[str, Any]:
    """Returns torch's loss, logits and next statistics, and its gradients as one."""
    answered = module.eval()(x).detach()
    loss = functional.cross_entropy(module.train()(x), y)
    loss.backward()
    gradient = torch.cat([each.grad.ravel() for each in module.parameters()])
    statistics = {name: value for name, value in module.named_buffers() if value.is_floating_point()}
    found = {"loss": loss.detach(), "logits": answered, "gradient": gradient, **statistics}
    return {what: value.numpy() for what, value in found.items()}


def distance(ours: dict[str, Any], true: dict[str, Any]) -> float:
    """Returns the largest relative distance of all."""
    assert ours.keys() == true.keys()
    return max(float(np.linalg.norm(ours[key] - true[key]) / np.linalg.norm(true[key])) for key in true)


def error(module: Any, side: int, folder: Path, *batches: int) -> float:
    """Returns how far both graphs are from autograd in float64."""
    train, infer, _ = graphs(module, side, folder)
    state = {name: value.numpy() for name, value in module.state_dict().items() if name in train.shapes}
    found = list[float]()
    for batch in batches:
        x, y = batch_of(batch, side)
        loss, gradients, statistics = train.step(state, x, y)
        assert set(gradients) | set(statistics) == set(train.shapes)
        ours = {
            "loss": np.array(loss),
            "logits": infer.logits(state, x),
            "gradient": np.concatenate([gradients[name].ravel() for name, _ in module.named_parameters()]),
            **statistics,
        }
        exact = copy.deepcopy(module).double()
        true = by_torch(exact, torch.from_numpy(x).double(), torch.from_numpy(y))
        found.append(distance(ours, true))
    return max(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_autograds(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    build, side = NETWORKS[name]
    assert error(build(), side, tmp_path, 2, 5) < 1e-5


class Asked(nn.Module):
    """Gives a view of a parameter to a layer, as a decoder does its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.layer = nn.Parameter(torch.randn(1, 4)), nn.Linear(4, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.layer(self.query.expand(1, -1)) * x.mean((1, 2, 3))[:, None]


def test_multiply_adds_are_those_of_one_image() -> None:
    assert forward_macs(Authored(Asked(), (3, 8, 8), CLASSES)) == 4 * CLASSES


def random_network(seed: int) -> Any:
    """Returns convolutions, normalizations, pools and activations in a row, whose sizes fit."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers, channels, side = list[Any](), 3, 12
    for _ in range(draw.randint(2, 4)):
        groups = draw.choice([1, 1, channels])
        wide = groups * draw.randint(1, 3) if groups > 1 else draw.choice([4, 6, 8])
        kernel, stride = draw.choice([1, 3, 5]), draw.choice([1, 1, 2])
        if draw.random() < 0.25:
            layers.append(nn.ConvTranspose2d(channels, wide, kernel, stride, kernel // 2, groups=groups))
            side = (side - 1) * stride - 2 * (kernel // 2) + kernel
        else:
            layers.append(nn.Conv2d(channels, wide, kernel, stride, kernel // 2, groups=groups))
            side = (side - 1) // stride + 1
        channels = wide
        norms = [
            nn.BatchNorm2d(channels),
            nn.GroupNorm(1, channels),
            nn.InstanceNorm2d(channels),
            nn.Identity(),
        ]
        acts = [
            nn.Tanh(),
            nn.SiLU(),
            nn.GELU(),
            nn.Softplus(),
            nn.ELU(),
            nn.Mish(),
            nn.Sigmoid(),
            nn.Softsign(),
        ]
        layers += [draw.choice(norms) if side > 2 else nn.Identity(), draw.choice(acts)]
        if side > 4 and draw.random() < 0.5:
            layers.append(draw.choice([nn.AvgPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)]))
            side = (side - 1) // 2 + 1 if layers[-1].padding else side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, CLASSES))


def is_sound(module: Any) -> bool:
    """Says whether torch's own float32 is near its float64. It is not where a map that is nearly constant is
    normalized: rounding is then divided by a deviation of almost 0 (one in twenty draws)."""
    x, y = map(torch.from_numpy, batch_of(3, 12))
    single, double = copy.deepcopy(module), copy.deepcopy(module).double()
    return distance(by_torch(single, x, y), by_torch(double, x.double(), y)) < 5e-6


@pytest.mark.parametrize("seed", range(20))
def test_gradients_of_a_random_network_are_autograds(seed: int, tmp_path: Path) -> None:
    drawn = (random_network(seed + 1000 * again) for again in range(5))
    assert error(next(filter(is_sound, drawn)), 12, tmp_path, 3) < 1e-5


class Halves(nn.Module):
    """Lets one half of a batch answer for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, CLASSES)

    def forward(self, x: Any) -> Any:
        x = x.flatten(1)
        return self.head(x + x[: len(x) // 2].mean(0))


class Spectrum(Halves):
    def forward(self, x: Any) -> Any:
        return self.head(torch.fft.fft(x.flatten(1)).real)


@pytest.mark.parametrize(("network", "why"), [(Halves, "batch"), (Spectrum, "fft")])
def test_what_cannot_be_a_graph_is_refused_by_name(network: Any, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        train_graph(Authored(network(), (3, 8, 8), CLASSES), "net")


def test_a_frozen_parameter_goes_in_and_gets_no_gradient(tmp_path: Path) -> None:
    module = head(nn.Conv2d(3, 4, 3), nn.Tanh(), features=144)
    freeze(module, ["3.*"])
    model = train_graph(Authored(module, (3, 8, 8), CLASSES), "net")
    assert [value.name for value in model.graph.output] == ["loss", "grad.3.weight", "grad.3.bias"]
    assert "0.weight" in {value.name for value in model.graph.input}
    with pytest.raises(UnsupportedError, match=r"no parameter matches nose\.\*; the first is 0\.weight"):
        freeze(module, ["nose.*"])


def test_a_lone_image_leaves_statistics_finite(tmp_path: Path) -> None:
    """A board's last batch may be of one image, on which torch refuses to normalize."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    train, *_ = graphs(module, 8, tmp_path)
    x, y = batch_of(1, 8)
    loss, gradients, statistics = train.step(train.initial(0), x, y)
    assert np.isfinite(loss)
    assert all(np.isfinite(each).all() for each in (*gradients.values(), *statistics.values()))


def test_macs_are_counted_once_a_place() -> None:
    module = head(nn.Conv2d(3, 4, 3), nn.Tanh(), features=144)
    assert forward_macs(Authored(module, (3, 8, 8), CLASSES)) == 27 * 4 * 36 + 144 * CLASSES
