"""`onboard infer` as its user types it: any images, any task, beside the agent."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import groundstation.cli
import onboard.cli
from onboard.agents.federated_state import DEPLOYED, MODEL
from onboard.data.images import fit
from onboard.data.pictures import decoded
from onboard.inference.answers import softmax
from onboard.learn.graph import InferGraph, prepare
from onboard.learn.objectives import Kind
from onboard.storage.keys import new_key, save_key
from tests.models_made import deploy, mission_of, weights
from tests.networks import tiny

Image = pytest.importorskip("PIL.Image")
ROUND = 4


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A board whose mission of LeNet-5 is over."""
    save_key(tmp_path / "node.key", new_key())
    path = tmp_path / "node.toml"
    path.write_text(
        '[node]\nid = 1\nname = "pi"\nboard = "raspberry-pi-4"\n'
        '[link]\nport = "udp://127.0.0.1:9"\nprofile = "bench-udp"\n'
    )
    deploy(tmp_path / "state", ROUND)
    return path


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    """Images of several sizes and kinds, one of them broken, and what is no image."""
    folder = tmp_path / "camera"
    (folder / "later").mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for name, shape in {"a.png": (40, 60), "b.jpg": (28, 28, 3), "later/c.png": (9, 9)}.items():
        Image.fromarray(drawn.integers(0, 256, shape, np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def infer(*arguments: str | Path, input: bytes | None = None) -> Result:
    return CliRunner().invoke(onboard.cli.main, ["infer", *map(str, arguments)], input=input)


def expected(path: Path) -> np.ndarray:
    """The probabilities of the deployed model, computed without the command."""
    graph = InferGraph.load("lenet5")
    x = fit(decoded(str(path), path, 1)[None], graph.input_shape)
    return softmax(graph.logits(weights(graph, ROUND), prepare(x)))[0]


def test_a_folder_is_answered_and_a_broken_image_is_one_line(node: Path, camera: Path) -> None:
    ended = infer("--node", node, "--json", "--top", "2", "--batch", "2", camera)
    assert ended.exit_code == 1
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    names = [str(camera / name) for name in ("a.png", "b.jpg", "later/c.png")]
    assert [each["image"] for each in answers] == names
    assert ended.stderr.count("\n") == 1
    assert str(camera / "broken.png") in ended.stderr
    for answer in answers:
        truth = expected(Path(answer["image"]))
        best, second = answer["classes"]
        assert best["label"] == truth.argmax()
        assert best["class"] == str(best["label"])
        assert best["share"] == answer["confidence"] == pytest.approx(truth.max(), abs=1e-6)
        assert best["share"] >= second["share"]


def test_names_and_images_come_on_standard_input(node: Path, camera: Path) -> None:
    names = f"{camera / 'a.png'}\n\n{camera / 'b.jpg'}\r\n".encode()
    ended = infer("--node", node, "-", input=names)
    assert (ended.exit_code, ended.stdout.count("\n")) == (0, 2)
    assert ended.stdout.startswith(f"{camera / 'a.png'}  ")
    for file in ("a.png", "b.jpg"):
        one = infer("--node", node, "--json", "-", input=(camera / file).read_bytes())
        answer, same = (
            json.loads(one.stdout),
            json.loads(infer("--node", node, "--json", camera / file).stdout),
        )
        assert answer == same | {"image": "-"}


def test_a_table_has_a_line_of_headings(node: Path, camera: Path) -> None:
    table = infer("--node", node, "--csv", "--top", "2", camera / "a.png").stdout
    (row,) = csv.DictReader(io.StringIO(table))
    assert [*row] == ["image", "class1", "probability1", "class2", "probability2"]
    assert float(row["probability1"]) == pytest.approx(expected(camera / "a.png").max(), abs=1e-5)


@pytest.mark.parametrize("form", ["onnx", "npz", "safetensors"])
def test_a_file_of_the_ground_answers_too(form: str, camera: Path, tmp_path: Path) -> None:
    mission, path = mission_of(tmp_path / "m", "lenet5"), tmp_path / f"x.{form}"
    arguments = ["model", str(mission), "--out", str(path)]
    assert CliRunner().invoke(groundstation.cli.main, arguments).exit_code == 0
    told = json.loads(infer("--model", path, "--json", camera / "a.png").stdout)
    assert told["classes"][0]["class"] == f"class {told['classes'][0]['label']}"


@pytest.mark.parametrize("kind", ["segment", "regress", "reconstruct"])
def test_each_task_has_its_own_answers(kind: Kind, camera: Path, tmp_path: Path) -> None:
    mission, path, out = mission_of(tmp_path / "m", str(tiny(kind))), tmp_path / "x.onnx", tmp_path / "masks"
    CliRunner().invoke(groundstation.cli.main, ["model", str(mission), "--out", str(path)])
    files = [camera / "a.png", camera / "b.jpg"]
    told = [json.loads(line) for line in infer("--model", path, "--json", *files).stdout.splitlines()]
    table = [*csv.DictReader(io.StringIO(infer("--model", path, "--csv", *files).stdout))]
    if kind == "regress":
        assert [*told[0]["values"]] == ["0", "1", "2"]
        assert float(table[0]["1"]) == pytest.approx(told[0]["values"]["1"], rel=1e-4)
    elif kind == "reconstruct":
        assert float(table[1]["error"]) == pytest.approx(told[1]["error"], rel=1e-4) != 0
        assert "makes no masks" in infer("--model", path, "--out", out, *files).stderr
    else:
        shares = [float(table[0][f"class {label}"]) for label in range(3)]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        infer("--model", path, "--out", out, *files)
        mask = Image.open(out / "a.png")
        assert (mask.size, mask.mode) == ((60, 40), "P")  # as large as the image
        seen = np.bincount(np.asarray(mask).ravel(), minlength=3)
        assert seen.argmax() == np.argmax(shares)


def test_masks_of_images_of_one_name_do_not_replace_each_other(camera: Path, tmp_path: Path) -> None:
    mission, path = mission_of(tmp_path / "m", str(tiny("segment"))), tmp_path / "x.onnx"
    CliRunner().invoke(groundstation.cli.main, ["model", str(mission), "--out", str(path)])
    Image.open(camera / "a.png").save(camera / "a.jpg")
    infer("--model", path, "--out", tmp_path / "masks", camera / "a.png", camera)
    written = sorted(
        str(each.relative_to(tmp_path / "masks")) for each in (tmp_path / "masks").rglob("*.png")
    )
    assert written == ["a-2.png", "a-3.png", "a.png", "b.png", "later/c.png"]


def test_what_cannot_be_answered_is_one_line_and_exit_code_2(
    node: Path, camera: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    mission, weights_alone = mission_of(tmp_path / "m", str(tiny("classify"))), tmp_path / "w.npz"
    CliRunner().invoke(groundstation.cli.main, ["model", str(mission), "--out", str(weights_alone)])
    wrong = {
        ("--node", node, tmp_path / "empty"): f"no images in {tmp_path / 'empty'}",
        ("--node", tmp_path / "none.toml", camera): "none.toml: no such file",
        ("--model", tmp_path / "x.pt", camera): "needs a file that ends in .onnx",
        ("--model", tmp_path / "x.onnx", camera): "No such file",
        ("--model", tmp_path / "empty", camera): "needs a file that ends in .onnx",
        ("--model", tiny("classify") / "train.onnx", camera): "as `groundstation model` has them",
        ("--model", weights_alone, camera): "'tiny-classify' is no shipped network; an .onnx holds both",
        ("--node", node, "--out", tmp_path / "masks", camera): "makes no masks",
        ("--json", "--csv", camera): "give --json or --csv, not both",
    }
    for arguments, says in wrong.items():
        ended = infer(*arguments)
        assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1), ended.output
        assert says in ended.stderr
    assert infer("--node", node, tmp_path / "no.png").exit_code == 1
    deployed = tmp_path / "state" / DEPLOYED
    deployed.write_bytes(deployed.read_bytes()[:-1] + b"?")
    assert "damaged" in infer("--node", node, camera).stderr


def test_an_image_that_is_none_or_vast_is_one_line_at_most(
    node: Path, camera: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (camera / "empty.png").touch()
    Image.new("1", (9_500, 9_500)).save(camera / "vast.png")  # of which Pillow warns
    ended = infer("--node", node, camera / "empty.png", camera / "vast.png")
    assert (ended.exit_code, ended.stdout.count("\n")) == (1, 1)
    assert ended.stderr == f"{camera}/empty.png: not a readable image: its content is of no known kind\n"
    assert capfd.readouterr().err == ""


def test_an_installed_network_answers_too(camera: Path, node: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "models" / "a"
    shutil.copytree(tiny("classify"), folder)
    graph = deploy(tmp_path / "state", ROUND, network=folder)
    told = json.loads(infer("--node", node, "--json", camera / "b.jpg").stdout)
    x = fit(decoded("", camera / "b.jpg", 3)[None], graph.input_shape)
    truth = softmax(graph.logits(weights(graph, ROUND), prepare(x)))[0]
    assert told["confidence"] == pytest.approx(truth.max(), abs=1e-6)


def test_before_the_end_the_latest_model_answers(camera: Path, node: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "state")
    assert "nothing was deployed" in infer("--node", node, camera).stderr
    deploy(tmp_path / "state", ROUND, name=MODEL)
    told = json.loads(infer("--node", node, "--json", camera / "a.png").stdout)
    assert told["confidence"] == pytest.approx(expected(camera / "a.png").max(), abs=1e-6)
    deploy(tmp_path / "state", 0, name=MODEL)
    assert "lenet5 has learned nothing yet" in infer("--node", node, camera).stderr


def test_it_changes_nothing_and_starts_at_once(node: Path, camera: Path) -> None:
    state = {
        path: path.stat().st_mtime_ns for path in [node.parent / "state", *(node.parent / "state").iterdir()]
    }
    script = (
        "import sys, time; from onboard.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(time.process_time(), file=sys.stderr)\n"
        "    print([name for name in ('torch', 'onnx', 'rich', 'safetensors') if name in sys.modules])"
    )
    took = []
    for _ in range(3):
        command = [sys.executable, "-c", script, "infer", "--node", str(node), str(camera / "a.png")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr
        took.append(float(done.stderr))
    assert min(took) < 0.7
    assert state == {path: path.stat().st_mtime_ns for path in state}
