"""What an update had no bits for goes from round to round as if nobody had pulled the plug."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.missions.clockwork import Clockwork

MISSION = {"boards": 2, "rounds": 4, "epochs": 1, "error_feedback": 0.8}


def played(on: Clockwork, chance: random.Random | None = None) -> bytes:
    """The mission's last model. With `chance` its boards lose power again and again."""
    for board in on.boards.values():
        board.toml.write_text(board.toml.read_text() + "\n[budget]\ncheckpoint_s = 0.01\n")
    on.boot()
    while chance and not on.over:
        ends = on.now + chance.uniform(0.1, 4.0)
        on.run(lambda ends=ends: on.over or on.now >= ends)  # type: ignore[misc]
        for board in on.boards.values():
            if not on.over and chance.random() < 0.5:
                board.kill()
                board.boot(on.now)
    on.run(lambda: on.over)
    assert on.states(3) == {1: "answered", 2: "answered"}
    last = on.store.model(4)
    assert last
    return last


def test_boards_that_lose_power_end_in_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def made(name: str, **changes: object) -> Clockwork:
        return Clockwork(tmp_path / name, monkeypatch, caplog, **MISSION | changes)  # type: ignore[arg-type]

    whole = played(made("whole"))
    for seed in range(2):
        on = made(str(seed))
        assert played(on, random.Random(seed)) == whole
    assert {said["phase"] for said in on.said("resumed")} == {"training", "offering"}
    assert on.said("checkpoint")
    assert played(made("without", error_feedback=0.0)) != whole
