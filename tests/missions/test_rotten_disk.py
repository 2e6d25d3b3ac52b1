"""Whatever befalls a file of a board's folder: it comes up, uses nothing of it, and the mission ends."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onboard.wire.security.seal
from onboard.mission.health import State
from tests.missions.clockwork import Clockwork, VirtualBoard
from tests.missions.rot import DAMAGES, PRECIOUS, litter

Make = Callable[..., Clockwork]


def half_received(board: VirtualBoard) -> bool:
    return any((board.state / "spool").glob("*.map"))


def checkpointed(board: VirtualBoard) -> bool:
    return (board.state / "training.npz").is_file() and training(board)


def training(board: VirtualBoard) -> bool:
    return board.agent is not None and board.agent.work is not None


def offering(board: VirtualBoard) -> bool:
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


def running(clockwork: Make, until: Callable[[VirtualBoard], bool]) -> tuple[Clockwork, VirtualBoard]:
    """A mission, and its board, of which this holds now."""
    on = made(clockwork)
    on.boot()
    board = on.boards[1]
    on.run(lambda: until(board))
    return on, board


def path_of(board: VirtualBoard, name: str) -> Path:
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


def checkpoint_after(on: Clockwork, board: VirtualBoard, round_number: int, epoch: int) -> bytes:
    """The board's checkpoint at the end of that epoch."""
    on.run(lambda: on.said("epoch", round=round_number, epoch=epoch))
    return (board.state / "training.npz").read_bytes()


def test_an_older_checkpoint_of_the_same_round_leads_to_the_same_update(clockwork: Make) -> None:
    on = made(clockwork, epochs=4)
    on.boot()
    board = on.boards[1]
    first = checkpoint_after(on, board, 1, epoch=1)
    checkpoint_after(on, board, 1, epoch=3)
    board.kill()
    (board.state / "training.npz").write_bytes(first)
    board.boot(on.now)
    on.run(lambda: on.said("trained", round=1))
    assert on.said("checkpoint", epoch=1)
    assert [said["epoch"] for said in on.said("epoch", round=1)][:5] == [1, 2, 3, 2, 3]
    losses = {said["epoch"]: set[float]() for said in on.said("epoch", round=1)}
    for said in on.said("epoch", round=1):
        losses[said["epoch"]].add(said["loss"])
    assert all(len(seen) == 1 for seen in losses.values())  # to the bit as they were
    on.run(lambda: on.over)


@pytest.mark.parametrize("whose", ["an earlier round's", "another board's"])
def test_a_checkpoint_of_another_training_is_dropped(whose: str, clockwork: Make) -> None:
    on = made(clockwork, boards=2, epochs=3)
    on.boot()
    board, other = on.boards[1], on.boards[2]
    if whose == "another board's":
        on.run(lambda: checkpointed(board) and checkpointed(other))
        strange = (other.state / "training.npz").read_bytes()
    else:
        strange = checkpoint_after(on, board, 1, epoch=1)
        on.run(lambda: on.said("heard", round=2) and checkpointed(board))
    board.kill()
    (board.state / "training.npz").write_bytes(strange)
    board.boot(on.now)
    (said,) = on.said("checkpoint-dropped")
    assert said["why"] == "of another round or node"
    on.run(lambda: on.over)
    assert on.states(2) == {1: "answered", 2: "answered"}


def test_an_update_of_an_earlier_round_is_not_offered_again(clockwork: Make) -> None:
    on = made(clockwork)
    on.boot()
    board = on.boards[1]
    on.run(lambda: on.said("trained", round=1))
    older = (board.state / "update.bin").read_bytes()
    on.run(lambda: on.said("heard", round=2) and offering(board))
    board.kill()
    (board.state / "update.bin").write_bytes(older)
    board.boot(on.now)
    assert on.said("unreadable", path=str(board.state / "update.bin"))
    on.run(lambda: on.over)
    assert on.states(2) == {1: "answered"}
    assert not on.said("update-refused")


@pytest.mark.parametrize("kind", ["bit", "gone", "pipe"])
def test_an_update_that_is_damaged_as_the_link_begins_again_is_made_again(
    kind: str, clockwork: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = made(clockwork)
    on.boot()
    board = on.boards[1]
    on.run(lambda: on.said("epoch", round=1))
    on.cut = True
    on.run(lambda: offering(board))
    DAMAGES[kind](board.state / "update.bin", random.Random(kind))
    assert board.agent is not None
    before = board.agent.session
    monkeypatch.setattr(
        onboard.wire.security.seal, "MAX_SEQ", board.agent.session.snapshot(on.now).frames_sent + 2
    )
    on.cut = False
    on.run(lambda: board.agent and board.agent.session is not before)
    monkeypatch.undo()
    assert on.said("unreadable", path=str(board.state / "update.bin"))
    on.run(lambda: on.over)
    assert on.states(1) == on.states(2) == {1: "answered"}


@pytest.mark.parametrize("kind", ["bit", "gone", "folder"])
def test_a_final_model_that_is_damaged_is_sent_again(kind: str, clockwork: Make) -> None:
    on = made(clockwork)
    on.boot()
    board = on.boards[1]
    on.run(lambda: on.over and on.said("deployed"))
    whole = (board.state / "deployed.bin").read_bytes()
    board.kill()
    DAMAGES[kind](board.state / "deployed.bin", random.Random(kind))
    board.boot(on.now)
    assert len(on.said("unreadable", path=str(board.state / "deployed.bin"))) == 1
    assert not on.said("training-failed")  # none was: one damage is one line
    on.run(lambda: len(on.said("deployed")) == 2)
    assert (board.state / "deployed.bin").read_bytes() == whole


@pytest.mark.parametrize("name", ["model.bin", "training.npz"])
@pytest.mark.parametrize("kind", ["gone", "folder", "pipe", "link"])
def test_a_file_that_goes_while_the_board_trains_costs_nothing(kind: str, name: str, clockwork: Make) -> None:
    on, board = running(clockwork, checkpointed)
    DAMAGES[kind](board.state / name, random.Random(kind))
    on.run(lambda: on.over)
    assert on.states(1) == on.states(2) == {1: "answered"}
    assert not on.said("training-failed")
    for link in board.state.rglob("somebody-s"):
        assert link.read_bytes() == PRECIOUS


def test_what_nobody_of_the_program_wrote_is_no_matter(clockwork: Make) -> None:
    on, board = running(clockwork, checkpointed)
    board.kill()
    litter(board.state, random.Random(1))
    board.boot(on.now)
    on.run(lambda: on.over)
    assert on.said("resumed", phase="training")
    assert (board.state / "somebody-s").read_bytes() == PRECIOUS
    assert (board.state / "spool" / "somebody-s").read_bytes() == PRECIOUS


def test_a_spool_that_is_a_file_is_put_aside(clockwork: Make) -> None:
    on, board = running(clockwork, checkpointed)
    board.kill()
    shutil.rmtree(board.state / "spool")
    (board.state / "spool").write_bytes(b"a file")
    board.boot(on.now)
    assert len(on.said("put-aside")) == 1
    on.run(lambda: on.over)


@pytest.mark.parametrize("name", ["model.bin", "training.npz", "update.bin", "finished", ".part", ".map"])
def test_a_card_that_cannot_read_a_file_costs_that(
    name: str, clockwork: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, board = running(clockwork, offering if name == "update.bin" else checkpointed)
    board.kill()
    opened = os.open

    def rotten(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(path).endswith(name) and not flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, flags, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", rotten)
        board.boot(on.now)
        on.run(lambda: on.over)
    assert on.states(1) == on.states(2) == {1: "answered"}


def is_own(path: Path) -> bool:
    """Whether it is a file that the program wrote."""
    return path.is_file() and not path.is_symlink() and path.name != "somebody-s"


@pytest.mark.parametrize("seed", range(3))
def test_a_folder_of_which_anything_may_be_damaged_starts(seed: int, clockwork: Make) -> None:
    """Several files at once, again and again."""
    on, chance = made(clockwork), random.Random(seed)
    on.boot()
    board = on.boards[1]
    for _ in range(8):
        on.pass_time(chance.uniform(0.5, 4.0))
        board.kill()
        files = [path for path in sorted(board.state.rglob("*")) if is_own(path)]
        for path in chance.sample(files, chance.randrange(1, len(files) + 1)):
            if is_own(path):
                DAMAGES[chance.choice(sorted(DAMAGES))](path, chance)
        board.boot(on.now)
    on.run(lambda: on.over, 1200.0)
    assert on.states(2) == {1: "answered"}
