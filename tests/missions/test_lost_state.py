"""An end that lost its disk and kept its keys comes back by itself, and the mission ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.missions.bench import QUICK_BPS, bench


@pytest.mark.parametrize("victim", ["ground", "board"])
def test_a_lost_disk_is_no_lost_link(victim: str, tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS) as on:
        on.start()
        on.until(lambda: on.said("ground", "answered", round=1))
        on.kill(victim)
        if victim == "ground":
            for file in on.mission.glob("mission.sqlite*"):
                file.unlink()
            shutil.rmtree(on.mission / "spool")
        else:
            shutil.rmtree(on.node_toml.parent / "state")
        getattr(on, f"start_{victim}")()
        other = "board" if victim == "ground" else "ground"
        on.until(lambda: len(on.said(victim, "rekeyed")) == len(on.said(other, "rekeyed")) == 2)
        on.finish()
        assert [row["state"] for row in on.status()["rounds"]] == ["closed", "closed"]
        assert all(row["answers"][0]["state"] == "answered" for row in on.status()["rounds"])


def test_a_file_that_a_power_cut_emptied_is_asked_for_again(tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS, epochs=10) as on:
        state = on.node_toml.parent / "state"
        on.start()
        on.until(lambda: on.said("board", "epoch", round=1))
        on.kill("board")
        (state / "model.bin").write_bytes(b"")
        on.start_board()
        on.until(lambda: on.said("ground", "answered", round=1))
        assert on.said("ground", "forgotten", why="model.bin cannot be read")
        on.finish()
        assert [row["state"] for row in on.status()["rounds"]] == ["closed", "closed"]


@pytest.mark.parametrize("damage", ["gone", "a bit", "cut"])
def test_images_that_rot_in_orbit_are_told_and_end_no_board(damage: str, tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS, rounds=1) as on:
        images = on.node_toml.parent / "data.npz"
        whole = images.read_bytes()
        on.start()
        on.until(lambda: on.said("board", "heard", round=1))
        on.kill("board")
        if damage == "gone":
            images.unlink()
        else:
            at = len(whole) // 2
            images.write_bytes(whole[:at] + (bytes([whole[at] ^ 4]) + whole[at + 1 :]) * (damage == "a bit"))
        on.start_board()
        on.until(lambda: on.said("ground", "board-failed", failure="data"))
        assert str(images) in on.said("board", "images-unread", level="error")[0]["why"]
        images.write_bytes(whole)  # sent anew; the agent runs on, and is asked again
        on.finish()
        assert [row["state"] for row in on.status()["rounds"][0]["answers"]] == ["answered"]
