"""`groundstation model` writes any round's model as a file that answers as the boards do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import groundstation.cli
from groundstation.models.with_weights import fields, with_weights
from groundstation.store import store as stores
from groundstation.store.store import Store
from onboard.inference.model import METADATA, of_file
from onboard.learn.graph import InferGraph
from onboard.learn.networks import INFER
from onboard.learn.objectives import Kind
from tests.models_made import MISSION, mission_of, weights
from tests.networks import tiny

KINDS: tuple[Kind, ...] = ("classify", "segment", "regress", "reconstruct")
FORMS = ("onnx", "safetensors", "npz")


def model(folder: Path, *arguments: str | Path, code: int = 0) -> str:
    ended = CliRunner().invoke(groundstation.cli.main, ["model", str(folder), *map(str, arguments)])
    assert ended.exit_code == code, ended.output
    return ended.output.strip()


def images(graph: InferGraph) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, *graph.input_shape), np.uint8)


@pytest.mark.parametrize("network", ["lenet5", "resnet20"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_answers_as_the_boards_do(network: str, form: str, tmp_path: Path) -> None:
    folder, path, graph = (
        mission_of(tmp_path / "m", network),
        tmp_path / f"x.{form}",
        InferGraph.load(network),
    )
    told = json.loads(model(folder, "--out", path, "--json"))
    assert (told["network"], told["round"], told["value"], told["metric"]) == (network, 3, 0.7, "accuracy")
    assert told["mission"] == MISSION.hex()
    assert told["bytes"] == path.stat().st_size
    found, x = of_file(path), images(graph)
    assert found.classes == tuple(f"class {at}" for at in range(10))
    ours = graph.logits(weights(graph, 3), x.astype(np.float32) * np.float32(1 / 255))
    assert np.abs(found.logits(x) - ours).max() <= 1e-6 * max(1, np.abs(ours).max())
    assert {each.name for each in tmp_path.iterdir()} == {"m", path.name}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_any_task_is_written_with_its_weights_inside(kind: Kind, tmp_path: Path) -> None:
    folder = mission_of(tmp_path / "m", str(tiny(kind)))
    told = json.loads(model(folder, "--out", tmp_path / "x.onnx", "--json"))
    assert told["difference"] <= 1e-6
    assert of_file(tmp_path / "x.onnx").info.task == kind


def test_a_deep_network_whose_statistics_are_young_is_written_too(tmp_path: Path) -> None:
    """Rounding alone moves its logits by more than the file may be off."""
    folder, path = mission_of(tmp_path / "m", "mobilenetv3-small-64"), tmp_path / "x.onnx"
    assert json.loads(model(folder, "--out", path, "--json"))["difference"] <= 1e-5
    assert np.isfinite(of_file(path).logits(images(InferGraph.load("mobilenetv3-small-64")))).all()


def test_the_onnx_file_is_one_for_others_too(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model(mission_of(tmp_path / "m", "resnet20"), "--out", tmp_path / "x.onnx")
    read = onnx.load(tmp_path / "x.onnx")
    onnx.checker.check_model(read, full_check=True)
    assert [each.name for each in read.graph.input] == ["x"]
    (told,) = (each.value for each in read.metadata_props if each.key == METADATA)
    assert json.loads(told)["network"] == "resnet20"


def test_a_round_is_chosen_by_number_or_as_the_best(tmp_path: Path) -> None:
    folder, path = mission_of(tmp_path / "m", "lenet5"), tmp_path / "x.npz"
    assert json.loads(model(folder, "--out", path, "--round", "1", "--json"))["round"] == 1
    assert json.loads(model(folder, "--out", path, "--best", "--json"))["round"] == 2
    assert "lenet5 of round 3, accuracy 0.7" in model(folder, "--out", path)
    falling = mission_of(tmp_path / "f", str(tiny("regress")))
    assert json.loads(model(falling, "--out", path, "--best", "--json"))["round"] == 1


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder, path = mission_of(tmp_path / "m", "lenet5"), tmp_path / "x.onnx"
    assert "there are those of rounds 1, 2, 3" in model(folder, "--out", path, "--round", "9", code=2)
    assert "must end in .onnx" in model(folder, "--out", tmp_path / "x.pt", code=2)
    nowhere = tmp_path / "no" / "x.npz"
    assert model(folder, "--out", nowhere, code=1) == f"{nowhere}: No such file or directory"
    assert "not both" in model(folder, "--out", path, "--round", "1", "--best", code=2)
    assert "no round is closed" in model(mission_of(tmp_path / "n", "lenet5", ()), "--out", path, code=2)
    path.write_bytes(b"what was there")
    (folder / "mission.toml").write_text(
        (folder / "mission.toml").read_text().replace('"lenet5"', '"lenet5-rgb"')
    )
    assert "the mission was begun with" in model(folder, "--out", path, code=2)
    assert path.read_bytes() == b"what was there"


def test_models_are_kept_up_to_a_size_and_the_best_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "KEPT_MODEL_BYTES", 500)
    store = Store(tmp_path / "mission.sqlite")
    store.begin(MISSION, "m", 0, bytes(8))
    store.enter_node(1, "pi")
    for number in range(1, 21):
        store.open_round(number, b"model", [1], 0.0, 1.0)
        store.close_round(number, bytes(100), 0.9 if number == 4 else 0.5 + number / 100, 0.1, 0.5, 1.0)
    # the lowest and the highest value, then what 500 B hold when a round opens, and the round after that
    assert store.models() == [1, 4, 15, 16, 17, 18, 19, 20]
    store.close()


@pytest.mark.parametrize("cut", [1, 100])
def test_a_graph_that_is_cut_off_is_no_message(cut: int) -> None:
    network = InferGraph.load("lenet5").network
    with pytest.raises(ValueError, match="no ONNX file"):
        list(fields(network.part(INFER)[:-cut]))
    with pytest.raises(ValueError, match="takes no odd"):
        with_weights(network.part(INFER), {"odd": np.zeros(1, np.float32)}, {})
