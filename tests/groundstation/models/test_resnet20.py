"""ResNet-20's graphs have autograd's gradients and torch's running statistics, and learn with both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from groundstation.models.__main__ import authored
from groundstation.models.checks import DisagreementError, Original, distances
from groundstation.models.export import Made, write
from onboard.learn.federated.local import LocalTraining
from onboard.learn.graph import InferGraph, Parameters, TrainGraph, initial, prepare
from onboard.learn.networks import INFER as INFER_PART
from onboard.learn.networks import SHIPPED, TRAIN, NetworkFile
from onboard.learn.scoring import evaluate
from onboard.learn.training import BoardTraining, Plan


def original(name: str) -> Original:
    return Original(authored(name).reference, initial(TrainGraph.load(name).shapes, 0))


GRAPH, INFER = TrainGraph.load("resnet20"), InferGraph.load("resnet20")


@pytest.mark.parametrize(
    ("name", "batch"), [("resnet20", 1), ("resnet20", 2), ("resnet20", 3), ("resnet20-64", 1)]
)
def test_gradients_are_autograds_and_statistics_torchs(name: str, batch: int) -> None:
    train, infer = TrainGraph.load(name), InferGraph.load(name)
    errors = distances(train, infer, original(name), batch, seed=1)
    assert errors.keys() == {"loss", "logits", *train.shapes}
    assert all(error.is_rounding for error in errors.values()), errors


@pytest.mark.parametrize("name", ["resnet20", "resnet20-64"])
def test_the_papers_network(name: str) -> None:
    graph = TrainGraph.load(name)
    sizes = {tensor.name: tensor.size for tensor in graph.layout.tensors}
    assert sum(sizes.values()) == 269_722 + 1_376
    assert sum(sizes[buffer] for buffer in graph.buffers) == 1_376
    assert graph.buffers == tuple(name for name in graph.shapes if ".running_" in name)
    assert sum(shape[2:] == (3, 3) for shape in graph.shapes.values()) == 19
    assert graph.forward_macs == {32: 40_551_040, 64: 162_202_240}[graph.input_shape[1]]


def test_forward_macs_are_the_graphs() -> None:
    """Counted again from the shapes that onnx infers for every product in the graph."""
    model = onnx.shape_inference.infer_shapes(onnx.load(SHIPPED / "resnet20" / INFER_PART), strict_mode=True)
    sides = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim][2:]
        for value in (*model.graph.value_info, *model.graph.output)
    }
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    macs = sum(int(np.prod([*INFER.shapes[node.input[1]], *sides[node.output[0]]])) for node in products)
    assert macs == GRAPH.forward_macs


@pytest.mark.parametrize(
    ("operation", "at", "wrong"),
    [("Sub", 0, "Add"), ("Sub", -1, "Add"), ("Add", -1, "Sub"), ("Div", 0, "Mul")],
)
def test_a_wrong_gradient_or_statistic_is_not_written(
    tmp_path: Path, operation: str, at: int, wrong: str
) -> None:
    train = onnx.load(SHIPPED / "resnet20" / TRAIN)
    [node for node in train.graph.node if node.op_type == operation][at].op_type = wrong
    about = NetworkFile(
        name="resnet20", task="classify", input=(3, 32, 32), outputs=10, forward_macs=1, files={}
    )
    parts = {
        TRAIN: train.SerializeToString(),
        INFER_PART: (SHIPPED / "resnet20" / INFER_PART).read_bytes(),
    }
    with pytest.raises(DisagreementError, match=r"is off by .* at batch"):
        write(tmp_path, Made(about, parts), original("resnet20"))
    assert list(tmp_path.iterdir()) == []


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) of ten classes: stripes of two directions and five widths, in noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, count)
    places = np.arange(32) + rng.integers(0, 32, (count, 1))
    bars = places // (2 + y[:, None] // 2) % 2 * 120
    x = np.where((y % 2 == 0)[:, None, None], bars[:, :, None], bars[:, None, :])[:, None]
    return (x + rng.integers(0, 100, (count, 3, 32, 32))).astype(np.uint8), y


def test_a_board_trains_it_and_its_running_statistics_answer() -> None:
    x, y = stripes(200, 0)
    start = initial(GRAPH.shapes, 1)
    nothing = {name: np.zeros_like(value) for name, value in start.items()}
    plan = Plan(
        training=BoardTraining(method="fedavg", epochs=3, shift_pixels=0, distortion=0.0),
        seed=0, round=1, node=1,
    )  # fmt: skip
    training = LocalTraining(GRAPH, nothing, start, x, y, plan)
    losses = [step.loss for step in training.steps()]
    trained: Parameters = training.result().weights  # type: ignore[union-attr]  # fedavg is dense
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    *_, score = evaluate(INFER, trained, *stripes(100, 1))
    assert score.value > 0.6
    *_, without = evaluate(
        INFER, {**trained, **{name: start[name] for name in GRAPH.buffers}}, *stripes(100, 1)
    )
    assert without.value < score.value


def test_a_variance_that_mixing_left_below_zero_still_answers() -> None:
    start = initial(GRAPH.shapes, 3)
    start["layer2.1.bn1.running_var"][:] = -0.01
    assert np.isfinite(INFER.logits(start, prepare(stripes(4, 3)[0]))).all()


def test_buffers_go_a_tenth_of_the_way_and_take_no_gradient() -> None:
    x, y = stripes(8, 2)
    start = initial(GRAPH.shapes, 3)
    _, gradients, buffers = GRAPH.step(start, prepare(x), y)
    assert set(buffers) == set(GRAPH.buffers)
    assert set(gradients) == set(GRAPH.shapes) - set(buffers)
    convolved = {**start, "bn1.running_mean": buffers["bn1.running_mean"] * np.float32(10)}
    _, _, again = GRAPH.step(convolved, prepare(x), y)
    assert again["bn1.running_mean"] == pytest.approx(convolved["bn1.running_mean"], rel=1e-5)
