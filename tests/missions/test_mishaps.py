"""What a long-running station meets: a port that vanishes and returns, a disk that is full, a board that
cannot train, a second process on the same folder, Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.disks import fill, small_disk
from tests.missions.bench import QUICK_BPS, bench, change


def test_a_port_that_vanishes_is_reported_and_opened_again(tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS) as on:
        on.start_ground()  # before its port exists: it waits
        on.until(lambda: on.said("ground", "port-lost"))
        on.start_cable()
        on.start_board()
        on.until(lambda: on.said("ground", "port-open") and on.said("board", "port-open"))
        on.until(lambda: on.said("board", "heard", round=1))
        on.hear_out("cable")  # takes both ports away
        on.until(lambda: on.said("board", "port-lost") and len(on.said("ground", "port-lost")) == 2)
        on.start_cable()
        on.finish()
        assert len(on.said("board", "port-open")) == 2


def test_a_full_disk_on_the_board_stops_the_write_and_nothing_else(tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS) as on, small_disk(on.node_toml.parent / "state", "256k"):
        ballast = on.node_toml.parent / "state" / "ballast"
        on.start_cable()
        on.start_board()
        on.until(lambda: on.said("board", "port-open"))
        fill(ballast)
        on.start_ground()
        on.until(lambda: on.said("board", "disk-full"))
        assert "No space left on device" in on.said("board", "disk-full")[0]["why"]
        assert not on.said("ground", "answered")
        ballast.unlink()
        on.finish()
        assert on.status()["rounds"][0]["answers"][0]["state"] == "answered"


def test_a_full_disk_on_the_ground_keeps_the_round_and_the_update(tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS, epochs=12) as on, small_disk(on.mission / "disk", "512k"):
        # The database's folder cannot be mounted over, so the database moves onto the small disk.
        (on.mission / "mission.sqlite").symlink_to(on.mission / "disk" / "mission.sqlite")
        ballast = on.mission / "disk" / "ballast"
        on.start()
        on.until(lambda: on.said("board", "epoch", round=1))
        fill(ballast)
        on.until(lambda: on.said("ground", "store-failed"))
        assert "full" in on.said("ground", "store-failed")[0]["why"]
        assert not on.said("ground", "answered")
        ballast.unlink()
        on.finish()
        assert [row["state"] for row in on.status()["rounds"]] == ["closed", "closed"]


def test_a_board_that_cannot_train_says_so_and_the_ground_does_not_wait(tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS) as on:
        change(on.mission / "mission.toml", model='"lenet5-rgb"')  # three channels; the images have one
        on.start()
        on.until(lambda: on.said("ground", "board-failed", failure="data"))
        assert "(1, 28, 28)" in on.said("board", "training-failed")[0]["why"]
        assert "(1, 28, 28)" in on.said("ground", "board-failed")[0]["why"]
        assert on.status()["rounds"][0]["answers"][0]["state"] == "failed"
        on.until(lambda: on.said("ground", "nobody-answered"))


def test_a_memory_limit_below_the_need_fails_the_training_and_not_the_agent(tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS) as on:
        with on.node_toml.open("a") as toml:
            toml.write("\n[budget]\nmemory_mb = 66\n")  # holds 54 MB before, 90 while it trains
        on.start()
        on.until(lambda: on.said("board", "training-failed"))
        on.until(lambda: on.said("ground", "board-failed"))
        assert on.crew.members["board"].process.poll() is None


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS) as on:
        on.start()
        on.until(lambda: on.said("ground", "serving") and on.said("board", "port-open"))
        second = on.run("groundstation", "serve", str(on.mission), code=2)
        assert second.stderr == f"{on.mission}: another groundstation is serving this mission\n"
        second = on.run("onboard", "run", str(on.node_toml), code=2)
        assert "another agent is running on it" in second.stderr
        assert second.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["ground", "board"])
def test_ctrl_c_ends_a_program_at_once_and_cleanly(name: str, tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS, epochs=500) as on:
        on.start()
        on.until(lambda: on.said("board", "epoch"))
        process = on.crew.members[name].process
        os.kill(process.pid, signal.SIGINT)
        process.wait(timeout=5)
        assert "Traceback" not in on.crew.members[name].errors.read_text()
