"""On half-duplex the ends speak in turns: never together on an undisturbed channel, and never stuck."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from onboard.wire.config import Medium
from onboard.wire.events import Delivered
from onboard.wire.framing.frame import Type
from onboard.wire.medium.medium_access import BURST_S, GRACE_S, GUARD_S, HalfDuplexTurn, Timing
from tests.onboard.wire.pair import COBS_BYTES, HALF, UPDATE, Pair, data, link


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [300, 9000])
def test_half_duplex_never_collides_on_an_undisturbed_channel(seed: int, size: int) -> None:
    pair = Pair(HALF)
    rnd = random.Random(seed)
    todo = sorted((rnd.uniform(0, 300), rnd.choice(["ground", "board"]), n) for n in range(12))
    for at, side, nth in todo:
        pair.run(at)
        if nth % 3:
            pair.end(side).offer(UPDATE, data(size, nth), pair.now)  # type: ignore[arg-type]
        else:
            pair.end(side).session.send_message(b"health", pair.now)  # type: ignore[arg-type, union-attr]
    pair.run(1000.0)
    delivered = len(pair.ground.seen(Delivered)) + len(pair.board.seen(Delivered))
    assert delivered == sum(1 for _, _, nth in todo if nth % 3)
    assert len(pair.ground.messages()) + len(pair.board.messages()) == sum(1 for *_, n in todo if n % 3 == 0)
    assert pair.channel.counters("ground").collided + pair.channel.counters("board").collided == 0


def test_both_ends_that_begin_together_take_turns() -> None:
    pair = Pair(HALF)
    pair.ground.offer(1, data(9000), 0.0)
    pair.board.offer(UPDATE, data(9000, 2), 0.0)
    pair.run(100.0, lambda: bool(pair.ground.seen(Delivered) and pair.board.seen(Delivered)))
    assert pair.ground.disk.objects
    assert pair.board.disk.objects
    assert pair.channel.counters("ground").collided + pair.channel.counters("board").collided == 0
    turns = sum(frame.over for _, _, frame in pair.sent)
    assert turns < 20


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_what_a_turn_has_asked_it_does_not_ask_again(loss: float) -> None:
    """Messages keep the turn open after the OFFER has left."""
    pair = Pair(HALF, frame_loss=loss)
    for nth in range(16):
        pair.board.session.send_message(bytes([nth]) * 28, 0.0)  # type: ignore[union-attr]
    pair.board.offer(UPDATE, data(1000), 0.0)
    pair.board.offer(UPDATE, data(1000, 2), 0.0)
    pair.run(60.0, lambda: len(pair.board.seen(Delivered)) == 2)
    assert len(pair.board.seen(Delivered)) == 2
    asked: list[int] = []
    for _, side, frame in pair.sent:
        if side == "board":
            asked += [frame.object_id] if frame.type in (Type.OFFER, Type.POLL) and not frame.fragment else []
            assert len(asked) == len(set(asked)), "the same question twice in one turn"
            asked = [] if frame.over else asked


def test_a_turn_is_ten_seconds_of_airtime_at_most() -> None:
    slow = link(mtu_bytes=222, rate_up_bps=2400, rate_down_bps=2400)
    pair = Pair(slow)
    pair.board.offer(UPDATE, data(200_000), 0.0)
    pair.run(300.0)
    began = None
    turns = 0
    for at, side, frame in pair.sent:
        if side == "board":
            began = at if began is None else began
            if frame.over:
                assert at - began <= 10.0
                began = None
                turns += 1
    assert turns > 10


@pytest.mark.parametrize("seed", range(3))
def test_half_duplex_finishes_under_heavy_loss_both_ways(seed: int) -> None:
    pair = Pair(HALF, seed=seed, frame_loss=0.4)
    pair.ground.offer(1, data(6000), 0.0)
    pair.board.offer(UPDATE, data(6000, 2), 0.0)
    pair.run(600.0, lambda: bool(pair.ground.seen(Delivered) and pair.board.seen(Delivered)))
    assert pair.ground.disk.objects
    assert pair.board.disk.objects


def turns() -> tuple[HalfDuplexTurn, HalfDuplexTurn, Timing]:
    """The ground's and the board's view of a channel from time 0, and the ground's times."""
    timings = [Timing(Medium(HALF, lambda n: n + COBS_BYTES), primary=primary) for primary in (True, False)]
    return HalfDuplexTurn(timings[0], 0.0), HalfDuplexTurn(timings[1], 0.0), timings[0]


def test_slots_of_an_idle_channel_never_meet() -> None:
    ground, board, timing = turns()
    ground.heard(10.0, over=True, loss=0.0)
    board.sent(9.0, 10.0 - HALF.delay_s)
    board.hand_over(None)
    longest_s = timing.keying_s + timing.frame_s + timing.delay_s
    steps = [10.0 + GRACE_S + 0.001 + n * 0.01 for n in range(3000)]
    open_to = [(ground.opens_at(now) <= now, board.opens_at(now) <= now) for now in steps]
    assert sum(mine for mine, _ in open_to) > 200
    assert sum(theirs for _, theirs in open_to) > 200
    for side in (0, 1):
        last = -math.inf  # the last moment at which the other might have begun to speak
        for now, may in zip(steps, open_to, strict=True):
            assert not may[side] or now > last + longest_s - 1e-9
            last = now if may[1 - side] else last


def test_who_asked_asks_again_before_anyone_else_and_the_ground_first() -> None:
    ground, board, timing = turns()
    for turn in (ground, board):
        turn.sent(0.0, 1.0)
        turn.hand_over(328)
    longest_report_s = timing.back_airtime_s(timing.report_frame_bytes(328))
    first, second = ground.opens_at(1.0), board.opens_at(1.0)
    assert first >= 1.0 + timing.keying_s + longest_report_s + 2 * timing.delay_s
    assert second >= first + timing.keying_s + timing.airtime_s(22) + timing.delay_s
    for loss in (0.0, 0.2, 0.5):
        listener, _, _ = turns()
        listener.heard(1.0, over=False, loss=loss)
        assert listener.opens_at(1.0) >= second + timing.keying_s + timing.airtime_s(22)


def test_silence_in_a_turn_is_borne_longer_where_more_is_lost() -> None:
    waits = []
    for loss in (0.0, 0.05, 0.2, 0.4, 1.0):
        ground, _, _ = turns()
        ground.heard(1.0, over=False, loss=loss)
        waits.append(ground.opens_at(1.0) - 1.0)
    assert waits == sorted(waits)
    assert len(set(waits)) == 5
    assert waits[-1] < 12.0
    in_bursts, _, _ = turns()
    in_bursts.heard(1.0, over=False, loss=0.2, burst=4.0)
    assert in_bursts.opens_at(1.0) - 1.0 > waits[2]


def test_a_turn_that_fell_still_is_over() -> None:
    ground, _, _ = turns()
    ground.sent(0.0, 1.0)
    assert ground.in_turn(1.0 + GRACE_S)
    assert not ground.in_turn(1.0 + GRACE_S + 0.001)
    assert ground.opens_at(1.0 + GRACE_S + 0.001) > 1.5


def test_where_much_is_lost_a_turn_closes_with_a_countdown() -> None:
    ground, board, timing = turns()
    board.sent(0.0, 1.0)
    assert board.close(0.01)
    assert not board.close(0.4)
    left = []
    while board.closing:
        left.append(board.count_down())
    assert left == [2, 1, 0]
    poll_s = timing.back_airtime_s(22)
    for missed in (0, 1, 2):  # whichever it hears, the ground begins after the last of them and no later
        ground.heard(1.0 - missed * poll_s, over=missed == 0, loss=0.4, left_s=missed * poll_s)
        opens_at = ground.opens_at(1.0 - missed * poll_s)
        assert 1.0 <= opens_at <= 1.0 + GUARD_S + 1e-9
        assert not ground.in_turn(1.0)


def closing_frames(loss: float, burst: float) -> int:
    """How many a turn closes with beside its last."""
    _, board, _ = turns()
    board.sent(0.0, 1.0)
    board.close(loss, burst)
    left = 0
    while board.closing:
        board.count_down()
        left += 1
    return left


def test_a_countdown_outlasts_a_burst() -> None:
    """All of it is lost in 7 of 100 cases, by a Gilbert channel's odds."""
    for loss in (0.1, 0.2, 0.3, 0.4):
        for burst in (1.0, 2.0, 4.0):
            frames = closing_frames(loss, burst)
            after_a_loss = 1 - (1 - loss) / burst
            assert frames == 8 or loss * after_a_loss ** (frames - 1) <= 0.07
            assert frames >= closing_frames(loss, 1.0)
    assert [closing_frames(loss, 1.0) for loss in (0.0, 0.01, 0.05)] == [0, 0, 0]


def test_the_answers_countdown_is_not_interrupted() -> None:
    calm, counting, timing = turns()
    waits = []
    for turn in (calm, counting):
        turn.sent(0.0, 1.0)
        if turn is counting:
            turn.close(0.4, 3.0)
            while turn.closing:
                turn.count_down()
        turn.hand_over(328)
        waits.append(turn.opens_at(1.0))
    report_s = timing.back_airtime_s(timing.report_frame_bytes(328))
    assert waits[1] - waits[0] >= 3 * report_s


def test_a_countdown_of_a_turn_that_fell_still_is_not_taken_up_again() -> None:
    ground, _, _ = turns()
    ground.sent(0.0, 1.0)
    ground.close(0.4)
    assert ground.closing
    ground.sent(9.0, 9.1)
    assert not ground.closing


def test_closing_frames_repeat_the_answer_and_the_question() -> None:
    pair = Pair(HALF, seed=2, frame_loss=0.4)
    pair.board.offer(UPDATE, data(30_000), 0.0)
    pair.run(500.0, lambda: bool(pair.board.seen(Delivered)))
    closing = [
        (side, frame) for _, side, frame in pair.sent if frame.type is not Type.DATA and frame.fragment
    ]
    assert {(side, frame.type) for side, frame in closing if frame.type is not Type.REPAIR} >= {
        ("board", Type.POLL),
        ("ground", Type.REPORT),
    }
    by_end = [frame for _, side, frame in pair.sent if side == "ground" and frame.type is Type.REPORT]
    copies = [b for a, b in pairwise(by_end) if a.fragment and b.fragment == a.fragment - 1]
    assert copies
    assert all(a.payload == b.payload for a, b in pairwise(by_end) if a.fragment and b in copies)


@pytest.mark.parametrize("seed", range(6))
def test_closing_frames_do_not_collide_on_a_channel_without_losses(seed: int) -> None:
    """Losses that were there make both ends count down; then the channel is clean."""
    bad = [True]
    rnd = random.Random(seed)
    pair = Pair(HALF, mangle=lambda frame, now: [] if bad[0] and rnd.random() < 0.4 else [frame])
    pair.board.offer(UPDATE, data(60_000), 0.0)
    pair.run(40.0)
    bad[0] = False
    pair.run(70.0)
    counted = [sum(pair.channel.counters(side).collided for side in ("ground", "board"))]
    sent = len(pair.sent)
    pair.run(90.0)
    counted.append(sum(pair.channel.counters(side).collided for side in ("ground", "board")))
    assert any(frame.fragment and frame.type in (Type.POLL, Type.REPORT) for *_, frame in pair.sent[sent:])
    assert counted[0] == counted[1]


def test_a_turn_is_longer_where_losses_come_in_bursts() -> None:
    timing = Timing(Medium(HALF, lambda count: count + COBS_BYTES), primary=True)
    turn = HalfDuplexTurn(timing, 0.0)
    turn.sent(0.0, 0.2)
    longest = BURST_S
    assert turn.has_room(longest)
    assert not turn.has_room(longest + 0.1)
    assert not turn.has_room(longest + 0.1, loss=0.4)  # each frame by itself
    assert turn.has_room(1.7 * longest, loss=0.4, burst=3.0)
    assert not turn.has_room(2.1 * longest, loss=0.7, burst=9.0)
