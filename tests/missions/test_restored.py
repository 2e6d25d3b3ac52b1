"""A backup of the ground's database or of a board's state is put back: the mission goes on by itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.missions.bench import MissionBench, bench, change


def set_aside(on: MissionBench, what: str) -> Path:
    """A copy of the ground's database or of the board's state, whose program has ended."""
    copy = on.folder / "backup"
    if what == "board":
        shutil.copytree(on.node_toml.parent / "state", copy)
    else:
        copy.mkdir()
        for file in on.mission.glob("mission.sqlite*"):
            shutil.copy(file, copy)
    return copy


def put_back(on: MissionBench, what: str, copy: Path) -> None:
    """The copy takes the place of what is there now, as an operator does it."""
    if what == "board":
        shutil.rmtree(on.node_toml.parent / "state")
        shutil.copytree(copy, on.node_toml.parent / "state")
    else:
        for file in on.mission.glob("mission.sqlite*"):
            file.unlink()
        for file in copy.iterdir():
            shutil.copy(file, on.mission)


@pytest.mark.parametrize(("what", "encrypt"), [("ground", "true"), ("board", "false")])
def test_a_backup_that_is_put_back_is_no_dead_link(what: str, encrypt: str, tmp_path: Path) -> None:
    with bench(tmp_path, epochs=1) as on:
        change(on.mission / "mission.toml", encrypt=encrypt)
        change(on.node_toml, encrypt=encrypt)
        on.start()
        on.until(lambda: on.said("board", "heard", round=1))
        on.kill(what)
        copy = set_aside(on, what)
        getattr(on, f"start_{what}")()
        # A board that has acknowledged the question of round 2 is asked it again after its next report, which
        # is a minute away; so the board is killed while the question is on its way.
        asked = {
            "ground": lambda: on.said("board", "heard", round=2),
            "board": lambda: on.said("ground", "round", number=2),
        }
        on.until(asked[what])
        on.kill(what)
        had_it = '"heard","round":2' in (on.folder / "logs" / "board.jsonl").read_text().replace(" ", "")
        put_back(on, what, copy)
        getattr(on, f"start_{what}")()
        on.finish()
        assert [row["state"] for row in on.status()["rounds"]] == ["closed", "closed"]
        assert all(row["answers"][0]["state"] == "answered" for row in on.status()["rounds"])
        assert not on.said("ground", "nobody-answered")
        assert not on.said("ground", "forgotten") or (what == "board" and had_it)
        on.hear_out()
        assert bool(on.said("board", "ground-went-back")) == (what == "ground")
        assert not on.said("ground", "cloned-or-restored") + on.said("ground", "wrong-key")
