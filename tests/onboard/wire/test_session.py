"""Two sessions over the seeded channel: objects cross whole and once, at the pace of the link."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from hw_profiles import Link
from onboard.wire.config import Limits
from onboard.wire.events import (
    Arrived,
    Cancelled,
    Corrupt,
    Delivered,
    Evicted,
    Expired,
    PeerHeard,
    PeerUnreachable,
    Refused,
    Withdrawn,
)
from onboard.wire.framing.frame import Type
from onboard.wire.medium.contact_gate import Window
from onboard.wire.messages import Reason, digest
from tests.onboard.wire.pair import FAST, FULL, HALF, UPDATE, Pair, data, finish, ground_session, uhf_full


@pytest.mark.parametrize("link", [FULL, HALF, FAST], ids=["full", "half", "fast"])
@pytest.mark.parametrize("size", [0, 1, 200, 201, 5000])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_an_object_of_any_size_crosses_either_way(link: Link, size: int, direction: str) -> None:
    pair = Pair(link)
    sender, receiver = (pair.board, pair.ground) if direction == "up" else (pair.ground, pair.board)
    name = sender.offer(UPDATE, data(size), pair.now)
    finish(pair, sender, until=100.0)
    assert sender.seen(Delivered) == [Delivered(name)]
    assert receiver.disk.objects == {name: (UPDATE, data(size))}
    assert name == digest(UPDATE, data(size))


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
@pytest.mark.parametrize("killed", ["board", "ground"])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_a_kill_of_either_end_in_mid_transfer_costs_little(link: Link, killed: str, loss: float) -> None:
    """No more than 10 % of the object goes again for it, at 328 fragments."""
    for at_s in (21.0, 33.7, 45.1):
        pair = Pair(link, seed=3, frame_loss=loss)
        pair.board.offer(UPDATE, data(65536), 0.0)
        end = pair.end("board" if killed == "board" else "ground")
        pair.run(at_s)
        end.kill()
        pair.run(at_s + 7.0)
        end.boot(pair.now)
        finish(pair, pair.board)
        assert [payload for _, payload in pair.ground.disk.objects.values()] == [data(65536)]
        assert len(pair.ground.seen(Arrived)) == 1
        sends = Counter(frame.fragment for frame in pair.frames(Type.DATA))
        assert len(sends) == 328
        again = sum(sends.values()) - 328
        lost_anyway = pair.channel.counters("board").lost
        assert again <= 0.10 * 328 + lost_anyway


@pytest.mark.parametrize("at_s", [12.3, 21.0, 33.7])
def test_what_came_before_a_restarted_receiver_knew_its_object_is_not_sent_again(at_s: float) -> None:
    """On half-duplex that is the rest of a turn: it is kept until the object is offered again."""
    pair = Pair(HALF)
    pair.board.offer(UPDATE, data(65536), 0.0)
    pair.run(at_s)
    pair.ground.kill()
    off_s = 0.25
    pair.run(at_s + off_s)
    pair.ground.boot(pair.now)
    finish(pair, pair.board)
    assert [payload for _, payload in pair.ground.disk.objects.values()] == [data(65536)]
    sends = Counter(frame.fragment for frame in pair.frames(Type.DATA))
    unsaved = 328 // 128 + 1
    assert sum(sends.values()) - 328 <= off_s * 9600 / 8 / 224 + 1 + unsaved


def test_nothing_durable_is_sent_again_after_the_sender_restarts() -> None:
    pair = Pair(FULL)
    pair.board.offer(UPDATE, data(65536), 0.0)
    pair.run(30.0)
    pair.board.kill()
    pair.run(40.0)
    held = next(iter(pair.ground.session.incoming.values())).held  # type: ignore[union-attr]
    pair.sent.clear()
    pair.board.boot(pair.now)
    finish(pair, pair.board)
    assert held.bit_count() > 80
    assert not any(held >> frame.fragment & 1 for frame in pair.frames(Type.DATA))


def test_an_object_that_is_there_already_is_done_at_once() -> None:
    pair = Pair(FULL)
    name = pair.board.offer(UPDATE, data(20_000), 0.0)
    finish(pair, pair.board)
    pair.sent.clear()
    pair.ground.kill()
    pair.ground.boot(pair.now)
    pair.board.offer(UPDATE, data(20_000), pair.now)
    finish(pair, pair.board, objects=2)
    assert pair.board.seen(Delivered) == [Delivered(name)] * 2
    assert len(pair.ground.seen(Arrived)) == 1
    assert [frame.type for _, _, frame in pair.sent] == [Type.OFFER, Type.DONE]


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
def test_an_outage_is_waited_out_with_ever_fewer_questions_at_last_one_every_two_seconds(link: Link) -> None:
    pair = Pair(link, windows=[(0.0, 20.0), (80.0, 10_000.0)])
    pair.board.offer(UPDATE, data(65536), 0.0)
    pair.run(40.0)
    assert pair.board.seen(PeerUnreachable) == [PeerUnreachable()]
    pair.sent.clear()
    pair.run(79.0)
    assert {frame.type for _, _, frame in pair.sent} == {Type.POLL}
    times = [at for at, _, _ in pair.sent]
    assert 12 <= len(times) <= 24  # on half-duplex in the next slot after 2 s
    gaps = [b - a for a, b in pairwise(times)]
    assert link is HALF or all(b > a - 1e-6 for a, b in pairwise(gaps))
    assert min(gap for at, gap in zip(times, gaps, strict=False) if at > 53) >= 1.99
    end = finish(pair, pair.board)
    assert len(pair.board.seen(PeerHeard)) == 2
    first = next(at for at, event in pair.board.events if isinstance(event, PeerHeard) and at > 40)
    assert first < 83.5
    again = pair.board.session.snapshot(end).fragments_resent  # type: ignore[union-attr]
    assert again <= 328 / 16 + 4
    assert end < 145.0  # of which 60 s were the outage


def test_urgent_objects_go_first_and_short_ones_before_long_ones() -> None:
    pair = Pair(FULL)
    names = {
        "long": pair.board.offer(UPDATE, data(20_000, 1), 0.0),
        "short": pair.board.offer(UPDATE, data(2_000, 2), 0.0),
        "urgent": pair.board.offer(UPDATE, data(8_000, 3), 0.0, priority=1),
    }
    finish(pair, pair.board, objects=3)
    order = [event.digest for event in pair.board.seen(Delivered)]  # type: ignore[union-attr]
    assert order == [names["urgent"], names["short"], names["long"]]


def finished(pair: Pair) -> list[bytes]:
    """Digests in the order in which they were delivered from the board."""
    return [event.digest for event in pair.board.seen(Delivered)]  # type: ignore[union-attr]


def test_equals_share_the_link_and_none_waits_for_another() -> None:
    pair = Pair(FULL)
    names = [pair.board.offer(UPDATE, data(20_000 + nth, nth), 0.0) for nth in range(3)]
    pair.run(30.0)
    held = [progress.held for progress in pair.board.session.snapshot(pair.now).objects]  # type: ignore[union-attr]
    assert max(held) - min(held) <= 8
    assert min(held) > 30
    finish(pair, pair.board, objects=3)
    assert sorted(finished(pair)) == sorted(names)


def test_what_can_be_whole_in_this_contact_goes_first() -> None:
    """Of 30 s: 8 s of object, then 12 s; of the two others, 40 s each, nobody can be, and they share."""
    rate = 200 * 9600 / 8 / 224 / 200  # fragments a second
    sizes = [int(seconds * rate) * 200 for seconds in (40, 12, 41, 8)]
    pair = Pair(FULL, contacts=[Window(0.0, 30.0), Window(100.0, 300.0)])
    names = [pair.board.offer(UPDATE, data(size, nth), 0.0) for nth, size in enumerate(sizes)]
    pair.run(99.0)
    assert finished(pair) == [names[3], names[1]]
    held = [progress.held for progress in pair.board.session.snapshot(pair.now).objects]  # type: ignore[union-attr]
    assert min(held) > 10
    assert max(held) - min(held) <= 8
    finish(pair, pair.board, objects=4)
    assert finished(pair)[2:] == [names[0], names[2]]


def test_many_objects_at_once_all_arrive() -> None:
    pair = Pair(FAST, frame_loss=0.1)
    for nth in range(40):
        pair.board.offer(UPDATE, data(3000 + nth, nth), 0.0)
        pair.ground.offer(1, data(3000 + nth, nth), 0.0)
    pair.run(60.0, lambda: len(pair.board.seen(Delivered)) == len(pair.ground.seen(Delivered)) == 40)
    assert len(pair.board.disk.objects) == len(pair.ground.disk.objects) == 40


def test_offering_twice_is_offering_once() -> None:
    pair = Pair(FULL)
    first = pair.board.offer(UPDATE, data(3000), 0.0)
    assert pair.board.offer(UPDATE, data(3000), 0.0) == first
    finish(pair, pair.board)
    pair.run(pair.now + 10)
    assert pair.board.seen(Delivered) == [Delivered(first)]


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_a_withdrawn_object_is_forgotten_at_both_ends(link: Link, loss: float) -> None:
    pair = Pair(link, frame_loss=loss)
    name = pair.board.offer(UPDATE, data(20_000), 0.0)
    pair.run(8.0)
    assert name in pair.ground.session.incoming  # type: ignore[union-attr]
    pair.board.session.cancel(name, pair.now)  # type: ignore[union-attr]
    pair.run(60.0)
    assert pair.ground.seen(Withdrawn) == [Withdrawn(name, Reason.WITHDRAWN)]
    assert not pair.ground.seen(Cancelled)
    assert not pair.ground.session.incoming  # type: ignore[union-attr]
    pair.sent.clear()
    pair.run(600.0)
    assert pair.sent == []


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
def test_a_deadline_ends_an_object_at_both_ends(link: Link) -> None:
    pair = Pair(link)
    name = pair.board.offer(UPDATE, data(20_000), 0.0, deadline_s=9.0)
    pair.run(30.0)
    assert pair.board.seen(Expired) == [Expired(name)]
    assert pair.ground.seen(Expired) or pair.ground.seen(Withdrawn)
    assert not pair.ground.session.incoming  # type: ignore[union-attr]
    pair.sent.clear()
    pair.run(600.0)
    assert pair.sent == []


def test_what_an_earlier_life_received_of_an_object_that_was_given_up_ends_by_itself() -> None:
    pair = Pair(FULL)
    name = pair.board.offer(UPDATE, data(20_000), 0.0, deadline_s=9.0)
    pair.run(7.0)
    for end in (pair.ground, pair.board):
        end.kill()
    pair.run(20.0)
    left = pair.ground.boot(pair.now).incoming
    pair.run(28.9)
    assert list(left) == [name]  # for all that this end knows it was off for no time
    pair.run(29.1)
    assert not left
    assert pair.ground.seen(Expired) == [Expired(name)]


def test_what_passes_the_limits_is_refused_and_said_so() -> None:
    pair = Pair(FULL, limits=Limits(max_object_bytes=10_000, max_incoming=2))
    large = pair.board.offer(UPDATE, data(10_001), 0.0)
    pair.run(10.0)
    assert pair.board.seen(Cancelled) == [Cancelled(large, Reason.TOO_LARGE)]
    assert pair.ground.seen(Refused) == [Refused(large, Reason.TOO_LARGE, 10_001, 10_000)]
    assert not pair.ground.session.incoming  # type: ignore[union-attr]
    pair.ground.accept_after_s = 1e9
    for nth in range(3):
        pair.board.offer(UPDATE, data(1000, nth), pair.now)
        pair.run(pair.now + 5)
    assert pair.board.seen(Cancelled)[1:] == [Cancelled(digest(UPDATE, data(1000, 2)), Reason.TOO_MANY)]


def test_a_left_over_of_an_earlier_epoch_makes_room() -> None:
    pair = Pair(FULL, limits=Limits(max_incoming=1))
    old = pair.board.offer(UPDATE, data(20_000), 0.0)
    pair.run(8.0)
    pair.board.kill()
    pair.board.disk.outgoing.clear()
    pair.board.boot(pair.now)
    new = pair.board.offer(UPDATE, data(2_000, 2), pair.now)
    finish(pair, pair.board)
    assert pair.ground.seen(Evicted) == [Evicted(old)]
    assert list(pair.ground.disk.objects) == [new]


def test_the_application_may_refuse_what_arrived() -> None:
    pair = Pair(FULL, accept_after_s=1e9)
    name = pair.board.offer(UPDATE, data(2000), 0.0)
    pair.run(20.0)
    assert len(pair.ground.seen(Arrived)) == 1
    pair.ground.session.refuse(name, Reason.REFUSED, pair.now)  # type: ignore[union-attr]
    pair.run(30.0)
    assert pair.board.seen(Cancelled) == [Cancelled(name, Reason.REFUSED)]
    pair.ground.session.accept(name, pair.now)  # type: ignore[union-attr] # too late: it changes nothing
    assert name not in pair.ground.session.done  # type: ignore[union-attr]


@pytest.mark.parametrize("verdict", ["accept", "refuse"])
@pytest.mark.parametrize("gone", ["withdrawn", "expired", "offered anew"])
def test_what_is_gone_may_be_accepted_or_refused_by_whoever_hears_of_it_late(gone: str, verdict: str) -> None:
    pair = Pair(FULL, accept_after_s=1e9)
    deadline_s = 5.0 if gone == "expired" else None
    name = pair.board.offer(UPDATE, data(2000), 0.0, deadline_s=deadline_s)
    pair.run(3.0)
    board, ground = pair.board.session, pair.ground.session
    assert board is not None
    assert ground is not None
    assert len(pair.ground.seen(Arrived)) == 1
    if gone != "expired":
        board.cancel(name, pair.now)
    pair.run(10.0)
    if gone == "offered anew":
        board.offer(UPDATE, data(2000), pair.now)
        pair.run(pair.now + 0.05)
    if verdict == "accept":
        ground.accept(name, pair.now)
    else:
        ground.refuse(name, Reason.REFUSED, pair.now)
    pair.run(pair.now + 10.0)
    assert name not in ground.done
    if gone == "offered anew" and verdict == "accept":
        assert len(pair.ground.seen(Arrived)) == 2


def test_a_spool_that_lies_is_found_out_and_the_object_still_arrives() -> None:
    pair = Pair(FULL)
    pair.board.offer(UPDATE, data(20_000), 0.0)
    pair.run(10.0)
    pair.ground.kill()
    partial = next(iter(pair.ground.disk.partials.values()))
    wrong = bytearray(partial.data)
    wrong[0] ^= 1
    pair.ground.disk.partials[partial.digest] = type(partial)(
        partial.digest, partial.kind, partial.size, partial.fragment_bytes, partial.held, bytes(wrong)
    )
    pair.ground.boot(pair.now)
    finish(pair, pair.board)
    assert pair.ground.seen(Corrupt) == [Corrupt(partial.digest)]
    assert pair.ground.disk.objects == {partial.digest: (UPDATE, data(20_000))}
    assert pair.ground.session.snapshot(pair.now).corrupt == 1  # type: ignore[union-attr]


def test_fragments_of_another_length_are_not_sent_again_where_they_are_held() -> None:
    pair = Pair(FULL)
    pair.board.offer(UPDATE, data(20_000), 0.0)
    pair.run(10.0)
    pair.board.kill()
    pair.board.link = uhf_full(100)
    pair.run(11.0)  # what was on its way arrives
    held = next(iter(pair.ground.session.incoming.values())).held.bit_count()  # type: ignore[union-attr]
    pair.sent.clear()
    pair.board.boot(pair.now)
    finish(pair, pair.board)
    assert held > 30
    assert sum(len(frame.payload) for frame in pair.frames(Type.DATA)) == 20_000 - 200 * held


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s: s.send_message(bytes(201), 0.0), "201 B"),
        (lambda s: s.send_message(b"", 0.0, priority=8), "priority 8"),
        (lambda s: s.offer(256, b"", 0.0), "kind 256"),
        (lambda s: s.offer(2, b"", 0.0, priority=-1), "priority -1"),
        (lambda s: s.offer(2, b"", 0.0, deadline_s=0), "deadline of 0"),
        (lambda s: s.offer(2, bytes(200 * 65536), 0.0), "65536 fragments"),
    ],
)
def test_values_out_of_range_are_named(call, match: str) -> None:  # type: ignore[no-untyped-def]
    session = ground_session()
    with pytest.raises(ValueError, match=match):
        call(session)
    assert session.wakeup(0.0) == float("inf")


def test_an_object_arrives_once_however_often_it_is_offered_before_it_is_accepted() -> None:
    pair = Pair(FULL, accept_after_s=30.0)
    pair.board.offer(UPDATE, data(2000), 0.0)
    pair.run(10.0)
    pair.board.kill()
    pair.board.boot(pair.now)
    finish(pair, pair.board, until=200.0)
    assert len(pair.ground.seen(Arrived)) == 1
    assert len(pair.board.seen(Delivered)) == 1
