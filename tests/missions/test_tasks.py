"""A user's own task, from `init` to `status`: masks, numbers and bare images are learned, judged and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from groundstation.cli import main
from groundstation.config import load_mission
from groundstation.store.store import Store
from onboard.config import load_node
from onboard.data import loading
from onboard.learn.graph import InferGraph
from onboard.learn.objectives import Kind
from onboard.learn.scoring import evaluate
from onboard.learn.statistics import parted
from tests.missions.clockwork import Clockwork
from tests.networks import IGNORE, tiny

Make = Callable[..., Clockwork]
SHAPE = (3, 8, 8)
TESTED = 100  # of which 40 measure running statistics
CLASSES = ("land", "sea", "ice")


def scenes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Photographs uint8 (N, 3, 8, 8) whose left part is land, the rest sea; and their masks."""
    draw = np.random.default_rng(seed)
    edges = draw.integers(2, 7, count)
    is_sea = np.broadcast_to(np.arange(8) >= edges[:, None, None], (count, 8, 8))
    colours = np.array([[120, 90, 40], [20, 60, 160]])[is_sea.astype(int)]
    noisy = np.clip(colours + draw.normal(0, 10, colours.shape), 0, 255)
    masks = is_sea.astype(np.uint8)
    masks[:, 0] = IGNORE
    return noisy.astype(np.uint8).transpose(0, 3, 1, 2), masks


def written(folder: Path, kind: Kind, count: int = 40) -> str:
    """Writes a set of that kind, and returns its source."""
    x, masks = scenes(count, 1)
    x_test, masks_test = scenes(TESTED, 2)
    if kind == "segment":
        for part, images, labels in (("train", x, masks), ("test", x_test, masks_test)):
            for name in ("images", "masks"):
                (folder / part / name).mkdir(parents=True)
            for row, (image, mask) in enumerate(zip(images, labels, strict=True)):
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / part / "images" / f"{row}.png")
                Image.fromarray(mask).save(folder / part / "masks" / f"{row}.png")
        return f"folder:{folder}"
    y = {"y": x.mean(axis=(2, 3)) / 255, "y_test": x_test.mean(axis=(2, 3)) / 255}
    np.savez(folder / "set.npz", x=x, x_test=x_test, **(y if kind == "regress" else {}))
    return f"npz:{folder / 'set.npz'}"


def begun(make: Make, folder: Path, kind: Kind, **mission: object) -> Clockwork:
    """A mission with boards whose images `sample` has made, a fifth of them held out."""
    on = make(boards=2, network=tiny(kind, normalized=True), data=written(folder, kind), **mission)
    for number, board in on.boards.items():
        board.toml.write_text(board.toml.read_text().replace("[data]", "[data]\nvalidation = 0.2"))
        done = CliRunner().invoke(main, ["sample", str(on.folder), f"board-{number}"])
        assert done.exit_code == 0, done.output
        board.parts = load_node(board.toml).shard.load_parts(on.train.objective.form)
    return on


def status(on: Clockwork, *options: str) -> Result:
    return CliRunner().invoke(main, ["status", str(on.folder), *options], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("kind", "key", "title"), [("segment", "mean_iou", "mean IoU"), ("reconstruct", "rmse", "RMSE"),
                               ("regress", "rmse", "RMSE")]
)  # fmt: skip
def test_a_task_is_trained_judged_and_told(
    clockwork: Make, tmp_path: Path, kind: Kind, key: str, title: str
) -> None:
    (tmp_path / "set").mkdir()
    on = begun(clockwork, tmp_path / "set", kind, epochs=3, method='"fedavg"', learning_rate=0.005)
    on.boot()
    on.run(lambda: on.over)
    view = json.loads(status(on, "--json").output)
    assert view["metric"] == key
    first, last = view["rounds"][0], view["rounds"][-1]
    better = last[key] > first[key] if kind == "segment" else last[key] < first[key]
    assert better, (first[key], last[key])
    infer = InferGraph.load(tiny(kind, normalized=True))
    judging, measuring = parted(on.train, on.test)
    assert measuring is not None
    weights = on.rounds._server.weights(on.store.model(2))  # type: ignore[union-attr, arg-type]
    *_, score = evaluate(infer, weights, judging.x, judging.y)
    assert last[key] == pytest.approx(score.value, abs=1e-9)
    told = [answer["validation"] for answer in last["answers"]]
    assert all(value is not None for value in told)
    assert min(told) <= last["validation"] <= max(told)
    table = status(on).output
    assert title in table
    assert "on boards" in table
    assert on.said("answered", validation=told[0]) or on.said("answered", validation=told[1])


def test_a_board_judges_its_update_on_what_it_holds_out(clockwork: Make, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    on = begun(clockwork, tmp_path / "set", "segment", rounds=1, method='"fedavg"')
    board = on.boards[1]
    taught, held = board.parts
    assert held is not None
    rows = {image.tobytes() for image in taught.x}
    assert not any(image.tobytes() in rows for image in held.x)
    assert len(taught) + len(held) == 20
    again = load_node(board.toml).shard.load_parts(on.train.objective.form)[1]
    assert again is not None
    assert np.array_equal(again.x, held.x)
    on.boot()
    on.run(lambda: on.over)
    store = Store(load_mission(on.folder).database, read_only=True)
    answer = next(each for each in store.answers(1) if each["node"] == 1)
    server = on.rounds._server  # type: ignore[union-attr]
    update, model = server.open(2, store.payload(1, 1) or b"", 1, 1)
    assert update.samples == len(taught)
    weights = {name: on.train.initial(0)[name] + move for name, move in model.reconstruct().items()}
    *_, score = evaluate(on.infer, weights, held.x, held.y)
    assert answer["validation"] == update.validation == pytest.approx(score.value, abs=1e-6)


def test_a_mission_stops_at_its_target_from_the_right_side(clockwork: Make, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    on = begun(clockwork, tmp_path / "set", "reconstruct", rounds=5, method='"fedavg"')
    toml = on.folder / "mission.toml"
    toml.write_text(toml.read_text().replace("rounds = 5", "rounds = 5\ntarget = 100.0"))
    on.boot()
    on.run(lambda: on.over)
    assert on.said("finished", why="target", rounds=1)  # any RMSE is less


def init(folder: Path, data: str, kind: Kind, *options: str) -> Result:
    words = [
        "init",
        str(folder),
        "--data",
        data,
        "--model",
        str(tiny(kind, normalized=True)),
        "--node",
        "pi,port=/dev/air",
    ]
    return CliRunner().invoke(main, [*words, *options])


def test_init_writes_the_task_for_the_boards(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    done = init(tmp_path / "m", written(tmp_path / "set", "segment"), "segment", "--target", "0.7")
    assert done.exit_code == 0, done.output
    assert f"{TESTED} images of (3, 8, 8)" in done.output
    assert "pixels of classes 0:" in done.output
    node = load_node(tmp_path / "m" / "boards" / "pi" / "node.toml")
    assert (node.shard.objective.kind, node.shard.objective.ignore) == ("segment", IGNORE)
    assert load_mission(tmp_path / "m").rules.target == 0.7
    (tmp_path / "bare").mkdir()
    done = init(tmp_path / "r", written(tmp_path / "bare", "reconstruct"), "reconstruct")
    assert done.exit_code == 0, done.output
    assert load_mission(tmp_path / "r").rules.classes is None
    assert load_node(tmp_path / "r" / "boards" / "pi" / "node.toml").shard.classes is None


@pytest.mark.parametrize(
    ("kind", "data", "options", "why"),
    [
        ("segment", "digits", (), "digits: holds a class for each image, and 'segment' needs masks"),
        ("regress", "digits", (), "digits: holds a class for each image, and 'regress' needs numbers"),
        ("segment", "", ("--target", "70"), "mission.target = 70: must be at most 1, as it is mean IoU"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_before_anything_is_written(
    tmp_path: Path, kind: Kind, data: str, options: tuple[str, ...], why: str
) -> None:
    (tmp_path / "set").mkdir()
    done = init(tmp_path / "m", data or written(tmp_path / "set", "segment"), kind, *options)
    assert done.exit_code == 2
    assert why in done.output
    assert not (tmp_path / "m").exists() or not any((tmp_path / "m").iterdir())


def test_test_data_load_as_boards_see_them(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    source = written(tmp_path / "set", "segment")
    objective = InferGraph.load(tiny("segment", normalized=True)).objective
    test = loading.load(source, SHAPE, part="test", objective=objective)
    x, masks = scenes(TESTED, 2)
    rows = [next(row for row in range(TESTED) if np.array_equal(x[row], image)) for image in test.x]
    assert np.array_equal(test.y, masks[rows])
