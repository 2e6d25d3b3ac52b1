"""What is stored and cannot be used ends no daemon and no start of one: it is told once, and the mission
ends."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from groundstation.rounds.closing import Closing
from groundstation.rounds.rounds import Rounds
from onboard.codec.dense import Dense
from onboard.codec.pack import pack, unpack
from onboard.mission.objects import Update, encode_object
from onboard.storage.keys import load_keys
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.session import Session
from tests.groundstation.rounds.test_rounds import Ground, update
from tests.missions.clockwork import TRAIN, Clockwork

Make = Callable[..., Clockwork]


def dense(value: float) -> bytes:
    """A whole model of one value, as FedAvg sends it."""
    return pack(Dense(TRAIN.layout, {n: np.full(s, value, np.float32) for n, s in TRAIN.shapes.items()}))


def of(node: int, packed: bytes, mission: bytes = b"mission.", number: int = 1) -> bytes:
    header = Update(
        mission=mission, round=number, node=node, samples=20, loss=0.5, cpu_s=1.0, energy_j=1.0, train_s=1.0
    )  # fmt: skip
    return encode_object(header, packed)


def not_finite() -> bytes:
    whole = bytearray(dense(1.0))
    whole[-4:] = np.float32("nan").tobytes()
    return bytes(whole)


POISON: dict[str, Callable[[], bytes]] = {
    "weights of 1e30": lambda: of(1, dense(1e30)),
    "weights of 3e38": lambda: of(1, dense(3e38)),
    "not finite": lambda: of(1, not_finite()),
    "another mission's": lambda: of(1, update(0.01), mission=b"another."),
    "another node's": lambda: of(2, update(0.01)),
    "of a round to come": lambda: of(1, update(0.01), number=9),
    "half of one": lambda: of(1, update(0.01))[:-200],
    "nothing": lambda: b"",
    "noise": lambda: os.urandom(3000),
}
METRICS = {"samples": 20, "loss": 0.5, "train_s": 1.0, "cpu_s": 1.0, "energy_j": 1.0}


def poison(on: Clockwork, payload: bytes, node: int = 1, number: int = 1) -> None:
    """What a version before took, or a disk has made of it."""
    on.store.take_update(number, node, payload, METRICS, on.wall())


@pytest.mark.parametrize("kind", POISON)
def test_a_stored_answer_that_cannot_be_used_is_lost_and_the_round_goes_on(
    kind: str, clockwork: Make
) -> None:
    on = clockwork(boards=2)
    on.boot()
    on.run(lambda: set(on.states(1).values()) == {"delivered"})
    on.kill_ground()
    poison(on, POISON[kind]())
    poison(on, of(2, update(0.01)), node=2)
    on.boot_ground()
    on.run(lambda: on.said("closed", round=1) and "asked" not in on.states(2).values())
    (lost,) = on.said("update-lost")
    assert (lost["node"], lost["round"]) == ("board-1", 1)
    assert lost["why"]
    assert on.states(1) == {1: "lost", 2: "answered"}
    assert [answer["why"] for answer in on.store.answers(1)] == [lost["why"], None]
    assert not on.said("round-failed")


def test_where_no_answer_can_be_used_the_boards_are_asked_again(clockwork: Make) -> None:
    on = clockwork(boards=2)
    on.boot()
    on.run(lambda: set(on.states(1).values()) == {"delivered"})
    on.kill_ground()
    for node in (1, 2):
        poison(on, of(node, dense(1e30)), node=node)
    on.cut = True  # what the boards are about to answer does not come in between
    on.boot_ground()
    on.run(lambda: on.states(1) == {1: "asked", 2: "asked"})
    assert sorted(said["node"] for said in on.said("update-lost")) == ["board-1", "board-2"]
    (nobody,) = on.said("nobody-answered", round=1)
    assert nobody["failed"] == ["board-1", "board-2"]
    assert [answer["asking"] for answer in on.store.answers(1)] == [1, 1]
    on.cut = False
    on.run(lambda: on.states(1) == {1: "answered", 2: "answered"})


def test_a_merged_answer_that_cannot_be_used_is_forgotten(tmp_path: Path) -> None:
    ground = Ground(tmp_path, "staleness = 1.0")
    (other,) = {1, 2, 3} - ground.states(1).keys()
    asked = min(ground.states(1))
    ground.store.take_update(1, other, b"", METRICS, 0.0, merged=True)
    ground.store.take_update(1, asked, of(asked, update(0.01)), METRICS, 0.0)
    ground.store.close()
    ground.start()
    assert ground.rounds.number == 2
    assert other not in ground.states(1)
    assert ground.states(1)[asked] == "answered"


@pytest.mark.parametrize("value", [1e30, -1e30, 3.4e38])
def test_a_board_with_a_key_and_weights_beyond_all_measure_ends_no_ground(
    value: float, tmp_path: Path
) -> None:
    ground = Ground(tmp_path, "")
    hostile, honest = sorted(ground.states(1))
    board = ground.boards[hostile]
    ground.answer(hostile, 1, dense(value))
    while any(not one.incoming for one in board.snapshot(ground.now).objects):  # its 178 kB take a while
        list(ground.exchange(hostile))
        assert ground.now < 600.0
    assert ground.states(1) in ({hostile: "asked", honest: "asked"}, {hostile: "lost", honest: "asked"})
    ground.store.close()
    ground.start()  # and is stopped by nothing that is stored
    ground.boards[honest] = Session(
        Identity(honest, 0, primary=False),
        Medium(ground.mission.nodes[honest - 1].link),
        Security(load_keys(ground.mission.nodes[honest - 1].key_path), nonce=os.urandom),
        SessionState(epoch=2),
    )
    ground.answer(honest, 1, update(0.01))
    assert ground.states(1)[honest] == "answered"
    assert ground.states(1)[hostile] != "answered"
    assert ground.rounds.number == 2
    packed = ground.store.model(1)
    assert packed is not None
    assert max(np.abs(w).max() for w in unpack(packed, TRAIN.layout).reconstruct().values()) < 1.0


def test_an_error_that_nobody_foresaw_is_followed_by_ever_longer_pauses(
    clockwork: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, fails, tries = clockwork(), [True], list[float]()
    on.boot()
    close = Rounds._close

    def closes(rounds: Rounds) -> Iterator[bool]:
        tries.append(on.now)
        if fails[0]:
            raise MemoryError("no room for another average")
        return (yield from close(rounds))  # type: ignore[return-value]

    monkeypatch.setattr(Rounds, "_close", closes)
    on.run(lambda: len(tries) == 5)
    pauses = [round(later - before) for before, later in itertools.pairwise(tries)]
    assert pauses == [5, 10, 20, 40]
    (failed,) = on.said("round-failed")  # once, and not each time
    assert failed["why"].startswith("MemoryError: no room for another average (")
    assert (failed["round"], failed["again_in_s"]) == (1, 5.0)
    assert on.states(1) == {1: "answered"}  # a lack of memory is no fault of the answer's
    fails[0] = False
    on.run(lambda: on.over)
    assert len(on.said("closed", round=1)) == 1


def test_a_round_that_can_never_be_closed_with_its_answers_asks_for_others(
    clockwork: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = clockwork()
    on.boot()
    average = Closing.average

    def spoilt(closing: Closing, number: int, nodes: list[int], base: bytes) -> Iterator[bool]:
        if on.store.answers(number)[0]["asking"] == 0:
            raise KeyError("what nobody foresaw")
        return (yield from average(closing, number, nodes, base))  # type: ignore[return-value]

    monkeypatch.setattr(Closing, "average", spoilt)
    on.run(lambda: on.over)
    for number in (1, 2):
        (lost,) = on.said("update-lost", round=number)
        assert "what nobody foresaw" in lost["why"]
        assert on.states(number) == {1: "answered"}
    assert len(on.said("round-failed")) == 2


@pytest.mark.parametrize("stays", [1, 2])
def test_a_board_that_was_taken_out_of_the_mission_is_in_nobody_s_way(stays: int, clockwork: Make) -> None:
    on = clockwork(boards=2)
    on.boot()
    on.run(lambda: set(on.states(1).values()) == {"delivered"})
    on.kill_ground()
    poison(on, of(3 - stays, update(0.01)), node=3 - stays)
    toml = on.folder / "mission.toml"
    head, *nodes = toml.read_text().split("[[node]]")
    for key in ("select", "quorum"):
        assert f"{key} = 2" in head
        head = head.replace(f"{key} = 2", f"{key} = 1")
    toml.write_text("[[node]]".join([head, nodes[stays - 1]]))
    on.boot_ground()
    on.run(lambda: on.said("closed", round=1))
    assert on.said("closed")[0]["answered"] == [f"board-{stays}"]
    assert not on.said("round-failed")


@pytest.mark.parametrize("model", [b"", b"no object at all"])
def test_a_question_that_is_unreadable_is_made_again(model: bytes, clockwork: Make) -> None:
    on = clockwork()
    on.boot()
    on.run(lambda: on.states(1) == {1: "asked"})
    on.kill_ground()
    before = on.store.rounds()[0].model
    on.store.put_question(1, model)
    on.boot_ground()
    on.run(lambda: on.states(1) == {1: "answered"})
    assert on.store.rounds()[0].model == before
    assert not on.said("round-failed")
