"""Signs of life keep a link known and nothing else; what was recorded is no sign."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hw_profiles import Link
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import Message, Rekeyed
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import NO_SALT
from onboard.wire.session import Session
from onboard.wire.transfer.peer import QUIET_S
from tests.onboard.wire.pair import FULL, HALF, KEY


def two(link: Link, quiet_s: float) -> tuple[Session, Session]:
    """Ground and board, which have not met."""
    draw = random.Random(1)
    ground, board = (
        Session(
Identity(node, 7 - node, primary=node == 0),
Medium(link),
Security(KEY, nonce=draw.randbytes),
SessionState(epoch=1),
limits=replace(Limits(), quiet_s=quiet_s),
)
        for node in (0, 7)
    )  # fmt: skip
    return ground, board


def talk(ends: tuple[Session, Session], since: float, until: float) -> list[bytes]:
    """Both run, on a channel without loss; returns what crossed it."""
    frames = []
    now = since
    while now < until:
        for speaker, hearer in (ends, ends[::-1]):
            speaker.tick(now)
            while (raw := speaker.transmit(now)) is not None:
                frames.append(raw)
                for event in hearer.receive(raw, now):
                    if isinstance(event, Rekeyed):
                        hearer.rekey(event.salt)
        now += 0.05
    return frames


def test_signs_of_life_are_heard_and_are_no_activity() -> None:
    """A node that gossips is over when its neighbour has nothing more to say, though it lives."""
    ends = two(FULL, QUIET_S)
    talk(ends, 0.0, 10.0)
    ends[0].send_message(b"the last", 10.0)
    talk(ends, 10.0, 11.0)
    assert talk(ends, 11.0, 200.0)
    for end in ends:
        assert end.snapshot(200.0).last_heard > 130.0
        assert not end.presence.in_doubt
    assert 10.0 <= ends[1].presence.active_at <= 11.0


def test_an_idle_link_carries_one_question_and_its_answer_a_minute() -> None:
    """Both are the shortest frames that there are. A board's health, each minute, makes it no more."""
    for has_news in (False, True):
        ends = two(FULL, QUIET_S)
        talk(ends, 0.0, 120.0)
        frames = list[bytes]()
        for minute in range(2, 12):
            if has_news:
                ends[1].send_message(b"in good health", 60.0 * minute)
            frames += talk(ends, 60.0 * minute, 60.0 * (minute + 1))
        signs = [framing.unproven(raw) for raw in frames if not framing.unproven(raw).payload]
        assert len(signs) == len(frames) - 10 * has_news
        assert {each.type for each in signs} == {Type.POLL}
        assert [each.poll for each in signs] == [True, False] * (len(signs) // 2)
        assert 600.0 / 60.0 <= len(signs) / 2 <= 600.0 / 57.0


def test_a_question_without_an_answer_delays_no_hello() -> None:
    ends = two(FULL, QUIET_S)
    talk(ends, 0.0, 300.0)
    now = heard_at = ends[0].snapshot(300.0).last_heard
    kinds = list[tuple[Type, float]]()
    while now < heard_at + 65.0:  # nobody is there
        while (raw := ends[0].transmit(now)) is not None:
            kinds.append((framing.unproven(raw).type, round(now - heard_at)))
        now += 0.05
    assert kinds[-2:] == [(Type.HELLO, 60), (Type.HELLO, 62)]
    assert [kind for kind, _ in kinds[:-2]] in ([], [Type.POLL])  # of the end that asks


def test_a_peer_that_lost_its_salt_and_the_way_here_is_found_within_a_minute() -> None:
    """It cannot read a question, and has nobody to send anything to."""
    ends = two(FULL, QUIET_S)
    talk(ends, 0.0, 300.0)
    lost = two(FULL, QUIET_S)[1]
    lost.presence.is_reachable = False
    talk((ends[0], lost), 300.0, 361.0)
    assert ends[0].salt == lost.salt != NO_SALT


def test_on_half_duplex_a_sign_of_life_is_asked_for_and_given_in_turn() -> None:
    ends = two(HALF, QUIET_S)
    talk(ends, 0.0, 150.0)
    signs = [framing.unproven(raw) for raw in talk(ends, 150.0, 400.0)]
    assert {each.type for each in signs} == {Type.POLL}
    assert [each.poll for each in signs] == [True, False] * (len(signs) // 2)
    assert all(each.over for each in signs)


def test_on_a_cable_nobody_asks() -> None:
    ends = two(FULL, float("inf"))
    talk(ends, 0.0, 10.0)
    assert talk(ends, 10.0, 500.0) == []


@pytest.mark.parametrize("delay_s", [0.2, 0.9])
def test_a_recording_hands_no_turn_over(delay_s: float) -> None:
    """On half-duplex a HELLO ends with OVER: a copy of it must not have this end speak out of turn."""
    ends = two(HALF, float("inf"))
    hellos = [raw for raw in talk(ends, 0.0, 20.0) if raw[0] & 0x1F == 0 and raw[3] == 0xF8]
    ground = ends[0]
    now = 60.0
    ground.receive(hellos[0], now)  # nobody knows when it was made: it is answered, once
    now += 0.01
    assert ground.transmit(now) is not None
    ground.send_message(b"in its turn", now)
    opens_at = ground.wakeup(now)
    assert opens_at > now + 0.1
    at = now + delay_s
    if at < opens_at:
        ground.receive(hellos[0], at)
        assert ground.transmit(at + 0.001) is None
    assert ground.wakeup(at) >= min(opens_at, at)
    frame = None
    while frame is None:
        frame = ground.transmit(at)
        at += 0.05
        assert at < now + 30.0
    assert Message(b"in its turn") in ends[1].receive(frame, at)
