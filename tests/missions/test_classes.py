"""What a label means is the mission's to say: what differs is mapped, or ends before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from groundstation.cli import main as groundstation
from groundstation.store.store import Store
from onboard.cli import main as onboard_main
from onboard.data import loading
from tests.missions.bench import QUICK_BPS, bench
from tests.programs import examined, onboard

MANY = 150_000
DIGITS = [str(digit) for digit in range(10)]


def folders(root: Path, names: dict[str, str], per_class: int = 3) -> Path:
    """Digits as PNG files: `names` maps each digit that is there to the folder that it lies in."""
    images = loading.load("digits", part="train")
    for digit, name in names.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for row in np.flatnonzero(images.y == int(digit))[:per_class]:
            Image.fromarray(images.x[row, 0]).save(root / name / f"{row}.png")
    return root


def init(folder: Path, port: str, *options: str) -> Result:
    return CliRunner().invoke(groundstation, ["init", str(folder), "--node", f"pi,port={port}", *options])


def with_images(folder: Path, source: str) -> Path:
    """The board's NODE.toml of a new mission, with its own images."""
    path = folder / "boards" / "pi" / "node.toml"
    path.write_text(path.read_text().replace('"npz:data.npz"', json.dumps(source)))
    return path


def board(folder: Path, port: str, source: str) -> Path:
    """NODE.toml of the board of a mission that is founded for it, with its own images."""
    assert init(folder, port).exit_code == 0
    return with_images(folder, source)


def refused(path: Path) -> str:
    """The one line with which `run` ends before anything is sent."""
    result = onboard("run", str(path))
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    return result.stderr.strip()


# --- the board


def test_a_missing_folder_and_another_order_are_mapped(tmp_path: Path, port: str) -> None:
    here = folders(tmp_path / "here", {digit: digit for digit in "9754321"})
    ok, line = examined(board(tmp_path / "m", port, f"folder:{here}"))
    assert ok
    assert "21 images of (1, 28, 28)" in line
    assert "pixels 0..255, mean " in line
    assert (
        "classes 0: 0, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3, 6: 0, 7: 3, 8: 0, 9: 3; WARNING: no images of 0, 6, 8"
        in line
    )


@pytest.mark.parametrize("stray", [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "lost+found"])
def test_a_stray_folder_is_told_and_is_no_class(tmp_path: Path, port: str, stray: str) -> None:
    here = folders(tmp_path / "here", {digit: digit for digit in DIGITS})
    shutil.copytree(here / "1", here / stray)
    (here / "2" / "._1.png").write_bytes(b"\0\5\x16\7")
    ok, line = examined(board(tmp_path / "m", port, f"folder:{here}"))
    assert ok
    assert "30 images" in line
    assert line.endswith("WARNING: 2 passed over (2 hidden or a system's)")


@pytest.mark.parametrize(("name", "hint"), [("backup", ""), ("l", ""), ("01", " (did you mean '1'?)")])
def test_a_class_that_the_mission_does_not_know_ends_before_training(
    tmp_path: Path, port: str, name: str, hint: str
) -> None:
    path = board(tmp_path / "m", port, f"folder:{folders(tmp_path / 'here', {'1': name, '2': '2'})}")
    right = (
        f"{tmp_path / 'here'}: class {name!r} is not the mission's{hint}; "
        f"here are {', '.join(sorted([name, '2']))}; "
        f"the mission has {', '.join(DIGITS)}"
    )
    ok, line = examined(path)
    assert not ok
    assert right in line
    assert refused(path) == f"{path}: data.source: {right}"


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.arange(1, 11), "labels run 1..10, need 0..9: y[9] is 10; labels count from 0, not from 1"),
        (np.array([5, 70_412, 3]), "labels run 3..70412, need 0..9: y[1] is 70412"),
        (np.array([5, 2**32 - 1]), "labels run 5..4294967295, need 0..9: y[1] is 4294967295"),
        (np.array([3, -1]), "labels run -1..3, need 0..9: y[1] is -1"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_labels_that_no_class_has_end_before_training(
    tmp_path: Path, port: str, y: np.ndarray, says: str, told: bool
) -> None:
    path = board(tmp_path / "m", port, "npz:data.npz")
    np.savez(path.parent / "data.npz", x=np.full((len(y), 28, 28), 9, np.uint8), y=y)
    if not told:  # a NODE.toml by hand: doctor knows the models
        path.write_text("".join(line for line in path.open() if not line.startswith("classes")))
    ok, line = examined(path)
    assert not ok
    assert line.endswith(f"{path.parent / 'data.npz'}: {says}")
    if told:
        assert refused(path) == f"{path}: data.source: {path.parent / 'data.npz'}: {says}"


def test_doctor_tells_of_a_board_whose_classes_nobody_knows(tmp_path: Path, port: str) -> None:
    path = board(
        tmp_path / "m", port, f"folder:{folders(tmp_path / 'here', {digit: digit for digit in DIGITS})}"
    )
    told = "WARNING: [data] has no classes, so what labels mean is compared with the first task: copy classes"
    assert told not in examined(path)[1]
    path.write_text("".join(line for line in path.open() if not line.startswith("classes")))
    ok, line = examined(path)
    assert ok
    assert told in line


def test_eleven_classes_are_too_many_for_every_model(tmp_path: Path, port: str) -> None:
    path = board(
        tmp_path / "m", port, f"folder:{folders(tmp_path / 'here', {d: d for d in DIGITS} | {'1': 'ten'})}"
    )
    (tmp_path / "here" / "1").mkdir()
    shutil.copy(next((tmp_path / "here" / "2").iterdir()), tmp_path / "here" / "1")
    path.write_text("".join(line for line in path.open() if not line.startswith("classes")))
    ok, line = examined(path)
    assert not ok
    assert "has 11 classes, the model tells 10 apart (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ten)" in line


def test_other_images_than_any_model_takes_fail(tmp_path: Path, port: str) -> None:
    path = board(tmp_path / "m", port, "digits")
    path.write_text(path.read_text().replace("shape = [1, 28, 28]", "shape = [1, 29, 28]"))
    ok, line = examined(path)
    assert not ok
    assert (
        "no model takes images of (1, 29, 28); there are autoencoder-64 (3, 64, 64), lenet5 (1, 28, 28), "
        in line
    )


def doctor(path: Path) -> tuple[bool, str]:
    """As `examined`, by a process of its own, which has the board's budget."""
    (line,) = (line for line in onboard("doctor", str(path)).stdout.splitlines() if line.split()[1] == "data")
    return line.startswith("ok"), line


def test_more_images_than_the_budget_stay_on_the_disk(tmp_path: Path, port: str) -> None:
    path = board(tmp_path / "m", port, "npz:data.npz")
    whole = path.read_text()
    path.write_text(whole + "\n[budget]\nmemory_mb = 64\n")
    x = np.zeros((90_000, 28, 28), np.uint8)
    x[:, 0, 0] = 255
    x = np.asfortranarray(x)  # whose pixels take as much memory to look at: its size is checked before
    np.savez_compressed(path.parent / "data.npz", x=x, y=np.arange(90_000) % 10)
    ok, line = doctor(path)
    assert ok
    assert "90000 images of (1, 28, 28) in npz:" in line
    assert ", 7 MB; pixels" in line


def test_labels_beyond_the_budget_fail_with_what_to_do(tmp_path: Path, port: str) -> None:
    """Labels and what each step reads are in memory wherever the images are."""
    path = board(tmp_path / "m", port, "npz:data.npz")
    whole = path.read_text()
    path.write_text(whole + "\n[budget]\nmemory_mb = 8\n")
    np.savez_compressed(
        path.parent / "data.npz", x=np.full((MANY, 28, 28), 40, np.uint8), y=np.arange(MANY) % 10
    )
    ok, line = doctor(path)
    assert not ok
    assert "its 150000 images take 9 MB, the budget is 8 MB: take fewer by data.rows" in line
    path.write_text(
        whole.replace('"npz:data.npz"', '"npz:data.npz"\nrows = [0, 200]') + "\n[budget]\nmemory_mb = 8\n"
    )
    ok, line = doctor(path)
    assert ok, line
    assert "200 images" in line


# --- the ground


def test_init_writes_the_classes_for_both_ends(tmp_path: Path, port: str) -> None:
    test = tmp_path / "set"
    for part in ("train", "test"):
        folders(test / part, {"0": "sky", "1": "sea", "2": "land"})
    result = init(tmp_path / "m", port, "--data", f"folder:{test}")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("test data: 9 images of (1, 28, 28) in folder:")
    for file in (tmp_path / "m" / "mission.toml", tmp_path / "m" / "boards" / "pi" / "node.toml"):
        assert 'classes = ["land", "sea", "sky"]\n' in file.read_text()


def test_a_folder_without_parts_can_be_tested_on(tmp_path: Path, port: str) -> None:
    here = folders(tmp_path / "EuroSAT_RGB", {"0": "Forest", "1": "River"}, per_class=10)
    result = init(tmp_path / "m", port, "--data", f"folder:{here}")
    assert result.exit_code == 0, result.output
    assert "test data: 4 images" in result.stdout
    assert examined(with_images(tmp_path / "m", f"folder:{here}"))[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "cifar"], "no data source 'cifar'; there are digits, mnist, eurosat, eurosat-full"),
        (["--data", "npz:"], "no data source 'npz:"),
        (["--model", "mine.onnx"], "no model 'mine.onnx'; nearest: "),
        (["--data", "npz:{one}"], "labels run 1..10, need 0..9: y_test[9] is 10; labels count"),
        (["--data", "npz:{five}"], "no label is 0, and they run to 5: labels count from 0"),
        (["--data", "npz:{id}"], "labels run 0..4294967295, need 0..9: y_test[1] is 4294967295"),
        (["--data", "npz:{scaled}"], "pixels run 0..1, need 0..255"),
        (["--data", "npz:{last}"], "its channels come last"),
    ],
)  # fmt: skip
def test_what_init_refuses(tmp_path: Path, port: str, options: list[str], says: str) -> None:
    x = np.zeros((10, 28, 28), np.uint8)
    x[:, 0, 0] = 255
    sets: dict[str, dict[str, Any]] = {
        "one": {"x_test": x, "y_test": np.arange(1, 11)},
        "five": {"x_test": x[:5], "y_test": np.arange(1, 6)},
        "id": {"x_test": x[:2], "y_test": np.array([0, 2**32 - 1])},
        "scaled": {"x_test": x // 255, "y_test": np.arange(10)},
        "last": {"x_test": x[..., None], "y_test": np.arange(10)},
    }
    for name, arrays in sets.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    paths = {name: str(tmp_path / f"{name}.npz") for name in sets}
    result = init(tmp_path / "m", port, *(option.format(**paths) for option in options))
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("groundstation init: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert not (tmp_path / "m").exists()


def test_serve_looks_at_the_labels_before_anything_is_sent(tmp_path: Path, port: str) -> None:
    np.savez(tmp_path / "t.npz", x_test=np.full((10, 28, 28), 9, np.uint8), y_test=np.arange(1, 11))
    assert init(tmp_path / "m", port).exit_code == 0
    path = tmp_path / "m" / "mission.toml"
    changed = path.read_text().replace('data = "digits"', f'data = "npz:{tmp_path / "t.npz"}"')
    for text in (changed, "".join(line for line in changed.splitlines(True) if "classes" not in line)):
        path.write_text(text)
        result = CliRunner().invoke(groundstation, ["serve", str(tmp_path / "m")])
        assert (result.exit_code, result.stderr) == (
            2,
            f"{path}: mission.data: {tmp_path / 't.npz'}: labels run 1..10, need 0..9: y_test[9] is 10; "
            "labels count from 0, not from 1\n",
        )


def test_a_mission_keeps_the_classes_that_it_was_begun_with(tmp_path: Path) -> None:
    store = Store(tmp_path / "mission.sqlite")
    for classes in (("land", "sea"), ("sea", "land")):
        assert store.begin(b"mission1", "m", 0, b"graph678", classes)[2] == ("land", "sea")
    store.close()


def test_a_database_of_an_earlier_version_gets_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "mission.sqlite")
    store.begin(b"mission1", "m", 0, b"graph678")
    with store.transaction():
        store.db.execute("UPDATE mission SET classes = NULL")
    assert store.begin(b"mission1", "m", 0, b"another.", ("land", "sea"))[2] == ()
    assert store.begin(b"mission1", "m", 0, b"graph678", ("land", "sea"))[2] == ("land", "sea")
    store.close()


@pytest.mark.parametrize("value", ["[]", '["a", "a"]', '["a", ""]', '"a"'])
def test_names_that_are_none_are_refused(tmp_path: Path, port: str, value: str) -> None:
    assert init(tmp_path / "m", port).exit_code == 0
    for path in (tmp_path / "m" / "mission.toml", tmp_path / "m" / "boards" / "pi" / "node.toml"):
        path.write_text(
            "".join(f"classes = {value}\n" if "classes =" in line else line for line in path.open())
        )
    for program, command in ((groundstation, "serve"), (onboard_main, "doctor")):
        target = tmp_path / "m" if command == "serve" else tmp_path / "m" / "boards" / "pi" / "node.toml"
        result = CliRunner().invoke(program, [command, str(target)])
        assert result.exit_code == 2
        assert "classes" in result.stderr
        assert result.stderr.count("\n") == 1


# --- both


def test_a_board_by_hand_is_mapped_or_refused_with_a_reason_that_the_ground_hears(tmp_path: Path) -> None:
    """NODE.toml has no classes: the task brings them."""
    with bench(tmp_path, QUICK_BPS, epochs=1) as bed:
        toml = bed.node_toml
        toml.write_text("".join(line for line in toml.open() if not line.startswith("classes")))
        images = loading.load("digits", part="train").take(np.arange(40))
        moved = np.roll(np.arange(10), 3)
        names = np.array(DIGITS)[np.argsort(moved)]
        np.savez(
            toml.parent / "data.npz",
            x=images.x,
            y=moved[images.y],
            classes=np.where(names == "7", "x", names),
        )
        bed.start_cable()
        bed.start_ground()
        bed.start_board()
        bed.until(lambda: bed.said("ground", "board-failed"))
        (failed,) = bed.said("ground", "board-failed")[:1]
        assert (failed["node"], failed["failure"], failed["classes"]) == ("pi", "data", DIGITS)
        assert failed["why"].startswith("data: class 'x' is not the mission's; here are ")
        (why,) = {event["why"] for event in bed.said("board", "training-failed")}
        assert why.endswith("the mission has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9")
        assert not bed.said("ground", "answered")


# --- first images


def sample(folder: Path, node: str, *options: str) -> Result:
    return CliRunner().invoke(groundstation, ["sample", str(folder), node, *options])


def test_boards_without_images_get_some_each_its_own(tmp_path: Path) -> None:
    nodes = [option for name in ("a", "b", "c") for option in ("--node", f"{name},port=/dev/tty-{name}")]
    assert CliRunner().invoke(groundstation, ["init", str(tmp_path / "m"), *nodes]).exit_code == 0
    shares = []
    for name in ("c", "a", "b"):
        result = sample(tmp_path / "m", name, "--images", "400")
        assert result.exit_code == 0, result.output
        path = tmp_path / "m" / "boards" / name / "data.npz"
        assert result.stdout == f"{path}: 400 of the 1438 images of digits to train on\n"
        shares.append(loading.load(f"npz:{path}"))
        assert examined(path.parent / "node.toml")[0]
    assert all(len(set(share.y.tolist())) == 10 for share in shares)
    seen = [{image.tobytes() for image in share.x} for share in shares]
    assert sum(map(len, seen)) == len(set().union(*seen))
    tested = {image.tobytes() for image in loading.load("digits", part="test").x}
    assert not tested & set().union(*seen)


def test_what_sample_refuses(tmp_path: Path, port: str) -> None:
    assert init(tmp_path / "m", port).exit_code == 0
    here = folders(tmp_path / "here", {"1": "1", "2": "x"})
    assert sample(tmp_path / "m", "pi", "--data", "digits", "--images", "5").exit_code == 0
    path = tmp_path / "m" / "boards" / "pi" / "data.npz"
    kept = path.read_bytes()
    refusals = {
        ("pi",): f"{path}: is there already, and is not replaced",
        ("nano",): f"{tmp_path / 'm' / 'mission.toml'}: no node 'nano'; there are pi",
    }
    for arguments, says in refusals.items():
        result = sample(tmp_path / "m", *arguments)
        assert (result.exit_code, result.stderr) == (2, f"{says}\n")
    assert path.read_bytes() == kept
    path.unlink()
    for source, says in (
        (f"folder:{here}", "class 'x' is not the mission's"),
        ("cifar", "no data source 'cifar'"),
    ):
        result = sample(tmp_path / "m", "pi", "--data", source)
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
    assert not path.exists()
