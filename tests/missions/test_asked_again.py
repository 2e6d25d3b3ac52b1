"""A board that took a question and cannot answer is asked until it does, whatever it has lost: no mission is
over without a word, and nothing is left to a restart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onboard.mission.health import State
from tests.missions.clockwork import Clockwork, VirtualBoard

Make = Callable[..., Clockwork]


def test_a_training_that_fails_once_is_asked_for_again(clockwork: Make) -> None:
    on = clockwork()
    on.boot()
    failures = iter([True])
    on.boards[1].breaks = lambda: next(failures, False)
    on.run(lambda: on.over)
    assert len(on.said("board-failed", failure="memory", why="out of memory: needs more than there is")) == 1
    (nobody,) = on.said("nobody-answered")
    assert nobody["failed"] == ["board-1"]
    assert nobody["asked_again_in_s"] == 10.0
    assert [said["asking"] for said in on.said("heard", round=1)] == [0, 1]
    assert on.states(1) == on.states(2) == {1: "answered"}


def test_what_fails_for_a_lasting_reason_is_asked_ever_less_often(clockwork: Make) -> None:
    on = clockwork()
    on.boot()
    on.boards[1].breaks = lambda: True
    on.pass_time(600.0)
    pauses = [said["asked_again_in_s"] for said in on.said("nobody-answered")]
    assert pauses == [10.0, 20.0, 40.0, 80.0, 120.0, 120.0, 120.0, 120.0][: len(pauses)]
    assert len(pauses) >= 6
    assert len(on.said("heard")) == len(on.said("training-failed")) <= len(pauses) + 1
    on.boards[1].breaks = lambda: False
    on.run(lambda: on.over)


def test_another_board_s_answer_closes_the_round_and_the_next_asks_both(clockwork: Make) -> None:
    on = clockwork(boards=2)
    on.boot()
    failures = iter([True])
    on.boards[1].breaks = lambda: next(failures, False)
    on.run(lambda: on.over)
    assert on.states(1) == {1: "failed", 2: "answered"}
    assert on.states(2) == {1: "answered", 2: "answered"}


def damage_model(state: Path) -> None:
    (state / "model.bin").write_bytes(b"")


def lose_model(state: Path) -> None:
    (state / "model.bin").unlink()


def cut_model(state: Path) -> None:
    content = (state / "model.bin").read_bytes()
    (state / "model.bin").write_bytes(content[: len(content) // 2])


def lose_journal(state: Path) -> None:
    for slot in state.glob("journal.*"):
        slot.unlink()


def spoil_journal(state: Path) -> None:
    for slot in state.glob("journal.*"):
        slot.write_bytes(b"\0" * len(slot.read_bytes()))


def lose_all(state: Path) -> None:
    shutil.rmtree(state)


DAMAGE = [damage_model, lose_model, cut_model, lose_journal, spoil_journal, lose_all]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_board_that_lost_what_it_was_asked_is_asked_again(
    damage: Callable[[Path], None], clockwork: Make
) -> None:
    on = clockwork(epochs=3)
    on.boot()
    board = on.boards[1]
    on.run(lambda: on.states(1) == {1: "delivered"} and board.agent and board.agent.work)
    board.kill()
    damage(board.state)
    board.boot(on.now)
    assert board.agent is not None
    assert board.agent.known.phase in (State.IDLE, State.FAILED)  # and not TRAINING, which it is not
    took_s = on.run(lambda: on.states(1) == {1: "answered"})
    assert took_s < 70.0  # a minute until it says how it is, and the training
    assert on.said("forgotten", node="board-1", round=1)
    on.run(lambda: on.over)


def offering(clockwork: Make) -> tuple[Clockwork, VirtualBoard]:
    """A mission whose board has its update on its disk; the link is cut."""
    on = clockwork()
    on.boot()
    board = on.boards[1]
    on.run(lambda: on.states(1) == {1: "delivered"})
    on.cut = True
    on.run(lambda: board.agent and board.agent.known.phase is State.OFFERING)
    return on, board


@pytest.mark.parametrize("content", [None, b"", b"half"])
def test_an_update_that_is_lost_before_the_ground_has_it_is_trained_again(
    content: bytes | None, clockwork: Make
) -> None:
    on, board = offering(clockwork)
    board.kill()
    if content is None:
        (board.state / "update.bin").unlink()
    else:
        (board.state / "update.bin").write_bytes(content)
    on.cut = False
    board.boot(on.now)
    (said,) = on.said("unreadable")
    assert said["path"] == str(board.state / "update.bin")
    on.run(lambda: on.over, 60.0)
    assert on.said("resumed", phase="training")


def test_an_update_and_its_model_are_lost(clockwork: Make) -> None:
    on, board = offering(clockwork)
    board.kill()
    for name in ("update.bin", "model.bin"):
        (board.state / name).unlink()
    on.cut = False
    board.boot(on.now)
    on.run(lambda: on.over)
    assert len(on.said("unreadable")) == 2
    assert [said["asking"] for said in on.said("heard", round=1)] == [0, 1]


@pytest.mark.parametrize(
    "content", [b"", b"PK\x05\x06" + bytes(18), bytes(5000)], ids=["empty", "hollow", "zeros"]
)
def test_a_checkpoint_that_cannot_be_read_costs_itself(content: bytes, clockwork: Make) -> None:
    on = clockwork(epochs=3)
    on.boot()
    board = on.boards[1]
    on.run(lambda: board.agent and board.agent.work and board.agent.work.last)
    board.kill()
    (board.state / "training.npz").write_bytes(content)
    board.boot(on.now)
    on.run(lambda: on.over)
    assert on.said("checkpoint-dropped")


def test_an_asking_is_durable_before_it_is_sent(clockwork: Make) -> None:
    on = clockwork()
    on.boot()
    failures = iter([True])
    on.boards[1].breaks = lambda: next(failures, False)
    on.run(lambda: on.said("nobody-answered"))
    on.cut = True
    on.run(lambda: on.store.answers(1)[0]["asking"] == 1)
    on.kill_ground()
    on.cut = False
    on.boot_ground()
    on.run(lambda: on.over)
    assert [said["asking"] for said in on.said("heard", round=1)] == [0, 1]


def test_a_board_at_work_that_is_asked_again_goes_on(clockwork: Make) -> None:
    on = clockwork(epochs=8)
    on.boot()
    board = on.boards[1]
    on.run(lambda: board.agent and board.agent.work and board.agent.work.last)
    assert board.agent is not None
    before = board.agent.work
    on.store.ask_once_more(1, 1, on.wall())  # by a ground that believes it lost
    on.kill_ground()
    on.boot_ground()
    on.run(lambda: len(on.said("heard", round=1)) == 2)
    assert board.agent.work is before
    assert board.agent.known.asking == 1
    board.kill()  # and the file, the journal and what it says are of the last asking
    board.boot(on.now)
    on.run(lambda: on.over)
    assert not on.said("superseded")
    assert not on.said("unreadable")


def test_a_board_with_an_update_on_its_way_that_is_asked_again_offers_it(clockwork: Make) -> None:
    on, board = offering(clockwork)
    update = (board.state / "update.bin").read_bytes()
    on.store.ask_once_more(1, 1, on.wall())
    on.kill_ground()
    on.cut = False
    on.boot_ground()
    on.run(lambda: on.states(1) == {1: "answered"})
    assert on.store.payload(1, 1) == update
    assert len(on.said("trained", round=1)) == 1


def test_an_answer_that_the_ground_has_lost_is_given_again(clockwork: Make) -> None:
    """A database from before the answer, beside a spool that calls the update finished."""
    on = clockwork(quorum=2, boards=2)
    on.boot()
    on.boards[2].kill()  # so that the round stays open
    on.run(lambda: on.said("delivered") and on.states(1) == {1: "answered", 2: "asked"})
    on.kill_ground()
    with on.store.transaction():
        on.store.db.execute("UPDATE answer SET state = 'delivered', payload = NULL WHERE node = 1")
    on.boot_ground()
    on.run(lambda: on.states(1) == {1: "answered", 2: "asked"})
    assert [said["asking"] for said in on.said("heard", round=1)] == [0, 1]
    on.boards[2].boot(on.now)
    on.run(lambda: on.over)


def test_an_update_that_waits_is_taken_by_a_ground_that_lost_it_before_it_said_so(clockwork: Make) -> None:
    on = clockwork(quorum=2, boards=2)
    on.boot()
    on.boards[2].kill()
    on.run(lambda: on.states(1) == {1: "answered", 2: "asked"})
    assert not on.said("delivered")
    on.kill_ground()
    with on.store.transaction():
        on.store.db.execute("UPDATE answer SET state = 'delivered', payload = NULL WHERE node = 1")
    on.boot_ground()
    on.run(lambda: on.states(1)[1] == "answered", 10.0)
    assert len(on.said("trained", round=1)) == 1


def test_the_final_model_reaches_a_board_that_was_away_at_the_end(clockwork: Make) -> None:
    on = clockwork(boards=2, quorum=1)
    on.boot()
    on.boards[2].kill()
    on.run(lambda: on.over)
    on.kill_ground()
    on.boot_ground()
    on.boards[2].boot(on.now)
    on.run(lambda: len(on.said("deployed")) == 2)
    assert (on.boards[2].state / "deployed.bin").read_bytes()


@pytest.mark.parametrize("name", ["deployed.bin", "all"])
def test_a_final_model_that_is_lost_is_sent_again(name: str, clockwork: Make) -> None:
    on = clockwork()
    on.boot()
    on.run(lambda: on.over)
    board = on.boards[1]
    board.kill()
    if name == "all":
        shutil.rmtree(board.state)
    else:
        (board.state / name).write_bytes(b"")
    board.boot(on.now)
    on.run(lambda: len(on.said("deployed")) == 2)
    assert (board.state / "deployed.bin").read_bytes()
