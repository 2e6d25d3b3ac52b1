"""Who withdraws an object of its own says nothing of the other end's, be it the same to the bit."""

from __future__ import annotations

from collections.abc import Callable

from onboard.agents.federated import FederatedAgent
from onboard.mission.health import State
from onboard.mission.objects import MODEL, UPDATE
from onboard.wire.messages import digest
from onboard.wire.session import Session
from tests.missions.clockwork import Clockwork, VirtualBoard

Make = Callable[..., Clockwork]


def offers_and_withdraws(
    on: Clockwork, sender: Session, receiver: Session, kind: int, payload: bytes
) -> None:
    """That object is on its way until the other end knows of it, and then is not any more."""
    name = sender.offer(kind, payload, on.now)
    on.run(lambda: name in receiver.incoming, 10.0)
    sender.cancel(name, on.now)
    on.run(lambda: name not in receiver.incoming, 10.0)


def test_a_board_that_echoes_its_question_and_withdraws_that_has_not_refused_it(clockwork: Make) -> None:
    on = clockwork(epochs=5, bits_up=0.8)
    on.boot()
    board = on.boards[1]
    on.run(lambda: on.states(1).get(1) == "answered")
    on.run(lambda: on.states(2).get(1) == "delivered", 400.0)
    assert board.agent is not None
    assert board.pump is not None
    model = (board.state / "model.bin").read_bytes()
    assert digest(MODEL, model) == board.agent.known.model
    offers_and_withdraws(on, board.pump.session, on.stations[1].session, MODEL, model)
    assert on.states(2) == {1: "delivered"}
    assert not on.said("refused-by-board")


def offering(clockwork: Make) -> tuple[Clockwork, VirtualBoard, Session, FederatedAgent]:
    """A mission whose board has an update to offer, with the board's session and agent."""
    on = clockwork(epochs=1, bits_up=0.8)
    on.boot()
    board = on.boards[1]
    on.run(lambda: board.agent and board.agent.known.phase is State.OFFERING)
    assert board.agent is not None
    assert board.pump is not None
    return on, board, board.pump.session, board.agent


def test_a_ground_that_withdraws_what_is_a_board_s_update_has_not_refused_that(clockwork: Make) -> None:
    on, board, session, _ = offering(clockwork)
    update = (board.state / "update.bin").read_bytes()
    offers_and_withdraws(on, on.stations[1].session, session, UPDATE, update)
    assert not on.said("update-cancelled")
    on.run(lambda: on.states(1).get(1) == "answered", 400.0)


def test_an_update_that_is_withdrawn_leaves_the_round_open(clockwork: Make) -> None:
    on, _, session, agent = offering(clockwork)
    known = agent.known
    on.run(lambda: known.update in on.stations[1].session.incoming)
    session.cancel(known.update, on.now)
    on.pass_time(5.0)
    assert on.states(1) == {1: "delivered"}
    assert not on.said("refused-by-board")
    agent.offer_kept(on.now)
    on.run(lambda: on.states(1).get(1) == "answered", 400.0)
