"""Running a graph: the arithmetic of a batch, refusals in one line, and first weights that never change."""

import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundstation.models.folder import write_network
from onboard.data import loading
from onboard.learn.graph import (
    GraphError,
    InferGraph,
    Parameters,
    TrainGraph,
    initial,
    prepare,
)
from onboard.learn.networks import (
    DESCRIPTION,
    SHIPPED,
    Network,
    NetworkError,
    shipped,
)
from onboard.learn.scoring import evaluate

TRAIN, INFER = TrainGraph.load("lenet5"), InferGraph.load("lenet5")
START = initial(TRAIN.shapes, seed=1)


def batch(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8), rng.integers(0, 10, n)


def test_what_a_graph_says_of_itself() -> None:
    raw = (SHIPPED / "lenet5" / DESCRIPTION).read_bytes()
    assert TRAIN.digest == hashlib.blake2s(raw, digest_size=8).digest()
    assert (TRAIN.name, TRAIN.input_shape, TRAIN.classes) == ("lenet5", (1, 28, 28), 10)
    assert tuple(TRAIN.shapes) == tuple(t.name for t in TRAIN.layout.tensors)
    assert TRAIN.layout == INFER.layout
    assert TRAIN.flops_per_image == 6 * 2_293_000
    assert TrainGraph.load(SHIPPED / "lenet5").digest == TRAIN.digest
    assert {"lenet5", "lenet5-rgb", "resnet20", "resnet20-64"} <= {*shipped()}
    assert TrainGraph.load("lenet5-rgb").input_shape == (3, 28, 28)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(0, 59))  # of 2^32, some have two equal maxima in a pool: a coin's toss
def test_a_batch_is_the_mean_of_its_images(n: int, seed: int) -> None:
    x, y = batch(n, seed)
    loss, gradients, _ = TRAIN.step(START, prepare(x), y)
    alone = [TRAIN.step(START, prepare(x[i : i + 1]), y[i : i + 1]) for i in range(n)]
    assert loss == pytest.approx(np.mean([one for one, *_ in alone]), rel=1e-5)
    for name, value in gradients.items():
        mean = np.mean([each[name] for _, each, _ in alone], axis=0)
        assert value.shape == TRAIN.shapes[name]
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, mean, rtol=0, atol=1e-5 * np.abs(mean).max() + 1e-9)


def test_a_small_step_downhill_lowers_the_loss_by_the_gradients_square() -> None:
    x, y = batch(16)
    loss, gradients, _ = TRAIN.step(START, prepare(x), y)
    square = sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values())
    rate = 1e-3 / square
    moved = {name: value - np.float32(rate) * gradients[name] for name, value in START.items()}
    lower, *_ = TRAIN.step(moved, prepare(x), y)
    assert loss - lower == pytest.approx(1e-3, rel=0.1)


def test_a_step_leaves_its_inputs_and_its_last_results_alone() -> None:
    x, y = batch(4)
    before = {name: value.copy() for name, value in START.items()}
    _, first, _ = TRAIN.step(START, prepare(x), y)
    kept = {name: value.copy() for name, value in first.items()}
    TRAIN.step(START, prepare(255 - x), y)
    assert all(np.array_equal(before[name], START[name]) for name in START)
    assert all(np.array_equal(kept[name], first[name]) for name in first)


def test_it_learns_digits() -> None:
    images, test = loading.load("digits"), loading.load("digits", part="test")
    weights: Parameters = START
    for step in range(120):
        rows = np.arange(step * 10, step * 10 + 10) % len(images)
        _, gradients, _ = TRAIN.step(weights, prepare(images.x[rows]), images.y[rows])
        weights = {name: value - np.float32(0.1) * gradients[name] for name, value in weights.items()}
    *_, before = evaluate(INFER, START, test.x, test.y)
    *_, after = evaluate(INFER, weights, test.x, test.y)
    assert before.value < 0.3
    assert after.value > 0.85
    assert after.loss < before.loss / 2


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_scores_do_not_depend_on_the_batch(size: int) -> None:
    x, y = batch(60)
    scores = list(evaluate(INFER, START, x, y, batch=size))
    assert len(scores) == -(-60 // size)
    logits = INFER.logits(START, prepare(x)).astype(np.float64)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert scores[-1].value == np.mean(logits.argmax(axis=1) == y)
    assert scores[-1].loss == pytest.approx(-np.log(probability[np.arange(60), y]).mean(), rel=1e-6)
    assert scores[-1].loss == pytest.approx(TRAIN.step(START, prepare(x), y)[0], rel=1e-5)


def test_a_score_of_huge_logits_is_finite() -> None:
    x, y = batch(5)
    weights = {**START, "fc2.weight": START["fc2.weight"] * np.float32(1e4)}
    *_, score = evaluate(INFER, weights, x, y)
    assert np.isfinite(score.loss)


def test_pixels_become_zero_to_one() -> None:
    scaled = prepare(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.ravel(), np.arange(256) / 255, atol=1e-7)


def test_first_weights_are_golden() -> None:
    drawn = initial({"w": (2, 3, 2, 2), "b": (3,), "norm.weight": (2,)}, seed=7)
    expected = np.array([0.5261913537979126, -0.28939706087112427, -0.11299894750118256, -0.1337955743074417])
    assert np.array_equal(drawn["w"].ravel()[:4], expected.astype(np.float32))
    assert drawn["b"].tolist() == [0, 0, 0]
    assert drawn["norm.weight"].tolist() == [1, 1]
    joined = b"".join(value.astype("<f4").tobytes() for value in START.values())
    assert hashlib.blake2s(joined, digest_size=8).hexdigest() == "95753a98e01b19c3"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 40), st.integers(1, 60))
def test_first_weights_are_he_uniform(seed: int, rows: int, fan_in: int) -> None:
    shapes = {"a": (rows, fan_in), "b": (rows, fan_in)}
    drawn = initial(shapes, seed)
    bound = np.float32(np.sqrt(6 / fan_in))
    assert all(np.abs(value).max() <= bound and value.dtype == np.float32 for value in drawn.values())
    assert not np.array_equal(drawn["a"], drawn["b"])
    # A tensor's draw depends on its place, not on its neighbours' sizes.
    assert np.array_equal(drawn["b"], initial({"a": (1, 1), "b": (rows, fan_in)}, seed)["b"])
    assert not np.array_equal(drawn["a"], initial(shapes, seed ^ 1)["a"])


def test_first_weights_have_the_variance_of_he() -> None:
    assert START["fc1.weight"].var() == pytest.approx(2 / 800, rel=0.01)
    assert START["fc1.weight"].mean() == pytest.approx(0, abs=4 * np.sqrt(2 / 800 / 400_000))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_named(seed: int) -> None:
    with pytest.raises(ValueError, match=str(seed)):
        initial({"w": (2, 2)}, seed)


X, Y = np.zeros((2, 1, 28, 28), np.float32), np.array([0, 9])


@pytest.mark.parametrize(
    ("weights", "x", "y", "says"),
    [
        ({k: v for k, v in START.items() if k != "fc1.bias"}, X, Y, "'fc1.bias'"),
        ({**START, "extra": X}, X, Y, "'extra'"),
        ({**START, "fc2.bias": np.zeros(11, np.float32)}, X, Y, r"fc2.bias is float32 \(11,\)"),
        ({**START, "fc2.bias": np.zeros(10)}, X, Y, "fc2.bias is float64"),
        (START, X.astype(np.float64), Y, "images are float64"),
        (START, X[:, :, :27], Y, r"need float32 \(N, 1, 28, 28\)"),
        (START, X[:0], Y[:0], "N >= 1"),
        (START, X, Y[:1], r"labels are int64 \(1,\)"),
        (START, X, Y.astype(np.int32), "labels are int32"),
        (START, X, np.array([0, 10]), "labels 0..10"),
        (START, X, np.array([-1, 3]), "labels -1..3"),
    ],
)
def test_wrong_input_is_refused(weights: Parameters, x: np.ndarray, y: np.ndarray, says: str) -> None:
    with pytest.raises(GraphError, match=says):
        TRAIN.step(weights, x, y)


def test_an_evaluation_of_nothing_is_refused() -> None:
    with pytest.raises(GraphError, match="0 images"):
        next(evaluate(INFER, START, X[:0].astype(np.uint8), Y[:0]))


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(GraphError, match=r"no model 'lenet-5'; nearest: lenet5"):
        TrainGraph.load("lenet-5")
    with pytest.raises(
        GraphError, match=r"^\.\./models/lenet-6: no such folder; `groundstation export` writes"
    ):
        TrainGraph.load("../models/lenet-6")


def network(folder: Path, train: bytes | None = None, infer: bytes | None = None, **about: object) -> Path:
    """LeNet-5's folder with other parts, whose digests fit."""
    whole = Network.load("lenet5")
    parts = {"train.onnx": train, "infer.onnx": infer}
    write_network(
        folder,
        msgspec.structs.replace(whole.file, **about),
        {name: whole.part(name) if raw is None else raw for name, raw in parts.items()},
    )
    return folder


def test_files_that_are_no_graphs_are_refused(tmp_path: Path) -> None:
    raw = Network.load("lenet5").part("train.onnx")
    for content in (b"", b"not a graph", raw[: len(raw) // 2], raw[:100] + bytes(100) + raw[200:]):
        with pytest.raises(GraphError, match=r"train\.onnx") as caught:
            TrainGraph.load(network(tmp_path / "broken", content))
        assert "\n" not in str(caught.value)
    with pytest.raises(GraphError, match="no such folder"):
        TrainGraph.load(tmp_path / "absent")
    with pytest.raises(GraphError, match=r"holds no model\.toml; `groundstation export`"):
        TrainGraph.load(tmp_path)
    infer = Network.load("lenet5").part("infer.onnx")
    with pytest.raises(GraphError, match="is no train graph"):
        TrainGraph.load(network(tmp_path / "a", train=infer))
    with pytest.raises(GraphError, match="is no infer graph"):
        InferGraph.load(network(tmp_path / "b", infer=raw))
    with pytest.raises(GraphError, match="no provider of NowhereProvider"):
        TrainGraph.load("lenet5", providers=["NowhereProvider"])


@pytest.mark.parametrize("part", ["train.onnx", "infer.onnx"])
def test_a_flipped_bit_is_found_before_use(part: str, tmp_path: Path) -> None:
    folder = network(tmp_path / "lenet5")
    raw = bytearray((folder / part).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / part).write_bytes(raw)
    kind = TrainGraph if part == "train.onnx" else InferGraph
    with pytest.raises(GraphError, match=f"{part}: is damaged"):
        kind.load(folder)
    (folder / part).unlink()
    with pytest.raises(GraphError, match=f"{part}: No such file"):
        kind.load(folder)


def test_a_description_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = network(tmp_path / "lenet5")
    path = folder / DESCRIPTION
    text = path.read_text()
    for old, new, says in (
        ('task = "classify"', 'task = "guess"', "task = 'guess'"),
        ("outputs = 10", "outputs = 0", "outputs = 0"),
        ("outputs = 10", "", "outputs: missing"),
        ('"train.onnx" = "', '"train.onnx" = "g', "files"),
        ("version = 1", "version = 2", "version = 2"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(NetworkError, match=says):
            Network.load(folder)


def test_a_network_brings_first_weights_and_keeps_some_as_they_are(tmp_path: Path) -> None:
    from safetensors.numpy import save

    drawn = initial(TRAIN.shapes, 5)
    graph = onnx.load_from_string(Network.load("lenet5").part("train.onnx"))
    for output in [each for each in graph.graph.output if each.name.startswith("grad.conv1")]:
        graph.graph.output.remove(output)
    frozen = ("conv1.weight", "conv1.bias")
    parts = {
        "train.onnx": graph.SerializeToString(), "infer.onnx": Network.load("lenet5").part("infer.onnx"),
        "params.safetensors": save(drawn),
    }  # fmt: skip
    about = msgspec.structs.replace(Network.load("lenet5").file, frozen=frozen)
    write_network(tmp_path / "tuned", about, parts)
    train, infer = TrainGraph.load(tmp_path / "tuned"), InferGraph.load(tmp_path / "tuned")
    assert [*train.shapes] == [*infer.shapes] == [name for name in TRAIN.shapes if name not in frozen]
    start = train.initial(seed=1)
    assert all(np.array_equal(start[name], drawn[name]) for name in train.shapes)
    x, y = batch(4)
    loss, gradients, _ = train.step(start, prepare(x), y)
    whole, expected, _ = TRAIN.step(drawn, prepare(x), y)
    assert loss == whole
    assert all(np.array_equal(gradients[name], expected[name]) for name in train.shapes)
    assert np.array_equal(infer.logits(start, prepare(x)), INFER.logits(drawn, prepare(x)))
    del parts["params.safetensors"]
    write_network(tmp_path / "tuned", about, parts)
    with pytest.raises(NetworkError, match=r"params\.safetensors is missing"):
        Network.load(tmp_path / "tuned")


def test_providers_that_are_absent_are_passed_over() -> None:
    graph = TrainGraph.load("lenet5", providers=["NowhereProvider", "CPUExecutionProvider"])
    assert graph.session.get_providers() == ["CPUExecutionProvider"]


def _spoiled(name: str) -> bytes:
    """A valid graph that lacks one thing a board needs."""
    model = onnx.load_from_string(Network.load("lenet5").part("train.onnx"))
    if name == "gradient":
        model.graph.output.pop()
    elif name == "image":
        (x,) = [each for each in model.graph.input if each.name == "x"]
        x.type.tensor_type.shape.dim[1].dim_param = "C"
    else:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "OUT"
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("lack", "says"),
    [
        ("gradient", r"need loss and each grad\.NAME"),
        ("image", r"needs float \(N, C, H, W\) of \(1, 28, 28\)"),
        ("parameter", "parameter conv1.weight is .* needs float of a fixed shape"),
    ],
)
def test_a_graph_without_what_a_board_needs_is_refused(tmp_path: Path, lack: str, says: str) -> None:
    with pytest.raises(GraphError, match=says):
        TrainGraph.load(network(tmp_path / "lenet5", _spoiled(lack)))


def test_an_idle_agent_imports_no_engine() -> None:
    """Resident memory counts: onnxruntime, Pillow, scikit-learn and torch wait until they are needed."""
    code = (
        "import sys, onboard.data.loading, onboard.learn.graph as g; g.initial({'w': (4, 4)}, 1);"
        "print([n for n in ('onnxruntime', 'PIL', 'sklearn', 'scipy', 'torch', 'onnx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_imports_no_torch() -> None:
    code = (
        "import sys, numpy as np; from onboard.learn.graph import *; g = TrainGraph.load('lenet5');"
        "g.step(initial(g.shapes, 1), np.ones((3, 1, 28, 28), np.float32), np.array([1, 2, 3]));"
        "print([n for n in ('torch', 'onnx', 'sklearn') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
