"""Each thing that goes wrong is one event, one counter, and never the end of the link."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import (
    Arrived,
    Cancelled,
    EncryptionMismatch,
    Event,
    Expired,
    ForeignFrames,
    Refused,
    Rekeyed,
    UnknownPeer,
    WrongKey,
)
from onboard.wire.framing.frame import Type
from onboard.wire.messages import Reason
from onboard.wire.security.seal import Sealer
from onboard.wire.session import Session
from tests.onboard.wire.pair import FULL, HALF, KEY, UPDATE, Pair, data, ground_session

ADVICE = (WrongKey, EncryptionMismatch, UnknownPeer, ForeignFrames)


def ground() -> Session:
    """Of a pair that has just begun to talk, so that keys are agreed on."""
    pair = Pair(FULL)
    pair.board.offer(UPDATE, data(100), 0.0)
    pair.run(5.0)
    assert pair.ground.seen(Arrived)
    assert pair.ground.session is not None
    return pair.ground.session


def frames(source: int, destination: int, count: int, key: bytes = KEY) -> list[bytes]:
    """Authentic for whoever holds the key, and for nobody else."""
    sealer = Sealer(key, source=source, destination=destination, epoch=9)
    return [sealer.seal(Type.MSG, b"%d" % nth) for nth in range(count)]


def heard(session: Session, raws: list[bytes], now: float = 6.0) -> list[Event]:
    """What all of them bring."""
    return [event for raw in raws for event in session.receive(raw, now)]


def test_a_stranger_is_told_of_once() -> None:
    session = ground()
    before = session.snapshot(6.0).misaddressed
    assert heard(session, frames(9, 0, 20)) == [UnknownPeer(9)]
    assert heard(session, frames(8, 3, 2)) == []  # of so few it may be noise
    assert heard(session, frames(8, 3, 2)) == [UnknownPeer(8)]
    assert heard(session, frames(7, 3, 20)) == []  # our peer, to somebody else
    assert session.snapshot(6.0).misaddressed == before + 44


def test_another_key_is_told_of_once_until_one_is_right() -> None:
    session = ground()
    before = session.snapshot(6.0).bad_tags
    wrong = frames(7, 0, 30, bytes(32))
    assert heard(session, wrong[:15]) == []  # a moment after frames that were right
    assert heard(session, wrong[15:18], 40.0) == []  # the peer may just have nothing to say
    assert heard(session, wrong[18:], 160.0) == [WrongKey(was_right=True)]
    assert session.snapshot(160.0).bad_tags == before + 30


def test_another_key_from_the_start_is_told_of_at_once() -> None:
    session = ground_session()
    assert heard(session, frames(7, 0, 30, bytes(32)), 0.0) == [WrongKey()]


def flipped(raw: bytes, *at: int) -> bytes:
    """The same bytes with a bit wrong in each of these."""
    damaged = bytearray(raw)
    for each in at:
        damaged[each] ^= 0x04
    return bytes(damaged)


def test_a_line_that_damages_nine_frames_of_ten_is_no_wrong_key_and_nobody_else_s() -> None:
    """Wrong tags by the hundred, one after the other, but what is right comes in between."""
    session = ground()
    right = Sealer(KEY, source=7, destination=0, epoch=9, salt=session.salt)
    for second in range(6, 600):
        raws = [flipped(right.seal(Type.MSG, b"%d" % second), 15) for _ in range(9)]
        if second % 15 == 0:
            raws.append(right.seal(Type.MSG, b"right"))
        told = heard(session, raws, float(second))
        assert not any(isinstance(event, ADVICE) for event in told)


def test_a_line_that_damages_every_frame_is_no_wrong_key() -> None:
    """Another speed, say: it spoils headers as well as tags."""
    session = ground_session()
    sealer, told = Sealer(KEY, source=7, destination=0, epoch=1), list[Event]()
    for second in range(600):
        told += heard(session, [flipped(sealer.seal(Type.MSG, bytes(20)), 15 if second % 3 else 3)], second)
    assert session.snapshot(600.0).bad_tags > 300
    assert told == []


def test_noise_in_the_shape_of_frames_is_no_stranger() -> None:
    """It names one of 256 nodes each time, so that each would have its three frames in the end."""
    session, random = ground(), Random(1)
    raws = [bytes((0x22,)) + random.randbytes(40) for _ in range(20_000)]
    assert heard(session, raws) == []
    assert session.snapshot(6.0).misaddressed > 19_000


def test_noise_that_sets_the_bit_of_encryption_is_no_encryption() -> None:
    session = ground()
    sealer = Sealer(KEY, source=7, destination=0, epoch=9)
    raws = [flipped(sealer.seal(Type.MSG, b"%d" % nth), 1) for nth in range(20)]
    assert heard(session, raws, 7.0) == []
    assert session.snapshot(7.0).encrypted_dropped == 20
    assert heard(session, raws, 40.0) == []
    assert heard(session, raws, 160.0) == [EncryptionMismatch(encrypted=True)]  # nothing else for so long


def test_bit_errors_are_no_wrong_key() -> None:
    pair = Pair(FULL, bit_error_rate=2e-4)
    pair.board.offer(UPDATE, data(30_000), 0.0)
    pair.run(120.0)
    assert pair.ground.session is not None
    assert pair.ground.session.snapshot(120.0).bad_tags > 20
    assert not pair.ground.seen(WrongKey)


def without_a_key(kind: str, random: Random) -> bytes:
    """What somebody can send who has no key, and has heard the link."""
    if kind == "strange":
        route = {"source": random.randrange(1, 255), "destination": 0}
    else:
        route = {"source": 7, "destination": 0}
    sealer = Sealer({2 if kind == "key-id" else 0: bytes(32)}, epoch=random.randrange(1, 9), **route)
    raw = bytearray(sealer.seal(Type.HELLO if kind == "hello" else Type.MSG, random.randbytes(9)))
    if kind == "encrypted":
        raw[1] |= 0x04
    return bytes(raw)


@pytest.mark.parametrize("kind", ["forged", "encrypted", "key-id", "hello"])
@pytest.mark.parametrize("honest_s", [20, 60, 600])
def test_frames_of_somebody_without_a_key_are_foreign_and_told_seldom(kind: str, honest_s: int) -> None:
    """For half a day, eight of them between two of the peer's, which says something each minute, or less."""
    session, random, told = ground(), Random(2), list[tuple[float, Event]]()
    right = Sealer(KEY, source=7, destination=0, epoch=9, salt=session.salt)
    count = 0
    for second in range(6, 43_200, honest_s):
        told += [(second, each) for each in session.receive(right.seal(Type.MSG, b"here"), float(second))]
        for nth in range(8):
            at = second + 1 + nth * (honest_s - 2) / 8
            told += [(at, each) for each in session.receive(without_a_key(kind, random), at)]
            count += 1
    lines = [(at, event) for at, event in told if isinstance(event, ADVICE)]
    foreign = [event for _, event in lines if isinstance(event, ForeignFrames)]
    assert 6 <= len(foreign) <= 8  # after 0, 10, 30, 70, ... min
    pauses = [two - one for one, two in pairwise(at for at, event in lines if event in foreign)]
    assert pauses == sorted(pauses)
    assert sum(each.bad_tags + each.unknown_keys + each.other_form for each in foreign) > count / 8
    others = [event for _, event in lines if not isinstance(event, ForeignFrames)]
    if honest_s <= 60:
        assert others == []
    else:  # the peer is away for minutes: it might have started with another key or form
        assert len(others) <= 8
        assert all(
            event in (WrongKey(was_right=True), EncryptionMismatch(encrypted=True)) for event in others
        )


@pytest.mark.parametrize("kind", ["forged", "encrypted", "hello"])
def test_before_the_peer_is_there_and_while_it_is_away_it_is_one_line(kind: str) -> None:
    session, random, told = ground(), Random(3), list[Event]()
    for second in range(6, 86_400, 5):
        told += session.receive(without_a_key(kind, random), float(second))
    assert len([event for event in told if isinstance(event, ADVICE)]) == 1


def test_nodes_that_somebody_makes_up_are_a_few_lines() -> None:
    session, random, told = ground(), Random(4), list[Event]()
    for second in range(6, 43_200):
        told += session.receive(without_a_key("strange", random), float(second))
    assert {type(event) for event in told} == {UnknownPeer}
    assert 4 <= len(told) <= 4 + 8


def test_frames_from_before_an_agreement_are_not_foreign() -> None:
    """Two ends that disagreed about the salt: what was refused meanwhile was the peer's."""
    nonces = Random(5)
    ends = [
        Session(
            Identity(node, 7 - node, primary=node == 0),
            Medium(FULL),
            Security(KEY, nonce=nonces.randbytes),
            SessionState(epoch=3),
        )
        for node in (0, 7)
    ]
    told, now = list[Event](), 0.0
    while now < 60.0:
        now += 0.25
        if now == 10.0:  # as after an agreement with a copy
            ends[0]._security.sealer.use(b"another.")
            ends[0]._security.opener.use(b"another.")
            ends[0]._security.handshake.salt = b"another."
        for end, other in (ends, ends[::-1]):
            end.send_message(b"%.2f" % now, now)
            while (raw := end.transmit(now)) is not None:
                for event in other.receive(raw, now):
                    told.append(event)
                    if isinstance(event, Rekeyed):
                        other.rekey(event.salt)
    assert ends[0].salt == ends[1].salt
    assert ends[0].snapshot(now).bad_tags > 30
    assert not [event for event in told if isinstance(event, ADVICE)]


@pytest.mark.parametrize("most", [1, 9])
def test_a_line_that_damages_short_frames_and_long_ones_brings_no_foreign_ones(most: int) -> None:
    session, random, told = ground(), Random(6), list[Event]()
    right = Sealer(KEY, source=7, destination=0, epoch=9, salt=session.salt)
    for second in range(6, 6006):
        raw = bytearray(right.seal(Type.MSG, random.randbytes(random.choice((0, 30, 200)))))
        for _ in range(min(most, random.choice((0, 0, 1, 1, 3, 9)))):
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
        told += session.receive(bytes(raw), float(second))
    assert session.snapshot(6006.0).bad_tags > 2000 // most
    lies = [event for event in told if isinstance(event, ADVICE)]
    assert len(lies) <= (0 if most == 1 else 8)  # where nine bits of a frame are wrong, it may be anybody's
    assert {type(event) for event in lies} <= {UnknownPeer}


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
def test_an_object_too_large_is_refused_and_its_sender_told(link) -> None:  # type: ignore[no-untyped-def]
    pair = Pair(link, limits=Limits(max_object_bytes=10_000))
    name = pair.board.offer(UPDATE, data(10_001), 0.0)
    pair.run(10.0)
    assert pair.ground.seen(Refused) == [Refused(name, Reason.TOO_LARGE, 10_001, 10_000)]
    assert pair.board.seen(Cancelled) == [Cancelled(name, Reason.TOO_LARGE)]
    snapshot = pair.ground.session.snapshot(10.0)  # type: ignore[union-attr]
    assert (snapshot.refused, snapshot.too_large, snapshot.expired) == (1, 1, 0)


def test_a_deadline_that_passes_counts_at_both_ends() -> None:
    pair = Pair(FULL)
    name = pair.board.offer(UPDATE, data(65536), 0.0, deadline_s=9.0)
    pair.run(30.0)
    for end in (pair.board, pair.ground):
        assert end.session is not None
        snapshot = end.session.snapshot(30.0)
        assert snapshot.expired == len(end.seen(Expired))
        assert (snapshot.refused, snapshot.too_large) == (0, 0)
    assert pair.board.seen(Expired) == [Expired(name)]
