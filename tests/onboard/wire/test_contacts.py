"""Nothing is sent outside a planned contact, and in the next one a transfer goes on where it was."""

from __future__ import annotations

import math
import random
from itertools import accumulate, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hw_profiles import Link
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Delivered, Expired, PeerUnreachable
from onboard.wire.framing.frame import OVERHEAD_BYTES, Type
from onboard.wire.medium.contact_gate import Contacts, Window
from onboard.wire.session import Session
from tests.onboard.wire.pair import COBS_BYTES, FAST, FULL, HALF, KEY, UPDATE, Pair, data, finish, uhf_full

LINKS = {"full": FULL, "half": HALF, "fast": FAST}

# Gap before each window and its length, in whole seconds so that sums are exact.
plans = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=4).map(
    lambda spans: [
        Window(float(rise), float(end))
        for rise, end in list(pairwise([0, *accumulate(length for span in spans for length in span)]))[1::2]
    ]
)


@given(plans, st.integers(0, 400), st.integers(0, 400), st.integers(-100, 100))
def test_the_links_clock_runs_in_contact_alone(
    plan: list[Window], now: int, later: int, starts_at: int
) -> None:
    contacts = Contacts(plan, now=0.0, up_s=float(starts_at))
    seconds = range(401)  # past the end of every plan
    is_open = [any(w.rise <= second < w.set for w in plan) for second in seconds]
    clock = [starts_at + up for up in accumulate(is_open, initial=0)]  # at the begin of each second
    assert contacts.is_up(now) == is_open[now]
    assert contacts.up_s(now) == clock[now]
    assert contacts.rises_at(now) == next((s for s in seconds[now:] if is_open[s]), math.inf)
    if is_open[now]:
        assert contacts.closes_up_s(now) == clock[min(int(w.set) for w in plan if w.set > now)]
    end = clock[now] + later
    wakes = contacts.at(end)
    goes_on = [s for s in seconds if is_open[s] and clock[s] == end]
    assert wakes == (pytest.approx(goes_on[0], abs=1e-5) if goes_on else math.inf)
    if goes_on:
        assert contacts.up_s(wakes) >= end
    windows = [w for w in plan if w.set > now and clock[int(w.rise)] < end]
    _, passes = contacts.when(now, end - contacts.up_s(now))
    assert passes == (len(windows) if clock[now] < end <= clock[-1] else None)


def test_a_link_without_a_plan_is_always_up() -> None:
    contacts = Contacts(None)
    assert contacts.is_up(-5.0)
    assert contacts.window(5.0) is None
    assert contacts.when(0.0, 100.0) == (100.0, None)
    assert contacts.closes_up_s(7.0) == math.inf
    for now in (-3.0, 0.0, 17.5, math.inf):
        assert contacts.up_s(now) == contacts.at(now) == contacts.rises_at(now) == now


@pytest.mark.parametrize(
    ("windows", "match"),
    [
        ([(5.0, 5.0, None)], "from 5.0 s to 5.0 s"),
        ([(0.0, math.inf, None)], "to inf s"),
        ([(0.0, 1.0, 0.0)], "0.0 bit/s"),
        ([(0.0, 9.0, None), (8.0, 12.0, None)], "from 8.0 s begins before the one to 9.0 s ends"),
    ],
)
def test_windows_that_cannot_be_are_refused(
    windows: list[tuple[float, float, float | None]], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        Contacts(Window(*each) for each in windows)


def test_a_snapshot_says_when_all_will_be_there_and_in_how_many_passes() -> None:
    plan = [Window(0.0, 10.0), Window(100.0, 110.0), Window(200.0, 240.0), Window(300.0, 400.0)]
    pair = Pair(FULL, contacts=plan)
    pair.board.offer(UPDATE, data(18_000), 0.0)  # 16.8 s of 9.6 kbit/s and 224 B for 200
    pair.run(5.0)
    board = pair.board.session.snapshot(5.0)  # type: ignore[union-attr]
    (first,) = board.objects
    assert first.eta_passes == board.eta_out_passes == 2
    assert first.eta_s == board.eta_out_s == pytest.approx(101.8, abs=1.0)
    assert (board.eta_in_s, board.eta_in_passes, board.in_contact) == (0.0, None, True)
    pair.board.offer(UPDATE, data(18_000, 2), 5.0)
    board = pair.board.session.snapshot(5.0)  # type: ignore[union-attr]
    assert [each.eta_passes for each in board.objects] == [2, 3]  # each as if it were alone
    assert (board.eta_out_passes, board.eta_out_s) == (3, pytest.approx(208.6, abs=1.5))
    end = finish(pair, pair.board, objects=2)
    assert end == pytest.approx(5.0 + board.eta_out_s, abs=2.0)
    pair.board.offer(UPDATE, data(1_000_000, 3), end)
    board = pair.board.session.snapshot(50.0)  # type: ignore[union-attr]
    assert (board.eta_out_s, board.eta_out_passes, board.in_contact) == (math.inf, None, False)


def on_air(pair: Pair, link: Link) -> list[tuple[float, float]]:
    """When each frame's first bit left its antenna and its last, by the rate of the plan or the link."""
    free = {"ground": 0.0, "board": 0.0}
    times = []
    for at, side, frame in pair.sent:
        window = next((w for w in pair.ground.contacts or () if w.rise <= at < w.set), None)
        rate_bps = window.rate_bps if window and window.rate_bps else link.rate_up_bps
        start = max(at, free[side])
        bits = (OVERHEAD_BYTES + len(frame.payload) + COBS_BYTES) * link.bits_per_byte
        free[side] = start + bits / rate_bps
        times.append((start, free[side]))
    return times


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_transfer_goes_on_in_the_next_window(name: str, loss: float) -> None:
    link = LINKS[name]
    payload = data(1 << 20 if link is FAST else 65536)  # of many round trips
    in_contact = Pair(link, frame_loss=loss)
    in_contact.board.offer(UPDATE, payload, 0.0)
    whole_s = finish(in_contact, in_contact.board)
    span = whole_s / 4.0
    plan = [Window(1000.0 * nth, 1000.0 * nth + span) for nth in range(1, 9)]
    pair = Pair(link, contacts=plan, windows=[(w.rise, w.set) for w in plan], frame_loss=loss)
    pair.board.offer(UPDATE, payload, 0.0)
    end = finish(pair, pair.board)
    assert [held for _, held in pair.ground.disk.objects.values()] == [payload]
    assert 3000.0 <= end < 6000.0
    assert pair.channel.counters("board").cut == pair.channel.counters("ground").cut == 0
    sent = sum(pair.channel.counters(side).bytes for side in ("board", "ground"))
    before = sum(in_contact.channel.counters(side).bytes for side in ("board", "ground"))
    assert sent <= 1.06 * before + 500  # of another course of losses, and an answer or two a window
    assert not pair.board.seen(PeerUnreachable)
    pair.run(9000.0)
    for start, last in on_air(pair, link):
        assert any(w.rise <= start and last <= w.set for w in plan)


def test_a_window_is_used_from_its_rise_to_its_set() -> None:
    plan = [Window(100.0, 130.0), Window(200.0, 230.0)]
    pair = Pair(FULL, contacts=plan)
    pair.board.offer(UPDATE, data(65536), 0.0)
    pair.run(300.0)
    times = on_air(pair, FULL)
    frame_s = 224 * 8 / 9600
    for window in plan:
        inside = [each for each in times if window.rise <= each[0] < window.set]
        assert inside[0][0] <= window.rise + 1e-3
        assert window.set - 2 * frame_s <= max(last for _, last in inside) <= window.set
    busy_s = sum(last - start for start, last in times if last - start > 0.9 * frame_s)
    assert busy_s > 0.95 * 60.0


def test_what_a_run_before_left_in_the_port_is_off_the_air_by_the_set() -> None:
    frame_s = FULL.mtu_bytes * 8 / FULL.rate_up_bps
    for boots, leaves in ((10.0 - 2.5 * frame_s, False), (10.0 - 4.0 * frame_s, True), (-5.0, True)):
        plan = [Window(10.0 - 5 * frame_s if boots < 0 else 0.0, 10.0)]
        session = Session(
            Identity(7, 0, primary=False),
            Medium(FULL, contacts=plan),
            Security(KEY),
            SessionState(epoch=2),
            now=boots,
        )
        at = max(boots, 10.0 - 2.5 * frame_s)
        session.send_message(b"health", at)
        assert (session.transmit(at) is not None) is leaves


def test_each_window_has_its_own_rate() -> None:
    plan = [Window(0.0, 20.0, 4800.0), Window(100.0, 120.0), Window(200.0, 220.0, 9600.0)]
    pair = Pair(uhf_full(rate_up_bps=19200, rate_down_bps=19200), contacts=plan)
    pair.board.offer(UPDATE, data(200_000), 0.0)
    pair.run(300.0)
    for window, rate_bps in zip(plan, (4800, 19200, 9600), strict=True):
        sent = [
            OVERHEAD_BYTES + len(frame.payload) + COBS_BYTES
            for at, side, frame in pair.sent
            if side == "board" and window.rise <= at < window.set
        ]
        assert 0.95 * 20 * rate_bps <= 8 * sum(sent) <= 20 * rate_bps


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
def test_deadlines_and_silence_count_in_contact_alone(link: Link) -> None:
    plan = [Window(100.0, 110.0), Window(1000.0, 1060.0)]
    pair = Pair(link, contacts=plan)
    pair.ground.kill()
    name = pair.board.offer(UPDATE, data(65536), 0.0, deadline_s=30.0)
    pair.run(999.0)
    assert not pair.board.seen(Expired)
    assert not pair.board.seen(PeerUnreachable)
    pair.run(2000.0)
    assert [at for at, event in pair.board.events if event == Expired(name)] == [pytest.approx(1020.0, abs=1)]
    assert [1000.0 < at < 1060.0 for at, event in pair.board.events if event == PeerUnreachable()] == [True]


def test_what_is_said_between_contacts_leaves_at_the_rise() -> None:
    pair = Pair(FULL, contacts=[Window(50.0, 60.0)])
    pair.run(10.0)
    pair.board.session.send_message(b"command", pair.now)  # type: ignore[union-attr]
    name = pair.board.offer(UPDATE, data(1000), pair.now)
    pair.run(49.9)
    assert pair.sent == []
    pair.run(100.0)
    assert [payload for _, payload in pair.ground.messages()] == [b"command"]
    assert pair.ground.messages()[0][0] == pytest.approx(50.0, abs=0.2)
    assert pair.board.seen(Delivered) == [Delivered(name)]


def test_seconds_of_contact_are_counted_across_windows() -> None:
    session = Pair(FULL).board.session
    assert session.contacts.after(3.0, 5.0) == 8.0
    session.plan([Window(2.0, 4.0), Window(10.0, 20.0)], 0.0)
    assert session.contacts.after(3.0, 5.0) == pytest.approx(14.0, abs=1e-5)
    assert session.contacts.after(5.0, 5.0) == pytest.approx(15.0, abs=1e-5)
    assert session.contacts.after(3.0, 12.0) == math.inf


def test_after_the_last_contact_nothing_wakes_a_session() -> None:
    session = Session(
        Identity(0, 7, primary=True),
        Medium(FULL, contacts=[Window(5.0, 6.0)]),
        Security(KEY),
        SessionState(epoch=1),
    )
    session.offer(UPDATE, data(1000), 0.0)
    assert session.wakeup(0.0) == pytest.approx(5.0, abs=1e-3)
    assert session.transmit(4.9) is None
    assert session.transmit(5.1) is not None
    assert session.wakeup(6.0) == math.inf
    assert session.transmit(7.0) is None


def test_another_plan_holds_from_when_it_is_told() -> None:
    pair = Pair(FULL, contacts=[Window(100.0, 200.0)])
    name = pair.board.offer(UPDATE, data(20_000), 0.0, deadline_s=150.0)
    pair.run(110.0)
    for end in (pair.board, pair.ground):
        end.session.plan([Window(105.0, 111.0), Window(300.0, 400.0)], pair.now)  # type: ignore[union-attr]
    pair.run(120.0)
    sent = len(pair.sent)
    pair.run(299.0)
    assert len(pair.sent) == sent > 0
    finish(pair, pair.board)
    assert pair.board.seen(Delivered) == [Delivered(name)]
    for end in (pair.board, pair.ground):
        end.session.plan(None, pair.now)  # type: ignore[union-attr]
    pair.run(500.0)
    pair.board.offer(UPDATE, data(500, 2), 500.0)
    assert finish(pair, pair.board, objects=2) < 503.0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(LINKS)),
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.2]),
)
def test_whatever_the_plan_no_byte_leaves_outside_it(
    name: str, spans: list[tuple[int, int]], seed: int, loss: float
) -> None:
    link = LINKS[name]
    edges = list(accumulate(length for span in spans for length in span))
    scale = 0.02 if name == "fast" else 1.0
    plan = [Window(scale * rise, scale * end) for rise, end in pairwise([0, *edges])][1::2]
    plan.append(Window(plan[-1].set + 10.0, plan[-1].set + 1000.0))
    pair = Pair(link, contacts=plan, seed=seed, frame_loss=loss)
    rnd = random.Random(seed)
    pair.board.offer(UPDATE, rnd.randbytes(rnd.randrange(20_000)), 0.0)
    pair.ground.offer(1, rnd.randbytes(rnd.randrange(20_000)), 0.0)
    pair.run(plan[-1].set)
    assert len(pair.board.seen(Delivered)) == len(pair.ground.seen(Delivered)) == 1
    keyed_s = link.keying_s if link.half_duplex else 0.0
    for start, last in on_air(pair, link):
        assert any(w.rise <= start and last + keyed_s <= w.set + 1e-6 for w in plan)
    assert {frame.type for *_, frame in pair.sent} >= {Type.OFFER, Type.DONE}
