"""What Flower's boards train is what ours do: the same network, and the same variations of the images."""

from __future__ import annotations

import numpy as np
import pytest

from onboard.data import loading
from onboard.learn.augment import augmented
from onboard.learn.graph import InferGraph, TrainGraph, prepare

torch = pytest.importorskip("torch", reason="torch is not installed")
learning = pytest.importorskip("benchmarks.ends.flower_learning")

IMAGES = loading.load("digits", (1, 28, 28), part="train", rows=60)


def test_images_vary_as_those_of_our_boards_do() -> None:
    ours, _ = augmented(IMAGES.x, IMAGES.y, np.random.default_rng(3), 1, 1.0)
    theirs = learning.varied(torch.from_numpy(IMAGES.x), np.random.default_rng(3)).numpy()
    np.testing.assert_allclose(theirs, ours, atol=2e-4)


def test_the_networks_answer_alike() -> None:
    weights = TrainGraph.load("lenet5").initial(0)
    model = learning.TorchLeNet()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    ours = InferGraph.load("lenet5").logits(weights, prepare(IMAGES.x))
    with torch.inference_mode():
        theirs = model(torch.from_numpy(prepare(IMAGES.x))).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert learning.accuracy(model, IMAGES.x, IMAGES.y) == np.mean(ours.argmax(1) == IMAGES.y)
