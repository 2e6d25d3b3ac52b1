"""LeNet-5's graphs have autograd's gradients, and a graph that has not is not written."""

from pathlib import Path

import onnx
import pytest

from groundstation.models.__main__ import authored
from groundstation.models.checks import DisagreementError, Original, distances
from groundstation.models.export import Made, write
from onboard.learn.graph import GraphError, InferGraph, TrainGraph, initial
from onboard.learn.networks import INFER, SHIPPED, TRAIN, NetworkFile

VARIANTS = ["lenet5", "lenet5-rgb"]


def original(name: str) -> Original:
    return Original(authored(name).reference, initial(TrainGraph.load(name).shapes, 0))


def shipped(name: str, part: str) -> onnx.ModelProto:
    return onnx.load(SHIPPED / name / part)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("batch", [1, 2, 3, 10, 13, 33])
def test_gradients_are_autograds(name: str, batch: int) -> None:
    train, infer = TrainGraph.load(name), InferGraph.load(name)
    errors = distances(train, infer, original(name), batch, seed=1)
    assert errors.keys() == {"loss", "logits", *train.shapes}
    assert max(error.graph for error in errors.values()) <= 1e-5, errors


def test_the_papers_network() -> None:
    sizes = {name: TrainGraph.load(name).layout.parameters for name in VARIANTS}
    assert sizes == {"lenet5": 431_080, "lenet5-rgb": 431_080 + 2 * 20 * 25}


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_macs_are_the_graphs(name: str) -> None:
    """Counted again from the shapes that onnx infers for every product in the graph."""
    model = onnx.shape_inference.infer_shapes(shipped(name, INFER), strict_mode=True)
    graph = model.graph
    dims = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim][1:]
        for value in (*graph.value_info, *graph.output)
    }
    macs = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = InferGraph.load(name).shapes[node.input[1]]
            _, *places = dims[node.output[0]]
            macs += _product(weight) * _product(tuple(places))
    assert macs == TrainGraph.load(name).forward_macs


def _product(sides: tuple[int, ...]) -> int:
    result = 1
    for side in sides:
        result *= side
    return result


@pytest.mark.parametrize("at", range(3))
def test_a_wrong_gradient_is_not_written(tmp_path: Path, at: int) -> None:
    train = shipped("lenet5", TRAIN)
    products = [node for node in train.graph.node if node.op_type == "Mul"]
    products[-1 - at].op_type = "Add"
    (tmp_path / TRAIN).write_bytes(b"what was here before")
    parts = {TRAIN: train.SerializeToString(), INFER: shipped("lenet5", INFER).SerializeToString()}
    with pytest.raises(DisagreementError, match=r"is off by .* at batch"):
        write(tmp_path, Made(about(), parts), original("lenet5"))
    assert [path.name for path in tmp_path.iterdir()] == [TRAIN]
    assert (tmp_path / TRAIN).read_bytes() == b"what was here before"


def about() -> NetworkFile:
    return NetworkFile(
        name="lenet5", task="classify", input=(1, 28, 28), outputs=10, forward_macs=1, files={}
    )


def test_graphs_of_two_networks_are_not_written(tmp_path: Path) -> None:
    train, infer = shipped("lenet5", TRAIN), shipped("lenet5-rgb", INFER)
    parts = {TRAIN: train.SerializeToString(), INFER: infer.SerializeToString()}
    with pytest.raises(GraphError, match="x is"):
        write(tmp_path, Made(about(), parts), original("lenet5"))
    assert list(tmp_path.iterdir()) == []
