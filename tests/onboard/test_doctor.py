"""`onboard doctor` finds what a run would stumble over, names it, and exits 1; else 0."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from onboard import doctor
from onboard.cli import main
from onboard.config import load_node
from onboard.learn.networks import SHIPPED
from onboard.storage.keys import new_key, save_key
from tests.networks import tiny

CHECKS = ["python", "key", "port", "contacts", "model", "data", "memory", "disk"]


@pytest.fixture
def node_toml(tmp_path: Path, port: str) -> Path:
    """A board with all it needs."""
    save_key(tmp_path / "node.key", new_key())
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 28, 28), np.uint8), y=np.arange(4))
    path = tmp_path / "node.toml"
    path.write_text(
        '[node]\nid = 1\nname = "pi"\nboard = "raspberry-pi-4"\n'
        f'[link]\nport = "{port}"\nprofile = "bench-serial-115k2"\n[budget]\nmemory_mb = 96\n'
    )
    return path


def failures(path: Path) -> dict[str, str]:
    """What was found wrong, by its name."""
    findings = doctor.examine(load_node(path))
    assert [finding.what for finding in findings] == CHECKS
    return {finding.what: finding.says for finding in findings if not finding.ok}


def test_a_board_that_is_right(node_toml: Path, port: str) -> None:
    result = CliRunner().invoke(main, ["doctor", str(node_toml)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", what] for what in CHECKS]
    assert port in lines[CHECKS.index("port")]
    assert "lenet5" in lines[CHECKS.index("model")]
    assert "4 images of (1, 28, 28)" in lines[CHECKS.index("data")]


def test_a_damaged_file_of_a_network_is_found_before_it_is_used(node_toml: Path) -> None:
    folder = node_toml.parent / "models" / "own"
    shutil.copytree(tiny("classify"), folder)
    assert failures(node_toml) == {}
    answering = bytearray((folder / "infer.onnx").read_bytes())
    answering[-9] ^= 1
    (folder / "infer.onnx").write_bytes(answering)
    assert f"{folder}/infer.onnx: is damaged" in failures(node_toml)["model"]


def test_memory_is_told_for_the_network_that_was_brought(node_toml: Path) -> None:
    folder = node_toml.parent / "models" / "own"
    shutil.copytree(SHIPPED / "lenet5", folder)
    described = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(described.replace('name = "lenet5"', 'name = "own"'))
    (memory,) = (each for each in doctor.examine(load_node(node_toml)) if each.what == "memory")
    assert memory.ok
    assert re.findall(r"\S+ takes", memory.says) == ["own takes"]


def test_it_looks_at_the_folder_whose_images_are_answered(node_toml: Path) -> None:
    node_toml.write_text(f'{node_toml.read_text()}[infer]\nwatch = "camera"\nmemory_mb = 16\n')
    (found,) = (finding for finding in doctor.examine(load_node(node_toml)) if finding.what == "images")
    assert (found.ok, found.says) == (False, f"{node_toml.parent / 'camera'}: No such file or directory")


def test_it_says_whether_frames_are_encrypted(node_toml: Path) -> None:
    (key,) = (finding for finding in doctor.examine(load_node(node_toml)) if finding.what == "key")
    assert key.says == str(node_toml.parent / "node.key")
    node_toml.write_text(node_toml.read_text().replace("[link]", "[link]\nencrypt = true"))
    (key,) = (finding for finding in doctor.examine(load_node(node_toml)) if finding.what == "key")
    assert key.says == f"{node_toml.parent / 'node.key'}; frames are encrypted"


def test_a_port_that_is_not_there(node_toml: Path, port: str) -> None:
    node_toml.write_text(node_toml.read_text().replace(port, "/dev/no-such-tty"))
    found = failures(node_toml)
    assert list(found) == ["port"]
    assert "/dev/no-such-tty" in found["port"]
    result = CliRunner().invoke(main, ["doctor", str(node_toml)])
    assert result.exit_code == 1
    assert "FAIL  port" in result.stdout


def test_a_contact_plan(node_toml: Path, tmp_path: Path) -> None:
    node_toml.write_text(node_toml.read_text().replace("[budget]", 'contacts = "plan.toml"\n[budget]'))
    assert failures(node_toml) == {"contacts": f"{tmp_path / 'plan.toml'}: no such file"}
    contact = "[[contact]]\nnode = 1\npeer = 0\nrise = 2020-01-01T00:00:00Z\nset = %s-01-01T00:00:00Z\n"
    (tmp_path / "plan.toml").write_text(contact % 2021)
    assert "all are over" in failures(node_toml)["contacts"]
    (tmp_path / "plan.toml").write_text(contact % 9999)
    assert failures(node_toml) == {}


def test_a_key_that_others_may_read(node_toml: Path) -> None:
    key = node_toml.parent / "node.key"
    key.chmod(0o644)
    assert failures(node_toml) == {"key": f"{key}: its mode is 0644: others may read it; chmod 600 {key}"}


def test_several_things_wrong_are_all_found(node_toml: Path) -> None:
    folder = node_toml.parent
    (folder / "node.key").unlink()
    np.savez(folder / "data.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4))
    (folder / "state").write_text("a file where a folder should be")
    node_toml.write_text(node_toml.read_text().replace("memory_mb = 96", "memory_mb = 16000000"))
    found = failures(node_toml)
    assert list(found) == ["key", "data", "memory", "disk"]
    assert "needs uint8 (N, 1, 28, 28)" in found["data"]
    assert found["memory"].endswith("the budget is 16000000 MB")


def test_a_bad_file_is_bad_input(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", str(tmp_path / "absent.toml")])
    assert (result.exit_code, result.stderr) == (2, f"{tmp_path / 'absent.toml'}: no such file\n")


def test_a_budget_below_what_a_training_takes(node_toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node_toml.write_text(node_toml.read_text().replace("memory_mb = 96", "memory_mb = 56"))
    result = CliRunner().invoke(main, ["doctor", str(node_toml)])
    assert result.exit_code == 1
    [line] = [line for line in result.stdout.splitlines() if "memory" in line]
    assert line.startswith("FAIL  memory     lenet5 does not fit with batches of 10: ")


def test_what_a_training_takes_and_is_allowed(
    node_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a library reserves at its import is not counted: numpy 2.5.5 reserves 188 MiB on aarch64."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import mmap\nkept = mmap.mmap(-1, 188 * 2**20, flags=mmap.MAP_PRIVATE)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    (memory,) = (each for each in doctor.examine(load_node(node_toml)) if each.what == "memory")
    assert memory.ok
    found = re.fullmatch(
        r"lenet5 takes (\d+) MB with batches of 10; 96 MB are allowed, \d+ MB are free", memory.says
    )
    assert found
    assert 55 < int(found[1]) < 90


def test_images_that_cannot_be_read_are_told_once(node_toml: Path) -> None:
    (node_toml.parent / "data.npz").write_bytes(b"no archive")
    assert list(failures(node_toml)) == ["data"]
