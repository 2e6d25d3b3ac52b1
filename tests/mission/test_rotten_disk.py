"""Whatever befalls a file of a board's folder: it comes up, uses nothing of it, and the mission ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from onboard.wire.health import State
from tests.mission.clockwork import Board, Clockwork
from tests.mission.rot import DAMAGES, PRECIOUS

Make = Callable[..., Clockwork]


def half_received(board: Board) -> bool:
    return any((board.state / "spool").glob("*.map"))


def checkpointed(board: Board) -> bool:
    return (board.state / "training.npz").is_file() and training(board)


def training(board: Board) -> bool:
    return board.agent is not None and board.agent.work is not None


def offering(board: Board) -> bool:
    return board.agent is not None and board.agent.known.phase is State.OFFERING


WHEN = {  # each file of a board's folder, and when in a round it matters
    "training.npz": checkpointed,
    "model.bin": checkpointed,
    "update.bin": offering,
    "spool/finished": checkpointed,
    "spool/*.map": half_received,
    "spool/*.part": half_received,
}


def made(clockwork: Make, **mission: object) -> Clockwork:
    on = clockwork(**{"epochs": 2} | mission)
    for board in on.boards.values():
        board.toml.write_text(board.toml.read_text() + "\n[budget]\ncheckpoint_s = 0.01\n")
    return on


def path_of(board: Board, name: str) -> Path:
    found = sorted(board.state.glob(name))
    assert len(found) == 1, found
    return found[0]


def said_of_damage(on: Clockwork) -> int:
    events = ("unreadable", "checkpoint-dropped", "put-aside", "corrupt")
    return sum(len(on.said(event)) for event in events)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_board_outlives_the_damage_of_any_file(kind: str, clockwork: Make) -> None:
    on = made(clockwork)
    on.boot()
    board, chance = on.boards[1], random.Random(kind)
    for name, matters in WHEN.items():
        on.run(lambda matters=matters: matters(board))  # type: ignore[misc]
        board.kill()
        path, told = path_of(board, name), said_of_damage(on)
        before = path.read_bytes()
        DAMAGES[kind](path, chance)
        board.boot(on.now)
        assert board.agent is not None
        on.pass_time(1.0)
        if kind != "gone" and not (path.is_file() and path.read_bytes() == before):
            assert said_of_damage(on) == told + 1, (name, on.seen()[-9:])
    on.run(lambda: on.over)
    assert on.states(1) == on.states(2) == {1: "answered"}
    for link in board.state.rglob("somebody-s"):
        assert link.read_bytes() == PRECIOUS
