"""Two ends that disagree find out and agree anew; two live copies of one are told, and slowed down."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from hw_profiles import Link
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Event, Message, OutOfStep, Rekeyed, TwoEnds, WrongKey
from onboard.wire.framing.frame import Type, unproven
from onboard.wire.security.link_diagnostics import FREE, WITHIN_S, Agreements
from onboard.wire.security.seal import NO_SALT, Sealer
from onboard.wire.session import Session
from tests.onboard.wire.pair import FULL, KEY

STEP_S = 0.25
nonces = random.Random(11)


class One:
    """A live program: a ground's (node 0) or a board's (node 7), which begins as all of them do."""

    def __init__(
        self,
        node: int,
        now: float,
        epoch: int = 1,
        *,
        link: Link = FULL,
        encrypted: bool = False,
        state: SessionState | None = None,
    ) -> None:
        self.node = node
        self.session = Session(
            Identity(node, 7 - node, primary=node == 0),
            Medium(link),
            Security(KEY, nonces.randbytes, encrypted),
            state or SessionState(epoch),
            now=now,
        )
        self.events: list[tuple[float, Event]] = []
        self.said: list[tuple[float, bytes]] = []
        self.every_s, self.due_s = 1.0, now  # it says something so often

    def hear(self, raw: bytes, now: float) -> None:
        for event in self.session.receive(raw, now):
            self.events.append((now, event))
            if isinstance(event, Rekeyed):
                self.session.rekey(event.salt)

    def say(self, now: float) -> list[bytes]:
        if now >= self.due_s:
            self.due_s = now + self.every_s
            self.session.send_message(b"%.2f" % now, now)
        frames = []
        while (raw := self.session.transmit(now)) is not None:
            frames.append(raw)
        self.said += [(now, raw) for raw in frames]
        return frames

    def times(self, *kinds: type[Event]) -> list[float]:
        """When it told of events of these classes."""
        return [at for at, event in self.events if isinstance(event, kinds)]


Hears = Callable[[One, One], bool]


def run(ends: Iterable[One], now: float, until: float, hears: Hears = lambda hearer, speaker: True) -> float:
    """All on one frequency, where `hears` (hearer, speaker) lets them."""
    ends = list(ends)
    while now < until:
        now += STEP_S
        for speaker in ends:
            for raw in speaker.say(now):
                for hearer in ends:
                    if hearer is not speaker and hears(hearer, speaker):
                        hearer.hear(raw, now)
    return now


def test_an_agreement_with_a_copy_is_undone_when_the_copy_is_gone() -> None:
    """The board's folder ran on a laptop for a minute, over the same link, while the board was unplugged."""
    ground, board = One(0, 0.0), One(7, 0.0)
    now = run((ground, board), 0.0, 5.0)
    laptop = One(7, now, epoch=2)
    now = run((ground, laptop), now, 60.0)
    assert ground.session.salt == laptop.session.salt != board.session.salt
    back_at = now
    now = run((ground, board), now, now + 30.0)
    assert ground.session.salt == board.session.salt
    for end in (ground, board):
        assert back_at < end.times(Message)[-1] > now - 5
        assert not end.times(WrongKey, TwoEnds)
    assert len(ground.times(OutOfStep) + board.times(OutOfStep)) >= 1
    healed_at = min(at for at in ground.times(Message) if at > back_at)
    assert healed_at - back_at < 15


def test_the_last_hello_of_an_agreement_may_be_lost() -> None:
    ground, board = One(0, 0.0), One(7, 0.0)
    now = run((ground, board), 0.0, 5.0)
    other = One(7, now, epoch=2)

    def hears(hearer: One, speaker: One) -> bool:  # nothing of the ground's once it has agreed
        return hearer is ground or ground.session.salt == agreed

    agreed = ground.session.salt
    now = run((ground, other), now, 8.0, hears)
    assert ground.session.salt != agreed
    assert other.session.salt == NO_SALT
    now = run((ground, other), now, now + 12.0)
    assert ground.session.salt == other.session.salt
    assert other.times(Message)


def test_memory_that_went_back_is_replays_alone_and_is_agreed_upon_anew() -> None:
    """A virtual machine was put back to a snapshot in which the program ran: same salt, numbers once more."""
    ground, board = One(0, 0.0), One(7, 0.0)
    now = run((ground, board), 0.0, 60.0)
    back = One(7, now, state=SessionState(1, replay_floor=(1, 1), salt=board.session.salt))
    back_at = now
    now = run((ground, back), now, now + 60.0)
    assert ground.session.salt == back.session.salt != board.session.salt
    assert [event for _, event in ground.events if isinstance(event, OutOfStep)] == [OutOfStep(True)]
    assert min(at for at in ground.times(Message) if at > back_at) - back_at < 30
    assert not ground.times(WrongKey, TwoEnds)


@pytest.mark.parametrize("kind", ["recorded", "forged", "noise"])
def test_an_attacker_makes_no_end_agree_anew_and_few_hellos(kind: str) -> None:
    """On an idle link, with the peer there or gone, a frame comes in every second that is no new one."""
    ground, board = One(0, 0.0), One(7, 0.0)
    now = run((ground, board), 0.0, 10.0)
    salt, said = ground.session.salt, list(board.said)
    ground.every_s = board.every_s = 1e9
    recorded = [raw for _, raw in said if unproven(raw).type is not Type.HELLO]
    forger = Sealer(bytes(32), source=7, destination=0, epoch=3)

    def frame() -> bytes:
        if kind == "recorded":
            return nonces.choice(recorded)
        raw = forger.seal(Type.MSG, b"forged") if kind == "forged" else nonces.choice(recorded)
        return raw if kind == "forged" else raw[:-1] + bytes((raw[-1] ^ 1 << nonces.randrange(8),))

    def attack(ends: tuple[One, ...], now: float) -> float:
        for _ in range(120):
            ground.hear(frame(), now)
            now = run(ends, now, now + 1.0)
        return now

    ground.said.clear()
    now = attack((ground, board), now)
    hellos = [raw for _, raw in ground.said if unproven(raw).type is Type.HELLO]
    assert 1 <= len(hellos) <= 120 / 8 + 1
    assert not ground.times(TwoEnds, WrongKey)
    assert len(ground.times(Rekeyed)) <= 1 + (kind == "recorded")  # replays that go on might be the peer's
    board.due_s = now
    now = run((ground, board), now, now + 1.0)
    assert ground.times(Message)[-1] > now - 1.5
    ground.said.clear()
    now = attack((ground,), now)
    assert len(ground.said) <= 120 / 8 + 1
    assert ground.session.salt == salt or kind == "recorded"
    board.due_s = now
    now = run((ground, board), now, now + 1.0)
    assert ground.times(Message)[-1] > now - 1.5


def test_two_live_copies_on_one_frequency_are_told_and_slowed_down() -> None:
    """A cloned card: two boards with the same key and state, both heard and both hearing."""
    ground, first = One(0, 0.0), One(7, 0.0, epoch=6)
    now = run((ground, first), 0.0, 10.0)
    second = One(7, now, epoch=6)
    began = now
    now = run((ground, first, second), now, now + WITHIN_S)
    told = ground.times(TwoEnds)
    assert told
    assert told[0] - began < 90
    assert len(told) <= 3
    assert len([at for at in ground.times(Rekeyed) if at > began]) <= FREE + 1
    assert not ground.times(WrongKey)
    heard = [at for at in ground.times(Message) if at > now - 300]
    assert len(heard) >= 250  # one of the two keeps the link
    hellos = [at for end in (ground, first, second) for at, raw in end.said
              if at > now - 300 and unproven(raw).type is Type.HELLO]  # fmt: skip
    assert len(hellos) * 48 < 5 * 1000  # a minute


def test_a_copy_that_hears_nothing_is_told_by_its_frames() -> None:
    """Two boards at two addresses: the ground answers the one that spoke last, the other is deaf."""
    ground, first = One(0, 0.0), One(7, 0.0, epoch=6)
    now = run((ground, first), 0.0, 10.0)
    second = One(7, now, epoch=6)
    began = now

    def hears(hearer: One, speaker: One) -> bool:
        return hearer is ground or hearer is second

    now = run((ground, first, second), now, now + 60.0, hears)
    assert [event for _, event in ground.events if isinstance(event, TwoEnds)] == [TwoEnds(False)]
    assert ground.times(TwoEnds)[0] - began < 20  # told at once, and once
    assert not ground.times(WrongKey, OutOfStep)
    assert not second.times(TwoEnds, WrongKey, OutOfStep)


def test_two_grounds_with_one_database_are_told_to_both_sides() -> None:
    """A mission's folder was copied, and both serve."""
    board, first = One(7, 0.0), One(0, 0.0, epoch=3)
    now = run((board, first), 0.0, 10.0)
    second = One(0, now, epoch=3)
    now = run((board, first, second), now, now + 120.0)
    assert board.times(TwoEnds)
    assert first.times(TwoEnds, OutOfStep)


def test_frames_that_were_under_way_when_an_end_started_again_are_no_copy() -> None:
    ground, board = One(0, 0.0), One(7, 0.0)
    now = run((ground, board), 0.0, 5.0)
    late = [raw for _ in range(8) for raw in board.say(now + 10.0 + _)]
    again = One(7, now, epoch=2)
    now = run((ground, again), now, now + 4.0)
    for raw in late:
        ground.hear(raw, now)
    now = run((ground, again), now, now + 30.0)
    assert not ground.times(TwoEnds, OutOfStep, WrongKey)


def test_each_start_of_the_peer_may_agree_and_one_start_so_often() -> None:
    agreements = Agreements()
    for epoch in range(1, 1000):  # a board that crashes every second
        assert agreements.may(epoch, epoch * 1.0)
        assert not agreements.agreed(epoch, epoch * 1.0)
    told = [agreements.agreed(500, at) for at in range(1000, 1004) if agreements.may(500, at)]
    assert told == [False] * (FREE - 1) + [True]
    assert agreements.may(1000, 1004.0)  # a new start, whatever was before
    assert not agreements.may(500, 1000.0 + WITHIN_S - 1)
    assert agreements.may(500, 1000.0 + WITHIN_S)
