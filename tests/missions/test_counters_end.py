"""Counters end, and nothing ends with them: epochs, seqs, rounds, generations, exchanges. And a link that
fails, for whatever reason, is the only one that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

import onboard.wire.security.seal
from onboard.agents.federated_state import FederatedState
from onboard.codec import sparse
from onboard.learn.federated.rounds import PartialAverage, staleness_weight
from onboard.learn.gossip.exchange import LAST_NUMBER, Gossip, GossipSetup
from onboard.learn.training import LEAST_RATE, Training
from onboard.mission.health import Health, decode_health, encode_health
from onboard.mission.objects import decode_task
from onboard.mission.server import MissionTerms, Server
from onboard.storage.journal import Journal
from onboard.wire.security.seal import MAX_EPOCH, NO_SALT
from tests.missions.clockwork import TRAIN, Clockwork

Make = Callable[..., Clockwork]


@pytest.mark.parametrize("ends", ["board", "ground", "both"])
def test_the_last_epoch_is_followed_by_the_first_under_another_salt(ends: str, clockwork: Make) -> None:
    on = clockwork()
    on.boot()
    on.run(lambda: on.states(1) == {1: "answered"})
    board = on.boards[1]
    assert board.agent is not None
    salt = board.agent.session.salt
    board.kill()
    on.kill_ground()
    journal = Journal(board.state, FederatedState)
    before = journal.load()
    assert before is not None
    if ends != "ground":
        before.links[0].epoch = MAX_EPOCH
        journal.save(before)
    if ends != "board":
        with on.store.transaction():
            on.store.db.execute("UPDATE node SET epoch = ?", (MAX_EPOCH,))
    on.boot()
    on.run(lambda: on.over)
    assert board.agent is not None
    assert board.agent.session.salt == on.stations[1].session.salt not in (salt, NO_SALT)
    epochs = {"board": board.agent.session.epoch, "ground": on.stations[1].session.epoch}
    assert {name for name, epoch in epochs.items() if epoch == 1} == (
        {"board", "ground"} if ends == "both" else {ends}
    )


def test_an_epoch_beyond_its_field_in_a_journal_is_the_last_one_too(clockwork: Make) -> None:
    on = clockwork()
    on.boot()
    on.run(lambda: on.states(1) == {1: "answered"})
    board = on.boards[1]
    board.kill()
    journal = Journal(board.state, FederatedState)
    known = journal.load()
    assert known is not None
    known.links[0].epoch = MAX_EPOCH + 7
    journal.save(known)
    board.boot(on.now)
    on.run(lambda: on.over)


def test_the_last_seq_is_followed_by_another_epoch(clockwork: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onboard.wire.security.seal, "MAX_SEQ", 25)
    on = clockwork(bits_up=0.4, bits_down=0.4)
    on.boot()
    work = []
    on.run(lambda: on.states(1) == {1: "delivered"})
    agent = on.boards[1].agent
    assert agent is not None
    work.append(agent.work)
    on.run(lambda: on.over)
    assert on.boards[1].agent is agent  # it was not begun again, its link was
    assert agent.known.links[0].epoch > 2
    assert on.stations[1].session.epoch > 2
    assert not on.said("link-failed")
    assert len(on.said("trained")) == 2


def test_a_link_that_fails_is_told_and_begun_again_and_the_other_goes_on(clockwork: Make) -> None:
    on = clockwork(boards=2, quorum=1)
    on.boot()

    def broken(frame: bytes, *_: object) -> None:
        raise RuntimeError(f"{len(frame)} B that nobody foresaw")

    station = on.stations[1]
    station.session.receive = broken  # type: ignore[method-assign, assignment]
    on.run(lambda: on.said("link-failed"))
    (failed,) = on.said("link-failed")
    assert failed["node"] == "board-1"
    assert failed["why"].startswith("RuntimeError: ")
    assert "B that nobody foresaw (test_counters_end.py:" in failed["why"]
    assert failed["again_in_s"] == 5.0
    began = on.now
    on.run(lambda: on.states(1)[1] in ("delivered", "answered"))
    assert 5.0 <= on.now - began < 20.0
    on.run(lambda: on.over)


def test_a_question_that_a_link_cannot_carry_fails_one_board(clockwork: Make) -> None:
    on = clockwork(boards=2)
    on.boot_ground()

    def offer(*_: object, **__: object) -> bytes:
        raise ValueError("1000000 B in fragments of 9 B are too many fragments")

    on.stations[2].session.offer = offer  # type: ignore[method-assign]
    on.boards[1].boot(on.now)
    on.boards[2].boot(on.now)
    on.run(lambda: on.states(1) == {1: "answered", 2: "failed"})
    assert "too many fragments" in on.said("link-failed", node="board-2")[0]["why"]


def test_a_link_that_fails_for_ever_is_begun_again_ever_less_often(clockwork: Make) -> None:
    on = clockwork()
    on.boot_ground()
    (station,) = on.stations.values()

    def poll(now: float, wall_s: float) -> None:
        raise OSError("no such thing")

    station.endpoint.poll = poll  # type: ignore[method-assign, assignment]
    on.pass_time(400.0)
    pauses = [said["again_in_s"] for said in on.said("link-failed")]
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0]


def server_of(training: Training) -> Server:
    """The server of a mission with this training."""
    terms = MissionTerms(id=b"mission.", seed=1, deadline_s=60.0, training=training)
    return Server(terms, TRAIN)


@pytest.mark.parametrize("decay", [0.9, 0.5, 1e-300])
@pytest.mark.parametrize("number", [2, 7_018, 7_019, 7_020, 0xFFFF])
def test_a_learning_rate_decays_to_a_bound_and_not_to_nothing(decay: float, number: int) -> None:
    server = server_of(Training(learning_rate_decay=decay))
    task, _ = decode_task(server.model(number, b"packed"))
    assert task.training is not None
    assert task.training.learning_rate >= LEAST_RATE
    assert task.training.learning_rate == max(3e-3 * decay ** (number - 1), LEAST_RATE)


def test_a_learning_rate_below_the_bound_stays_what_it_is() -> None:
    server = server_of(Training(learning_rate=1e-15))
    task = server.task(9_000)
    assert task.training is not None
    assert task.training.learning_rate == 1e-15


def test_an_update_of_any_age_weighs_something() -> None:
    average = PartialAverage(TRAIN.layout)
    ones = {name: np.ones(shape, np.float32) for name, shape in TRAIN.shapes.items()}
    average.add(ones, 100, staleness_weight(0xFFFE, 100.0))
    assert all((mean == 1).all() for mean in average.mean().values())
    average.add(ones, 100)
    assert all((mean == 1).all() for mean in average.mean().values())


class Count(msgspec.Struct):
    n: int = 0


def test_a_journal_s_generations_go_round(tmp_path: Path) -> None:
    journal = Journal(tmp_path, Count)
    journal._generation = 2**32 - 3
    for n in range(6):
        journal.save(Count(n))
        assert journal.load() == Count(n)
        journal = Journal(tmp_path, Count)  # after a restart
        assert journal.load() == Count(n)
    newest = tmp_path / f"journal.{journal._generation % 2}"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert Journal(tmp_path, Count).load() == Count(4)


def test_a_health_at_the_ends_of_its_fields_is_sent() -> None:
    health = Health(
        1, 0xFFFF, 2**40, 1e39, float("inf"), 1e300, temperature_c=1e6, progress=0.5, loss=1e39, asking=2**32
    )
    said = decode_health(encode_health(health))
    assert (said.round, said.uptime_s, said.asking) == (0xFFFF, 0xFFFFFFFF, 0)
    assert (said.temperature_c, said.progress, said.loss) == (None, 0.5, None)
    assert said.airtime_s > 3e38


def test_an_exchange_beyond_the_last_number_is_refused_and_the_last_is_mixed() -> None:
    vector = np.zeros(1024, np.float32)
    setup = GossipSetup(node=1, weights={2: 0.5}, start=vector, seed=1, share=1 << 15)
    one = Gossip(setup, {2: LAST_NUMBER})
    two = Gossip(replace(setup, node=2, weights={1: 0.5}), {1: LAST_NUMBER})
    for own, peer, other in ((one, 2, two), (two, 1, one)):
        other.take(own.node, own.open(vector, [peer])[peer])
        own.delivered(peer)
    assert one.mix(vector) == (2,)
    assert two.mix(vector) == (1,)
    beyond = one.open(vector, [2])[2]
    with pytest.raises(sparse.BadExchange, match="numbers end at 4294967294"):
        two.take(1, beyond)
    one.refused(2)
    assert one.open(vector, [2]) == {}
