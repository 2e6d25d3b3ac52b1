"""Pixels of another kind than those of the mission's test data are refused or told, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from groundstation.cli import main as groundstation
from onboard.data import loading
from onboard.data.images import Images, fit
from onboard.data.inspection import Levels, doubts, refusal
from tests.programs import examined, onboard

GREY = Levels(means=(39.7,), stds=(79.4,))
SEEN = Levels(means=(86.4, 96.0, 103.4), stds=(52.0, 36.0, 29.0))  # as EuroSAT's test part


def mission(folder: Path, port: str, *options: str) -> Path:
    """The NODE.toml of its board."""
    made = CliRunner().invoke(groundstation, ["init", str(folder), "--node", f"pi,port={port}", *options])
    assert made.exit_code == 0, made.output
    return folder / "boards" / "pi" / "node.toml"


def put(path: Path, x: np.ndarray, images: Images) -> None:
    np.savez(path.parent / "data.npz", x=x, y=images.y, classes=np.array(images.classes))


@pytest.fixture(scope="module")
def digits() -> Images:
    return loading.load("digits", part="train").take(np.arange(120))


def test_init_writes_what_the_pixels_of_the_test_data_are_like(tmp_path: Path, port: str) -> None:
    text = mission(tmp_path / "m", port).read_text()
    test = loading.load("digits", part="test").x
    assert f"channel_means = [{test.mean():.1f}]\nchannel_stds = [{test.std():.1f}]\n" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: 255 - x, "pixels look inverted: mean 21"),
        (
            lambda x: x // 16,
            "pixels run to 15 and look scaled: mean 2, std 4 here, mean 40, std 70 in the mi",
        ),
        (lambda x: x * 0, "pixels run to 0 and look scaled"),
    ],
)
def test_what_can_hardly_be_meant_ends_before_training(
    tmp_path: Path, port: str, digits: Images, change: object, says: str
) -> None:
    path = mission(tmp_path / "m", port)
    put(path, change(digits.x), digits)  # type: ignore[operator]
    ok, line = examined(path)
    assert not ok
    assert says in line
    result = onboard("run", str(path))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert result.stderr.startswith(f"{path}: data.source: npz:{path.parent.resolve() / 'data.npz'}: {says}")
    path.write_text("".join(line for line in path.open() if not line.startswith("channel_")))
    assert examined(path)[0]


def test_what_may_be_meant_is_told(tmp_path: Path, port: str, digits: Images) -> None:
    path = mission(tmp_path / "m", port)
    put(path, digits.x, digits)
    assert "WARNING: pixels" not in examined(path)[1]
    put(path, digits.x // 4 + 100, digits)
    ok, line = examined(path)
    assert ok
    assert "WARNING: pixels are unlike those that the mission is tested on: mean 110, std 17 here" in line


def test_channels_that_are_exchanged_are_told(tmp_path: Path, port: str) -> None:
    rng = np.random.default_rng(1)
    y = np.arange(80) % 10
    x = np.clip(rng.normal(np.array(SEEN.means), 40, (80, 9, 9, 3)), 0, 255).astype(np.uint8)
    x = fit(x.transpose(0, 3, 1, 2), (3, 28, 28))
    np.savez(tmp_path / "set.npz", x_test=x, y_test=y, classes=np.arange(10))
    path = mission(tmp_path / "m", port, "--model", "lenet5-rgb", "--data", f"npz:{tmp_path / 'set.npz'}")
    for order, warned in ((x, False), (x[:, ::-1], True)):
        np.savez(path.parent / "data.npz", x=order, y=y, classes=np.arange(10))
        ok, line = examined(path)
        assert ok
        assert ("WARNING: the channels may be in another order (BGR for RGB)" in line) == warned


@pytest.mark.parametrize(
    "here",
    [
        SEEN,
        Levels(means=(39.2, 64.4, 75.9), stds=(17, 17, 17)),  # forest alone
        Levels(means=(125.6, 127.0, 135.2), stds=(49, 49, 49)),  # towns alone
        Levels(means=(165.0, 170.0, 178.0), stds=(60, 55, 50)),  # snow
    ],
)
def test_other_places_are_not_refused(here: Levels) -> None:
    assert refusal(here, SEEN, 200) == ""


def test_a_few_images_may_be_unlike_all_others(tmp_path: Path, port: str, digits: Images) -> None:
    path = mission(tmp_path / "m", port)
    few = digits.take(np.arange(5))
    put(path, 255 - few.x, few)
    assert examined(path)[0]


def test_turned_colours_are_refused_and_turned_back_are_not() -> None:
    turned = Levels(means=tuple(255 - mean for mean in SEEN.means), stds=SEEN.stds)
    assert "look inverted" in refusal(turned, SEEN, 255)
    assert "look inverted" in refusal(Levels(means=(215.3,), stds=(79.4,)), GREY, 255)
    assert doubts(SEEN, SEEN) == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"channel_means": [3.0]}, "channel_means: needs channel_stds"),
        ({"channel_means": [3.0, 4.0], "channel_stds": [1.0]}, "channel_means: must be one for each of 1 ch"),
        ({"channel_means": [300.0], "channel_stds": [1.0]}, "channel_means"),
    ],
)
def test_levels_that_are_none(tmp_path: Path, port: str, keys: dict[str, list[float]], says: str) -> None:
    path = mission(tmp_path / "m", port)
    kept = "".join(line for line in path.open() if not line.startswith("channel_"))
    path.write_text(kept + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    result = onboard("doctor", str(path))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert says in result.stderr
