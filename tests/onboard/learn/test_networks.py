"""A network is found by name or folder, and what a folder lacks or has changed is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from onboard.learn import networks
from onboard.learn.graph import GraphError, LostNetwork, TrainGraph, answering_session
from onboard.learn.networks import DESCRIPTION, Network, NetworkError, part_digest
from onboard.learn.self_check import check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(networks.SHIPPED / "lenet5", tmp_path / "mine"))


def replaced(folder: Path, old: str, new: str) -> None:
    description = folder / DESCRIPTION
    description.write_text(description.read_text().replace(old, new))


def test_a_copy_of_a_shipped_network_is_the_same_but_not_shipped(folder: Path) -> None:
    mine, shipped = Network.load(folder), Network.load("lenet5")
    assert mine.digest == shipped.digest
    assert (mine.is_shipped, shipped.is_shipped) == (False, True)
    assert mine.parameters() == {}
    assert check(mine, None) == ""


def test_a_file_that_changed_or_went_is_named(folder: Path) -> None:
    (folder / "train.onnx").write_bytes(b"damaged")
    assert "train.onnx: is damaged, or of another network" in check(Network.load(folder), None)
    (folder / "train.onnx").unlink()
    with pytest.raises(LostNetwork, match=r"train\.onnx: No such file"):
        TrainGraph.load(folder)
    replaced(folder, '"train.onnx"', '"else.onnx"')
    with pytest.raises(NetworkError, match=r"train\.onnx|else\.onnx"):
        Network.load(folder)


def test_a_folder_without_a_description_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"holds no model\.toml; `groundstation export` writes such"):
        Network.load(tmp_path)
    with pytest.raises(NetworkError, match="no such folder"):
        Network.load(tmp_path / "none")
    with pytest.raises(NetworkError, match="no model 'lenet9'; nearest: lenet5"):
        Network.load("lenet9")
    with pytest.raises(NetworkError, match="no model"):
        Network.load("x" * 5000)


def test_weights_of_a_networks_own_are_float32_and_whole(folder: Path) -> None:
    path = folder / "params.safetensors"
    for raw, says in ((b"none", "params.safetensors"), (save({"w": np.ones(2, np.float64)}), "w is float64")):
        path.write_bytes(raw)
        text = (folder / DESCRIPTION).read_text()
        with_weights = text + f'"params.safetensors" = "{part_digest(raw)}"\n'
        assert text.rindex("[files]") > text.rfind("[made_with]"), "what is appended is one of its files"
        (folder / DESCRIPTION).write_text(with_weights)
        with pytest.raises(NetworkError, match=says):
            Network.load(folder).parameters()
        (folder / DESCRIPTION).write_text(text)


def test_a_model_file_means_a_shipped_name_or_a_folder_beside_it(folder: Path) -> None:
    base = folder.parent
    assert networks.resolved("mine", base) == str(folder)
    assert networks.resolved("lenet5", base) == "lenet5"
    assert networks.resolved("there/mine", base) == str(base / "there/mine")
    assert networks.resolved("nothing", base) == "nothing"


def test_every_data_source_has_a_network_and_help_names_them_all() -> None:
    assert networks.network_for("mnist") == "lenet5"
    assert networks.network_for("eurosat") == "lenet5-rgb"
    assert Network.load(networks.network_for("eurosat-water")).file.task == "segment"
    assert all(name in networks.described() for name in networks.shipped())


def test_a_graph_without_its_weights_inside_answers_nobody() -> None:
    with pytest.raises(GraphError, match="takes more than images: its weights are not inside"):
        answering_session(networks.SHIPPED / "lenet5" / "infer.onnx")
