"""No contact, and no 24 hours, carry more bytes than they may; what is left serves answers and commands."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_profiles import Link
from onboard.wire.config import Limits
from onboard.wire.events import Delivered, QuotaUsage
from onboard.wire.framing.frame import Type
from onboard.wire.medium.contact_gate import DAY_S, ByteQuota, Window
from tests.onboard.wire.pair import FULL, HALF, UPDATE, Pair, data, finish

FRAME_BYTES = 224


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.0, 40_000.0), st.integers(1, 400)), max_size=60),
    st.integers(400, 5000),
)
def test_whatever_is_asked_for_a_day_never_takes_more_than_it_may(
    wishes: list[tuple[float, int]], per_day_bytes: int
) -> None:
    allowance, now, sent = ByteQuota(math.inf, per_day_bytes), 0.0, []
    for pause_s, count_bytes in wishes:
        now += pause_s
        at = allowance.opens_at(now, count_bytes)
        assert (at == now) == (count_bytes <= allowance.left_bytes(now))
        assert at <= now + DAY_S + DAY_S / 96 + 1
        now = at
        allowance.spend(count_bytes, now)
        sent.append((now, count_bytes))
        assert sum(n for when, n in sent if when > now - DAY_S) <= per_day_bytes


def test_objects_leave_a_sixteenth() -> None:
    allowance = ByteQuota(1600.0, math.inf)
    allowance.contact(Window(0.0, 600.0))
    allowance.spend(1300, 10.0)
    assert allowance.opens_at(10.0, 200, bulk=True) == 10.0
    assert allowance.opens_at(10.0, 201, bulk=True) == 600.0
    assert allowance.opens_at(10.0, 300) == 10.0
    assert allowance.left_bytes(10.0) == 300
    allowance.contact(Window(1000.0, 1600.0))
    assert allowance.opens_at(1000.0, 1500, bulk=True) == 1000.0
    assert ByteQuota(math.inf, 100.0).opens_at(0.0, 101) == math.inf


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.0, 40_000.0), st.integers(1, 40), st.booleans()), max_size=80),
    st.integers(4000, 6000),
)
def test_no_restart_gives_any_byte_of_24_hours_back(
    wishes: list[tuple[float, int, bool]], per_day_bytes: int
) -> None:
    now, booted, sent = 0.0, 0.0, []
    allowance, kept = ByteQuota(math.inf, per_day_bytes), QuotaUsage()
    for pause_s, count_bytes, restarts in wishes:
        now += pause_s
        if restarts:  # off for any part of the pause; the clock of the new life begins at 0
            booted = now
            allowance = ByteQuota(math.inf, per_day_bytes, kept)
        kept = allowance.record(now - booted) or kept
        now = booted + allowance.opens_at(now - booted, count_bytes)
        kept = allowance.record(now - booted) or kept
        allowance.spend(count_bytes, now - booted)
        sent.append((now, count_bytes))
        assert sum(n for when, n in sent if when > now - DAY_S) <= per_day_bytes


def test_a_restart_costs_a_thirty_second_at_most_and_the_clock_stands_still_while_off() -> None:
    first = ByteQuota(math.inf, 32_000.0)
    kept = first.record(0.0)
    assert kept == QuotaUsage(1000, ((0.0, 1000),))
    first.spend(400, 10.0)
    assert first.record(10.0) is None  # counted already
    first.spend(200, 20.0)
    kept = first.record(20.0)
    assert kept is not None
    assert kept.day == ((10.0, 1600),)
    second = ByteQuota(math.inf, 32_000.0, kept, now=5.0)
    assert second.left_bytes(5.0) == 32_000 - 1600
    assert second.left_bytes(5.0 + DAY_S) == 32_000 - 1600  # 15 minutes are forgotten together
    assert second.left_bytes(5.0 + DAY_S + 900.0) == 32_000
    assert ByteQuota(math.inf, math.inf).record(0.0) is None


@settings(max_examples=60)
@given(st.lists(st.integers(1, 400), min_size=2, max_size=200))
def test_a_record_that_is_lost_with_a_slot_of_the_journal_is_a_thirty_second(frames: list[int]) -> None:
    """A node that starts with the record before its last one sends so much more, and no more than that."""
    allowance = ByteQuota(math.inf, 32_000.0)
    records, now = [QuotaUsage(), QuotaUsage()], 0.0
    for count_bytes in frames:
        now += 1.0
        if (record := allowance.record(now)) is not None:
            records.append(record)
        if allowance.opens_at(now, count_bytes) > now:
            break
        allowance.spend(count_bytes, now)
        earlier = ByteQuota(math.inf, 32_000.0, records[-2], now=now)
        assert earlier.left_bytes(now) <= allowance.left_bytes(now) + 1000


def test_a_contact_that_is_open_at_the_start_is_the_one_before_it_and_the_next_is_whole() -> None:
    spent = QuotaUsage(1500)
    same, later = (ByteQuota(1600.0, math.inf, spent, now=100.0) for _ in range(2))
    same.contact(Window(90.0, 600.0))
    assert same.left_bytes(100.0) == 100
    assert same.opens_at(100.0, 101) == 600.0
    same.contact(Window(1000.0, 1600.0))
    assert same.left_bytes(1000.0) == 1600
    later.contact(Window(101.0, 600.0))
    assert later.left_bytes(101.0) == 1600
    over = same.record(1600.0)
    assert over == QuotaUsage(50)  # of that contact nothing counts any more
    assert same.record(1600.0) is None


def test_a_contact_that_lasts_longer_than_planned_carries_no_more() -> None:
    pair = Pair(FULL, contacts=[Window(0.0, 100.0)], limits=Limits(bytes_per_contact=20_000))
    pair.board.offer(UPDATE, data(65536), 0.0)
    pair.run(50.0)
    for end in (pair.ground, pair.board):
        end.session.plan([Window(0.0, 400.0)], pair.now)  # type: ignore[union-attr]
    pair.run(390.0)
    sent = sum(len(frame.payload) + 24 for _, side, frame in pair.sent if side == "board")
    assert 15_000 < sent <= 20_000


def test_a_contact_carries_what_it_may_however_often_the_board_is_killed() -> None:
    plan = [Window(100.0, 500.0), Window(1000.0, 1400.0)]
    pair = Pair(FULL, contacts=plan, limits=Limits(bytes_per_contact=20_000))
    pair.board.offer(UPDATE, data(65536), 0.0)
    for at in (105.0, 110.0, 114.0, 300.0, 700.0, 1010.0):
        pair.run(at)
        pair.board.kill()
        pair.run(at + 1.0)
        pair.board.boot(pair.now)
    pair.run(2000.0)
    for window in plan:
        sent = [
            len(frame.payload) + 24
            for at, side, frame in pair.sent
            if side == "board" and window.rise <= at < window.set
        ]
        assert 15_000 < sum(sent) <= 20_000


@pytest.mark.parametrize(("contact", "day"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, math.nan)])
def test_an_allowance_of_nothing_is_refused(contact: float, day: float) -> None:
    with pytest.raises(ValueError, match="must be more than 0"):
        ByteQuota(contact, day)


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
def test_a_contact_carries_what_it_may_and_the_next_goes_on(link: Link) -> None:
    plan = [Window(1000.0 * nth, 1000.0 * nth + 400.0) for nth in range(1, 9)]
    pair = Pair(link, contacts=plan, limits=Limits(bytes_per_contact=20_000))
    name = pair.board.offer(UPDATE, data(65536), 0.0)
    end = finish(pair, pair.board)
    assert pair.board.seen(Delivered) == [Delivered(name)]
    assert 4000.0 < end < 5000.0  # 74 kB on the wire, 18.75 kB of them a contact
    for window in plan:
        sent = sum(
            len(frame.payload) + 24
            for at, side, frame in pair.sent
            if side == "board" and window.rise <= at < window.set
        )
        assert sent <= 20_000 - 20_000 / 16 + 1000  # DATA up to there, then what little was asked
    early = [at % 1000 for at, side, frame in pair.sent if frame.type is Type.DATA]
    assert max(early) < 60.0


def test_a_day_carries_what_it_may_without_any_plan() -> None:
    pair = Pair(FULL, limits=Limits(bytes_per_day=30_000))
    name = pair.board.offer(UPDATE, data(65536), 0.0)
    times: list[float] = []
    end = finish(pair, pair.board, until=4 * DAY_S)
    assert pair.board.seen(Delivered) == [Delivered(name)]
    assert 2 * DAY_S < end < 2.2 * DAY_S
    sent = [(at, len(frame.payload) + 24) for at, side, frame in pair.sent if side == "board"]
    for at, _ in sent:
        if not times or at - times[-1] > 600.0:
            times.append(at)
            assert sum(n for when, n in sent if at <= when < at + DAY_S) <= 30_000


def test_a_board_that_may_send_no_more_still_takes_objects_and_says_how_it_is() -> None:
    pair = Pair(FULL, contacts=[Window(0.0, 600.0)], limits=Limits(bytes_per_contact=16_000))
    pair.board.offer(UPDATE, data(65536), 0.0)
    pair.run(60.0)
    assert not [frame for at, _, frame in pair.sent if at > 30.0 and frame.type is Type.DATA]
    pair.ground.offer(1, data(4000, 2), pair.now)
    pair.board.session.send_message(b"health", pair.now)  # type: ignore[union-attr]
    pair.run(90.0)
    assert len(pair.ground.seen(Delivered)) == 1
    assert [payload for _, payload in pair.ground.messages()] == [b"health"]
