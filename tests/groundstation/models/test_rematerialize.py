"""A step of training holds less by computing some tensors again, and gives the same loss and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from groundstation.models.export import Made, made  # noqa: E402
from groundstation.models.folder import write_network  # noqa: E402
from groundstation.models.from_torch import Authored  # noqa: E402
from groundstation.models.memory import image_bytes  # noqa: E402
from groundstation.models.rematerialize import Tensors, rematerialized  # noqa: E402
from onboard.learn.graph import TrainGraph  # noqa: E402
from onboard.learn.networks import TRAIN  # noqa: E402

IMAGE = (3, 16, 16)


def traced(*layers: Any, share: float = 0.0) -> Made:
    return made(Authored(nn.Sequential(*layers), IMAGE, 10, recompute=share), "n")


def saving(model: onnx.ModelProto, share: float) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:]
    found.graph.node.extend(rematerialized(model, share))
    return found


def loaded(folder: Path, network: Made, train: onnx.ModelProto) -> TrainGraph:
    write_network(folder, network.about, {**network.parts, TRAIN: train.SerializeToString()})
    return TrainGraph.load(folder)


@pytest.fixture(scope="module")
def deep() -> Made:
    layers = list[Any]()
    for given in (3, *[8] * 5):
        layers += [nn.Conv2d(given, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return traced(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def test_a_deep_networks_step_holds_two_thirds_and_gives_the_same(deep: Made, tmp_path: Path) -> None:
    whole = onnx.load_model_from_string(deep.parts[TRAIN])
    less = saving(whole, 0.2)
    assert image_bytes(less) < 2 / 3 * image_bytes(whole)
    x, y = np.random.default_rng(0).random((4, *IMAGE), dtype=np.float32), np.arange(4)
    graphs = [loaded(tmp_path / name, deep, each) for name, each in (("whole", whole), ("less", less))]
    start = graphs[0].initial(1)
    (loss, gradients, statistics), again = (graph.step(start, x, y) for graph in graphs)
    assert loss == again[0]
    for one, other in ((gradients, again[1]), (statistics, again[2])):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_no_more_time_is_spent_than_is_allowed(deep: Made) -> None:
    whole = onnx.load_model_from_string(deep.parts[TRAIN])

    def time_s(model: onnx.ModelProto) -> float:
        tensors = Tensors(model, 16)
        return sum(tensors.step(node).time_s for node in model.graph.node)

    for share in (0.01, 0.05, 0.2):
        assert time_s(whole) < time_s(saving(whole, share)) <= (1 + share) * time_s(whole)
    assert saving(whole, 0.0) == whole


def test_a_dilation_wider_than_its_maps_keeps_the_gradient(tmp_path: Path) -> None:
    layers = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3, padding=6, dilation=6), nn.Flatten(), nn.Linear(64, 10)
    module, network = nn.Sequential(*layers), traced(*layers)
    graph = loaded(tmp_path / "n", network, onnx.load_model_from_string(network.parts[TRAIN]))
    x, y = np.random.default_rng(0).random((3, *IMAGE), dtype=np.float32), np.arange(3)
    start = {name: each.detach().numpy() for name, each in module.state_dict().items()}
    _, gradients, _ = graph.step(start, x, y)
    torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(gradients[name], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)
