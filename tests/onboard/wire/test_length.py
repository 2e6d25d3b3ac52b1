"""Fragments are as long as the losses make best, and losses that have nothing to do with length leave it."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.wire.config import Medium
from onboard.wire.events import Delivered
from onboard.wire.framing.frame import Frame, Type
from onboard.wire.medium.medium_access import Timing
from onboard.wire.messages import MAX_FRAGMENTS, Offer
from onboard.wire.transfer.length import FragmentSizer
from onboard.wire.transfer.peer import DeliveryStats, LossEstimator, ReceiveStats
from tests.onboard.wire.pair import COBS_BYTES, UPDATE, Pair, data, finish, uhf_full

FRAMING_BYTES = 24  # of a frame on the wire without payload
LONGEST = 1024
SIZE = 30_000


def goodput(length: int, loss: float, errors: float) -> float:
    """As a share of the line rate (docs/results/link-benchmarks.md)."""
    wire_bytes = length + FRAMING_BYTES
    return float((1 - loss) * (1 - errors) ** (8 * wire_bytes) * length / wire_bytes)


def sizer(hearing: ReceiveStats, errors: float = 0.0) -> FragmentSizer:
    """Of an end that has sent nothing, on a link whose profile has these bit errors."""
    radio = uhf_full(LONGEST, bit_error_rate=errors)
    timing = Timing(Medium(radio, lambda frame_bytes: frame_bytes + COBS_BYTES), primary=True)
    return FragmentSizer(timing, radio, hearing, LossEstimator())


def learnt(loss: float, errors: float, seed: int, rounds: int = 6, fates: int = 300) -> int:
    """The length that is taken after so many objects, and the short frames of the peer that answered them."""
    rnd = random.Random(seed)

    def drawn(wire_bytes: int, count: int) -> DeliveryStats:
        survives = (1 - loss) * (1 - errors) ** (8 * wire_bytes)
        kept = sum(rnd.random() < survives for _ in range(count))
        return DeliveryStats(count - kept, kept)

    hearing, seq = ReceiveStats(), 1
    hearing.heard(Frame(Type.DATA, 7, 0, 1, seq), LONGEST, 0.0, 0.0)
    lengths = sizer(hearing)
    length = lengths.first(SIZE, 0.0)
    assert length == LONGEST
    for _ in range(rounds):
        lengths.count(length + FRAMING_BYTES, drawn(length + FRAMING_BYTES, fates))
        short = drawn(40, fates // 6)
        for fate in [False] * int(short.lost) + [True] * int(short.kept):
            seq += 1
            if fate:
                hearing.heard(Frame(Type.POLL, 7, 0, 1, seq), 40, 0.0, 0.0)
        length = lengths.first(SIZE, 0.0)
    return length


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0.0, 0.05, 0.2, 0.4]),
    st.sampled_from([0.0, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4]),
    st.integers(0, 2**32),
)
def test_what_is_learnt_carries_nearly_the_best(loss: float, errors: float, seed: int) -> None:
    best = max(goodput(length, loss, errors) for length in range(1, LONGEST + 1))
    assert goodput(learnt(loss, errors, seed), loss, errors) >= 0.85 * best  # the mean is 0.98


@pytest.mark.parametrize("loss", [0.05, 0.2, 0.4])
def test_losses_that_take_any_frame_leave_the_length(loss: float) -> None:
    assert [learnt(loss, 0.0, seed) for seed in range(10)] == [LONGEST] * 10


def test_a_profile_that_knows_its_bit_errors_is_enough_to_begin_with() -> None:
    chosen = [sizer(ReceiveStats(), errors).first(SIZE, 0.0) for errors in (0.0, 1e-6, 1e-5, 1e-4, 1e-3)]
    assert chosen == [1024, 1024, 1024, 256, 64]  # halves within 5 % of what 512, 128 and 32 promise
    assert sizer(ReceiveStats(), 1e-3).first(200 * MAX_FRAGMENTS, 0.0) == 256


def test_the_first_object_is_cut_anew_for_the_link_and_those_after_it_at_once() -> None:
    link = uhf_full(1024)
    pair = Pair(link, bit_error_rate=1e-4)
    for nth in range(3):
        pair.board.offer(UPDATE, data(30_000, nth), pair.now)
        finish(pair, pair.board, objects=nth + 1)
    offers = [Offer.decode(frame.payload) for frame in pair.frames(Type.OFFER)]
    cut = {offer.digest: {o.fragment_bytes for o in offers if o.digest == offer.digest} for offer in offers}
    first, *later = cut.values()
    assert max(first) == 1024
    assert min(first) <= 256
    assert all(lengths <= {64, 128, 256} and len(lengths) == 1 for lengths in later)
    assert max(len(frame.payload) for frame in pair.frames(Type.DATA)[-50:]) <= 256


def test_a_restarted_sender_goes_on_in_the_length_that_it_was_told() -> None:
    pair = Pair(uhf_full(1024))
    assert pair.board.session is not None
    payload = data(30_000)
    name = pair.board.session.offer(UPDATE, payload, 0.0, fragment_bytes=128)
    pair.run(10.0)
    kept = pair.board.session.fragment_bytes(name)
    held = next(iter(pair.ground.session.incoming.values())).held.bit_count()  # type: ignore[union-attr]
    pair.board.kill()
    pair.sent.clear()
    pair.board.boot(10.0).offer(UPDATE, payload, 10.0, fragment_bytes=kept)
    finish(pair, pair.board)
    assert kept == 1024  # nothing was lost of 128 B, so that it went on in longer ones
    assert sum(len(frame.payload) for frame in pair.frames(Type.DATA)) <= 30_000 - kept * (held - 1)
    assert pair.board.seen(Delivered) == [Delivered(name)]
    with pytest.raises(KeyError):
        pair.board.session.fragment_bytes(name)
    assert COBS_BYTES + 22 == FRAMING_BYTES


def test_a_length_costs_no_more_to_weigh_where_many_are_known() -> None:
    """Objects of any size leave a last fragment of any length, so a link may know hundreds."""

    def asked_s(count: int, begin: int) -> float:
        lengths = sizer(ReceiveStats())
        for wire_bytes in range(begin, begin + count):  # such as nobody asked for before
            lengths.count(wire_bytes, DeliveryStats(1, 9))
        began_s = time.process_time()
        lengths.first(SIZE, 0.0)
        return (time.process_time() - began_s) / count

    few, many = ([asked_s(count, 1000 * nth + count) for nth in range(3)] for count in (5, 200))
    assert min(many) < 10 * min(few)
