"""A mission whose ground has a damaged database goes on to its end by itself, from what is whole."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.missions.clockwork import Clockwork

Make = Callable[..., Clockwork]
EVERYWHERE = ("mission.sqlite", "mission.sqlite.backup")


def killed_in_the_second_round(on: Clockwork) -> bytes:
    """All files of the database are as a kill leaves them; returns the first round's model."""
    on.boot()
    on.run(lambda: on.states(2) == {1: "delivered"})
    model = on.store.model(1)
    assert model is not None
    kept = on.folder.parent / "kept"
    kept.mkdir()
    for file in on.folder.glob("mission.sqlite*"):
        shutil.copy(file, kept)
    on.kill_ground()
    on.store.close()
    for file in kept.iterdir():
        shutil.copy(file, on.folder)
    return model


def spoil(on: Clockwork, statement: str, *files: str) -> None:
    """One row is not as it was written, in the database or in these files."""
    for file in files or ("mission.sqlite",):
        with closing(sqlite3.connect(on.folder / file)) as shell, shell:
            shell.execute(statement)


def log_gone(on: Clockwork) -> None:
    (on.folder / "mission.sqlite-wal").unlink()


def all_gone(on: Clockwork) -> None:
    for side in ("", "-wal", "-shm"):
        (on.folder / f"mission.sqlite{side}").unlink()


def noise(on: Clockwork) -> None:
    log_gone(on)
    (on.folder / "mission.sqlite").write_bytes(b"noise" * 3000)


def answer(on: Clockwork) -> None:
    spoil(on, "UPDATE answer SET state = 'answered' WHERE round = 2")


def question(on: Clockwork) -> None:
    spoil(on, "UPDATE round SET model = x'00' WHERE number = 2")


def outcome(on: Clockwork) -> None:
    spoil(on, "UPDATE model SET payload = x'00' WHERE number = 1")


def epoch(on: Clockwork) -> None:
    spoil(on, "UPDATE node SET epoch = 0")


@pytest.mark.parametrize("damage", [log_gone, all_gone, noise, answer, question, outcome, epoch])
def test_the_mission_goes_on_to_its_end(damage: Callable[[Clockwork], None], clockwork: Make) -> None:
    on = clockwork()
    model = killed_in_the_second_round(on)
    damage(on)
    on.boot_ground()
    assert len(on.said("database-damaged")) == 1
    assert on.store.nodes()[0]["epoch"] > 1000
    on.run(lambda: on.over)
    assert on.store.model(1) == model
    assert on.states(1) == on.states(2) == {1: "answered"}
    assert len(on.said("database-damaged")) == 1
    assert not on.said("round-failed") + on.said("update-lost")


def test_a_model_that_is_lost_everywhere_is_averaged_again(clockwork: Make) -> None:
    on = clockwork()
    model = killed_in_the_second_round(on)
    spoil(on, "UPDATE model SET payload = x'00'", *EVERYWHERE)
    spoil(on, "UPDATE round SET model = x'00' WHERE number = 2", *EVERYWHERE)
    on.boot_ground()
    on.run(lambda: on.over)
    (reopened,) = on.said("round-reopened")
    assert (reopened["round"], reopened["why"]) == (1, "its model is not there")
    assert on.store.model(1) == model  # of the same answers
    assert on.states(1) == on.states(2) == {1: "answered"}


def test_a_model_that_is_lost_is_in_what_the_next_round_sent(clockwork: Make) -> None:
    on = clockwork()
    model = killed_in_the_second_round(on)
    spoil(on, "UPDATE model SET payload = x'00'", *EVERYWHERE)
    on.boot_ground()
    on.run(lambda: on.over)
    assert not on.said("round-reopened")
    assert on.store.model(1) == model


def test_a_database_that_vanishes_under_the_daemon_costs_nothing(clockwork: Make) -> None:
    on = clockwork()
    on.boot()
    on.run(lambda: on.states(1) == {1: "delivered"})
    for file in on.folder.glob("mission.sqlite*"):
        file.unlink()
    on.run(lambda: on.over)
    assert len(on.said("database-rewritten")) == 1
    assert not on.said("database-damaged")
    assert Path(on.folder / "mission.sqlite").exists()
    assert on.states(1) == on.states(2) == {1: "answered"}
