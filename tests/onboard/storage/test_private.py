"""What the programs keep is for nobody else to read, whatever umask their user's shell has."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from onboard.data import loading
from onboard.data.images import save
from onboard.storage.keys import exposure
from tests.missions.bench import bench
from tests.programs import onboard

NODE = "pi,port=udp://127.0.0.1:1,board-port=udp://127.0.0.1:1?bind=127.0.0.1:0,encrypt=true"


def groundstation(*arguments: str, umask: int = 0o000) -> None:
    command = [sys.executable, "-m", "groundstation", *arguments]
    done = subprocess.run(command, umask=umask, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def modes(folder: Path) -> dict[str, str]:
    """Those of all that lies in a folder, itself included."""
    kept = {".": folder} | {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: f"{stat.S_IMODE(path.lstat().st_mode):04o}" for name, path in kept.items()}


def open_ones(folder: Path) -> dict[str, str]:
    """Those that others than the user may do anything with."""
    return {name: mode for name, mode in modes(folder).items() if int(mode, 8) & 0o077}


def test_a_mission_made_under_umask_0_is_its_users_alone(tmp_path: Path) -> None:
    groundstation("init", str(tmp_path / "mission"), "--node", NODE)
    groundstation("sample", str(tmp_path / "mission"), "pi", "--images", "20")
    groundstation("roll", str(tmp_path / "mission"), "pi")
    assert "boards/pi/data.npz" in modes(tmp_path / "mission")
    assert not open_ones(tmp_path / "mission")


def test_a_whole_mission_under_umask_0_leaves_nothing_to_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with bench(tmp_path, epochs=1) as made:
            (made.node_toml.parent / "data.npz").chmod(0o600)  # this test's, and no program's
            made.start_cable()
            made.start_board()
            made.start_ground()
            made.until(lambda: made.said("board", "delivered"))
            running = open_ones(made.mission)
            made.finish()
    finally:
        os.umask(before)
    kept = modes(made.mission)
    assert {"mission.sqlite", "boards/pi/state/deployed.bin", "boards/pi/state/journal.0"} <= kept.keys()
    assert (running, open_ones(made.mission)) == ({}, {})


@pytest.mark.parametrize(
    ("mode", "told"),
    [(0o666, "others may replace it"), (0o644, "others may read it"), (0o640, "others may read it")],
)
def test_a_key_that_others_may_touch_is_told_by_all_three(tmp_path: Path, mode: int, told: str) -> None:
    groundstation("init", str(tmp_path), "--node", NODE, umask=0o022)
    board = tmp_path / "boards" / "pi"
    save(board / "data.npz", loading.load("digits", part="train").take(range(20)))
    for key in (board / "node.key", tmp_path / "keys" / "pi.key"):
        key.chmod(mode)
    for key, command in (
        (board / "node.key", ("onboard", "run", str(board / "node.toml"), "--wait")),
        (tmp_path / "keys" / "pi.key", ("groundstation", "serve", str(tmp_path))),
    ):
        line = first(command, "exposed")
        assert (line["what"], line["path"], line["level"]) == ("key", str(key), "warning")
        assert line["why"] == f"its mode is {mode:04o}: {told}; chmod 600 {key}"
    checked = onboard("doctor", str(board / "node.toml"))
    assert (checked.exit_code, told in checked.output) == (1, True)


def first(command: tuple[str, ...], event: str) -> dict[str, str]:
    """The first such event of a program, which is then stopped."""
    with subprocess.Popen(
        [sys.executable, "-m", *command, "--log", "json"], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        try:
            for line in program.stdout:
                if (said := json.loads(line))["event"] == event:
                    return dict(said)
        finally:
            program.terminate()
    raise AssertionError(f"no {event} of {command}")


def test_what_is_exposed_and_what_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    key = folder / "node.key"
    key.touch(mode=0o600)
    assert exposure(key, "key") is None
    assert exposure(folder, "state") is None
    assert exposure(folder / "nothing", "key") is None
    folder.chmod(0o750)  # shown to a group on purpose
    assert exposure(folder, "state") is None
    assert exposure(key, "key") is None
    folder.chmod(0o755)
    assert exposure(folder, "state") == f"its mode is 0755: others may read it; chmod 700 {folder}"
    folder.chmod(0o777)
    assert exposure(key, "key") == f"others may put another in its place; chmod o-w {folder}"
    folder.chmod(0o1777)  # as /tmp is: nobody else may
    assert exposure(key, "key") is None


def test_a_database_of_before_beside_an_encrypted_link_is_told(tmp_path: Path) -> None:
    groundstation("init", str(tmp_path), "--node", NODE, umask=0o022)
    (tmp_path / "mission.sqlite").touch(mode=0o600)
    (tmp_path / "mission.sqlite").chmod(0o644)
    line = first(("groundstation", "serve", str(tmp_path)), "exposed")
    assert (line["what"], line["path"]) == ("state", str(tmp_path / "mission.sqlite"))
