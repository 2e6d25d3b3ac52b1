"""A toy optimizer, added as docs/extending.md says: by one more row and its name."""

from __future__ import annotations

import numpy as np
import pytest

from onboard.codec.layout import Floats, Layout, Weights, flat
from onboard.learn import optimizers, training
from onboard.learn.federated.local import LocalTraining
from onboard.learn.graph import TrainGraph
from onboard.learn.training import BoardTraining, Plan


class BySign:
    """Moves every weight by the rate against its gradient's sign."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.vectors: dict[str, Floats] = {}
        self.steps = 0

    def step(self, weights: Floats, gradients: Weights, rate: float) -> None:
        self.steps += 1
        for name, _, start, end in self._layout.spans:
            if name in gradients:
                weights[start:end] -= np.float32(rate) * np.sign(gradients[name]).ravel()


def test_a_toy_optimizer_trains_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.OPTIMIZERS, "by-sign", lambda layout, knobs: BySign(layout))
    monkeypatch.setattr(training, "OPTIMIZER_NAMES", (*training.OPTIMIZER_NAMES, "by-sign"))
    knobs = BoardTraining(method="fedavg", optimizer="by-sign", learning_rate=0.01, epochs=1)
    graph = TrainGraph.load("lenet5")
    start = graph.initial(0)
    x, y = np.zeros((4, 1, 28, 28), np.uint8), np.array([0, 1, 1, 2])
    run = LocalTraining(graph, start, start, x, y, Plan(training=knobs, seed=0, round=1, node=1))
    list(run.steps())
    moved = run.state()["latent"] - flat(graph.layout, start)
    assert set(np.unique(abs(moved)).round(6)) == {np.float32(0.0), np.float32(0.01)}
