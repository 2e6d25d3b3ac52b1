"""An object whose frames do not pass is cut anew, and arrives whole, for a few times its bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_sim.world.channel import Burst
from hw_profiles import Link
from onboard.wire.config import Limits, Medium
from onboard.wire.events import Arrived, Delivered, Recut, Stuck
from onboard.wire.framing.frame import Frame, Type
from onboard.wire.medium.medium_access import Timing
from onboard.wire.messages import Offer, digest
from onboard.wire.transfer.inbox import Inbox
from onboard.wire.transfer.outgoing import Outgoing
from onboard.wire.transfer.peer import ReceiveStats
from tests.onboard.wire.pair import FULL, HALF, UPDATE, Pair, data, finish, link, uhf_full

UART = uhf_full(1002, rate_up_bps=92_160.0, rate_down_bps=92_160.0)
ISL = uhf_full(1378, rate_up_bps=16e6, rate_down_bps=16e6, delay_s=0.015)
RADIO = link(mtu_bytes=256)
Passes = Callable[[int, float, Random], bool]
"""Whether a frame of so many bytes passes at that time."""


def eats(values: int) -> Passes:
    """A line that eats, or doubles, so many of the 256 byte values of whitened frames."""
    return lambda length, now, random: random.random() < (1 - values / 256) ** (length + 2)


def wrong_bits(rate: float) -> Passes:
    return lambda length, now, random: random.random() < (1 - rate) ** (8 * length + 16)


def at_most(most: int) -> Passes:
    return lambda length, now, random: length <= most


def not_exactly(count: int) -> Passes:
    return lambda length, now, random: length != count


LINES = [
    pytest.param(UART, eats(2), 5.5, id="XON and XOFF eaten"),
    pytest.param(RADIO, eats(2), 6.0, id="half-duplex, XON and XOFF eaten"),
    pytest.param(UART, eats(1), 5.0, id="0xFF doubled, CR turned into LF, or NUL eaten"),
    pytest.param(UART, wrong_bits(3e-4), 4.0, id="wrong bits"),
    pytest.param(RADIO, wrong_bits(1e-3), 6.5, id="half-duplex, a hundred times the wrong bits"),
    pytest.param(ISL, at_most(1172), 4.0, id="an MTU of 1,200"),
    pytest.param(UART, at_most(255), 4.0, id="a buffer of 255 B"),
    pytest.param(RADIO, at_most(128), 4.0, id="half-duplex, a buffer of 128 B"),
    pytest.param(UART, not_exactly(1024), 4.0, id="frames of exactly 1,024 B"),
]


def mission(radio: Link, passes: Passes, seed: int) -> Pair:
    """A model down and an update up, four times, of the sizes that a small model has."""
    random = Random(seed)
    made = Pair(radio, seed=seed, mangle=lambda raw, now: [raw] if passes(len(raw), now, random) else [])
    for nth in range(4):
        for end, size in ((made.ground, 2_600), (made.board, 1_800)):
            end.offer(UPDATE, data(size, 10 * seed + nth), made.now)
            finish(made, end, nth + 1, until=made.now + 2_000.0)
            assert len(end.seen(Delivered)) == nth + 1
    return made


def on_wire(made: Pair) -> int:
    """What both ends sent."""
    ends = made.ground.session, made.board.session
    return sum(session.snapshot(made.now).bytes_sent for session in ends if session is not None)


@pytest.mark.parametrize(("radio", "passes", "times"), LINES)
def test_objects_cross_for_a_few_times_the_bytes(radio: Link, passes: Passes, times: float) -> None:
    """A whole mission's four times, HELLO and health among them, are the hardship benchmark's."""
    clean = on_wire(mission(radio, lambda length, now, random: True, 0))
    spent = [on_wire(mission(radio, passes, seed)) / clean for seed in range(1, 5)]
    assert sum(spent) / len(spent) < times, spent


def test_who_sends_is_told_what_does_not_pass() -> None:
    made = mission(UART, at_most(255), 1)
    first, *later = made.board.seen(Stuck)  # of four objects: the others are cut as they have to be
    assert isinstance(first, Stuck)
    assert first.frame_bytes == 1026
    assert len(later) <= 1
    assert 22 < first.shorter_bytes <= 257
    assert len(made.board.seen(Recut)) <= 2


def test_while_nothing_comes_through_no_end_is_in_sight() -> None:
    made = Pair(UART, mangle=lambda raw, now: [raw] if len(raw) < 60 else [])
    made.board.offer(UPDATE, data(4_000), 0.0)
    seen = []
    for second in range(1, 120):
        made.run(float(second))
        assert made.board.session is not None
        snapshot = made.board.session.snapshot(made.now)
        seen.append(snapshot.eta_out_s)
        if made.board.seen(Delivered):
            break
        if snapshot.objects and not snapshot.objects[0].held:
            assert snapshot.eta_out_s >= 0.4
    assert made.board.seen(Stuck)
    assert made.board.seen(Delivered)


@pytest.mark.parametrize("radio", [FULL, HALF], ids=["full", "half"])
@pytest.mark.parametrize(
    "channel",
    [{"frame_loss": 0.4}, {"burst": Burst(0.4, 5.0)}, {"burst": Burst(0.2, 5.0)}, {}],
    ids=["40 %", "bursts", "few bursts", "clean"],
)
def test_losses_that_spare_no_length_are_no_reason(radio: Link, channel: dict[str, object]) -> None:
    recuts = 0
    for seed in range(6):
        made = Pair(radio, seed=seed, **channel)
        made.board.offer(UPDATE, data(16_000, seed), 0.0)
        finish(made, made.board)
        recuts += len(made.board.seen(Recut))
    assert recuts <= 1


def test_when_the_line_is_good_again_frames_are_long_again() -> None:
    made = Pair(UART, mangle=lambda raw, now: [raw] if now > 10.0 or len(raw) <= 200 else [])
    made.board.offer(UPDATE, data(2_000_000), 0.0)
    made.run(400.0, lambda: bool(made.board.seen(Delivered)))
    assert made.board.seen(Delivered)
    lengths = [len(frame.payload) for frame in made.frames(Type.DATA)]
    assert max(lengths[10:-2000]) <= 1002
    assert lengths[-10] == 1002
    assert made.now < 1.35 * 2_000_000 * 8 / 92_160


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0.5, 20.0), st.sampled_from([60, 120, 255, 400, 700, 2000])), max_size=8),
    st.integers(2_000, 40_000),
    st.integers(0, 2**16),
    st.sampled_from([0.0, 0.1]),
)
def test_whatever_passes_when_the_object_arrives_and_nothing_held_goes_again(
    schedule: list[tuple[float, int]], size: int, seed: int, loss: float
) -> None:
    def passes(length: int, now: float) -> bool:
        for lasts_s, most in schedule:
            if now < lasts_s:
                return length <= most
            now -= lasts_s
        return True

    made = Pair(
        UART, seed=seed, frame_loss=loss, mangle=lambda raw, now: [raw] if passes(len(raw), now) else []
    )
    payload = data(size, seed)
    made.board.offer(UPDATE, payload, 0.0)
    finish(made, made.board, until=600.0)
    assert made.ground.seen(Arrived) == [Arrived(digest(UPDATE, payload), UPDATE, payload)]
    assert made.board.session is not None
    assert made.ground.session is not None
    again = made.ground.session.snapshot(made.now).duplicates
    cuts = len(made.board.seen(Recut))
    assert again <= made.board.session.snapshot(made.now).repairs_sent + 2 * cuts


def frame(object_id: int, fragment: int, payload: bytes) -> Frame:
    return Frame(Type.DATA, 7, 0, 1, 1, object_id, fragment, payload)


def offer(object_id: int, name: bytes, fragment_bytes: int) -> Frame:
    payload = Offer(name, 250, fragment_bytes, UPDATE).encode()
    return Frame(Type.OFFER, 7, 0, 1, 1, object_id, payload=payload)


def test_what_still_comes_in_the_old_length_spoils_nothing() -> None:
    """The last fragment of the old cut is as long as all of the new one, and has an index of it, too."""
    payload = data(250)
    inbox = Inbox(Timing(Medium(FULL, len_and_two), primary=True), ReceiveStats(), Limits(), ())
    name = digest(UPDATE, payload)
    inbox.handle(offer(1, name, 100), 0.0)
    inbox.handle(frame(1, 0, payload[:100]), 0.1)
    inbox.handle(offer(2, name, 50), 0.2)
    assert inbox.incoming[name].held == 0b11
    inbox.handle(frame(1, 2, payload[200:]), 0.3)  # late
    assert inbox.incoming[name].held == 0b11
    events = []
    for index in range(2, 5):
        events += inbox.handle(frame(2, index, payload[50 * index : 50 * index + 50]), 0.4)
    assert events == [Arrived(name, UPDATE, payload)]


def len_and_two(frame_bytes: int) -> int:
    return frame_bytes + 2


@given(st.integers(1, 3000), st.integers(25, 400), st.integers(25, 400), st.data())
def test_a_new_cut_takes_over_what_is_held(size: int, before: int, after: int, draw: st.DataObject) -> None:
    outgoing = Outgoing(UPDATE, bytes(size), before)
    outgoing.acknowledged = draw.draw(st.integers(0, (1 << outgoing.count) - 1))
    again = outgoing.recut(after, 9)
    assert (again.digest, again.object_id, again.payload) == (outgoing.digest, 9, outgoing.payload)
    held = {byte for byte in range(size) if outgoing.acknowledged >> byte // before & 1}
    for index in range(again.count):
        span = range(index * after, min((index + 1) * after, size))
        assert again.acknowledged >> index & 1 == all(byte in held for byte in span)
        assert again.to_send >> index & 1 != again.acknowledged >> index & 1
    assert math.isinf(again.deadline)
