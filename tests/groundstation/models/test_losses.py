"""Losses are torch's, but for batches in which nothing counts; draws are even, independent, and the same
everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from groundstation.models.checks import Original, distances  # noqa: E402
from groundstation.models.export import made, state  # noqa: E402
from groundstation.models.folder import write_network  # noqa: E402
from groundstation.models.from_torch import Authored  # noqa: E402
from groundstation.models.losses import Loss  # noqa: E402
from groundstation.models.lowering.draws import P, drawn, normals, threshold  # noqa: E402
from onboard.learn.graph import InferGraph, TrainGraph  # noqa: E402


@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 4.0)])
@pytest.mark.parametrize("ignore", [None, 255, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_masks_loss_is_torchs(weights: tuple[float, ...], ignore: int | None, smoothing: float) -> None:
    draw = torch.Generator().manual_seed(0)
    answers = torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 3, (2, 4, 5), generator=draw)
    if ignore is not None:
        y[:, 1] = ignore
    loss = Loss(kind="segment", label_smoothing=smoothing, class_weights=weights, ignore=ignore)
    weight = torch.tensor(weights, dtype=torch.float64) if weights else None
    expected = functional.cross_entropy(
        answers, y, weight, ignore_index=-100 if ignore is None else ignore, label_smoothing=smoothing
    )
    found = loss.of(answers, answers, y)
    assert found.item() == pytest.approx(expected.item())
    (ours,), (theirs,) = (torch.autograd.grad(each, [answers]) for each in (found, expected))
    assert torch.allclose(ours, theirs, atol=1e-12)


SHAPE = (64, 16, 32, 32)
GOLDEN = [[486201, 366886, 297432], [834162, 593387, 53199]]


def test_draws_are_even_and_independent() -> None:
    """Each figure is normal with deviation 1 if the draws are; 5 of it would happen once in a million."""
    numbers = drawn(123_456_789_012_345, 3, SHAPE)
    assert abs(numbers.mean() / P - 0.5) * np.sqrt(12 * numbers.size) < 5
    histogram = np.bincount(numbers.ravel() * 256 // P, minlength=256)
    chi_square = float(((histogram - histogram.mean()) ** 2 / histogram.mean()).sum())
    assert abs(chi_square - 255) / np.sqrt(2 * 255) < 5

    def hits(numbers: Any) -> Any:
        return ((numbers < threshold(0.3)) - 0.3).reshape(SHAPE[0], -1) / np.sqrt(0.21)

    ours = hits(numbers)
    pairs = [(ours[:, :-lag], ours[:, lag:]) for lag in (1, 2, 31, 32, 33, 1024)]
    pairs += [(ours[:-lag], ours[lag:]) for lag in (1, 2, 32)]
    pairs += [(ours, hits(drawn(123_456_789_012_345, layer, SHAPE))) for layer in (2, 4)]
    pairs += [(ours, hits(drawn(seed, 3, SHAPE))) for seed in (123_456_789_012_346, 0, 2**62)]
    assert max(abs(float((a * b).mean() * np.sqrt(a.size))) for a, b in pairs) < 5
    counts = [(drawn(seed, 0, (10, 50)) < threshold(0.5)).sum() for seed in range(1000)]
    assert abs(np.var(counts) / 125 - 1) * np.sqrt(500) < 5


def test_normal_draws_have_the_moments_and_tails_of_a_normal_distribution() -> None:
    found = normals(drawn(5, 0, SHAPE), drawn(5, 1, SHAPE)).ravel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((found**power).mean()) - moment) * np.sqrt(found.size / variance) < 5
    assert abs((np.abs(found) > 3).mean() / 0.0026998 - 1) * np.sqrt(0.0027 * found.size) < 5
    assert abs(float((found[1:] * found[:-1]).mean())) * np.sqrt(found.size) < 5


def test_draws_stay_what_they_are() -> None:
    assert drawn(7, 0, (2, 3)).tolist() == GOLDEN
    assert drawn(7, 0, (2, P + 1))[:, 0].tolist() == [row[0] for row in GOLDEN]


class Dropping(nn.Module):
    """Draws in all the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
        self.twice, self.whole = nn.Dropout(0.2), nn.Dropout2d(0.4)

    def forward(self, x: Any) -> Any:
        x = self.whole(self.twice(self.conv(x)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.twice(self.attention(tokens, tokens, tokens)[0])
        if self.training:  # stochastic depth, and noise
            kept = tokens.new_empty((len(tokens), 1, 1)).bernoulli_(0.8)
            tokens = tokens * kept / 0.8 + torch.rand_like(tokens)
            tokens = tokens + torch.randn_like(tokens) * torch.randn(len(tokens), 1, 4)
        return self.head(functional.dropout(tokens.mean(1), 0.25, self.training))


def test_dropout_has_autograds_gradient_with_the_same_mask(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Authored(Dropping(), (3, 4, 4), 3)
    found = made(network, "dropping")
    write_network(tmp_path / "net", found.about, found.parts)
    train, infer = TrainGraph.load(tmp_path / "net"), InferGraph.load(tmp_path / "net")
    assert train.takes_seed
    errors = distances(train, infer, Original(network.reference, state(network)), 5)
    assert max(each.graph for each in errors.values()) < 1e-5
