"""Any h independent repairs give any h missing fragments, and a repair that cannot be changes nothing."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.wire.messages import PREFIX_BYTES, BadMessage, Report, digest
from onboard.wire.transfer import fragments
from onboard.wire.transfer.fragments import GENERATION, Equations, mask
from onboard.wire.transfer.incoming import Incoming
from onboard.wire.transfer.outgoing import Outgoing
from tests.onboard.wire.pair import FAST, FULL, UPDATE, Pair, data, finish

FRAGMENT_BYTES = 5


def ends(payload: bytes, fragment_bytes: int = FRAGMENT_BYTES) -> tuple[Outgoing, Incoming]:
    """Of one object, nothing sent."""
    incoming = Incoming(digest(UPDATE, payload), UPDATE, len(payload), fragment_bytes)
    return Outgoing(UPDATE, payload, fragment_bytes), incoming


def rank(rows: list[int]) -> int:
    """Of binary rows, by elimination: the reference for Equations."""
    basis: list[int] = []
    for row in rows:
        for other in basis:
            row = min(row, row ^ other)
        if row:
            basis.append(row)
    return len(basis)


@given(
    st.binary(min_size=1, max_size=60 * FRAGMENT_BYTES),
    st.lists(st.tuples(st.booleans(), st.integers(0, 80)), max_size=160),
    st.integers(1, 0xFFFF),
)
def test_fragments_and_repairs_in_any_order_tell_all_that_they_imply(
    payload: bytes, steps: list[tuple[bool, int]], epoch: int
) -> None:
    outgoing, incoming = ends(payload)
    heard: list[int] = []
    for is_repair, number in steps:
        if is_repair:
            chosen = mask(outgoing.digest, (epoch, number), 0, outgoing.count)
            new = incoming.repair((epoch, number), 0, outgoing.repair(0, (epoch, number)))
        else:
            chosen = 1 << number % outgoing.count
            new = incoming.store(number % outgoing.count, outgoing.fragment(number % outgoing.count))
        before, after = rank(heard), rank([*heard, chosen])
        heard.append(chosen)
        if is_repair:
            assert new == (after > before)
        assert incoming.have + dict(incoming.equations).get(0, 0) == after
        for index in range(outgoing.count):  # held is what follows from all that was heard, and no more
            assert incoming.held >> index & 1 == (rank([*heard, 1 << index]) == after)
            if incoming.held >> index & 1:
                assert bytes(incoming.fragment(index)) == outgoing.fragment(index)
    if incoming.complete:
        assert incoming.verified() == payload
    assert incoming.dirty == incoming.held


def test_a_whole_generation_takes_two_repairs_too_many_on_average() -> None:
    """1.6 in theory, for many fragments; the mean of 60 trials is within 0.6 of it (3 standard errors)."""
    excess = []
    for seed in range(60):
        payload = random.Random(seed).randbytes(GENERATION * 3)
        outgoing, incoming = ends(payload, 3)
        number = 0
        while not incoming.complete:
            incoming.repair((1, number), 0, outgoing.repair(0, (1, number)))
            number += 1
        assert incoming.verified() == payload
        excess.append(number - GENERATION)
    assert statistics.mean(excess) == pytest.approx(1.6, abs=0.6)


def test_masks_halve_the_generation_and_differ_by_all_they_are_drawn_from() -> None:
    name = bytes(16)
    drawn_from = [(name, (1, 1), 0), (name, (2, 1), 0), (name, (1, 2), 0), (name, (1, 1), 1)]
    masks = [mask(*each, 512) for each in [*drawn_from, (b"another" + bytes(9), (1, 1), 0)]]
    assert len(set(masks)) == 5
    assert all(90 < of.bit_count() < 166 for of in masks)  # 128 within 5 standard deviations
    assert {mask(name, (1, number), 0, 1) for number in range(20)} == {1}
    assert all(mask(name, (1, number), 0, 3) in range(1, 8) for number in range(100))


@pytest.mark.parametrize("size", [1, 4, 5, 6, 256 * 5 - 1, 256 * 5, 256 * 5 + 1, 257 * 5 + 3])
def test_the_last_fragment_may_be_short_and_alone_in_its_generation(size: int) -> None:
    payload = data(size)
    outgoing, incoming = ends(payload)
    last = (outgoing.count - 1) // GENERATION
    for index in range(last * GENERATION):
        incoming.store(index, outgoing.fragment(index))
    seq = 0
    while not incoming.complete:
        seq += 1
        total = outgoing.repair(last, (1, seq))
        assert len(total) == min(FRAGMENT_BYTES, size - last * GENERATION * FRAGMENT_BYTES)
        incoming.repair((1, seq), last, total)
    assert incoming.verified() == payload


def test_a_repair_that_cannot_be_changes_nothing() -> None:
    _, incoming = ends(data(300 * FRAGMENT_BYTES))
    for generation, length in ((2, FRAGMENT_BYTES), (255, FRAGMENT_BYTES), (1, 4), (0, 0), (0, 6)):
        with pytest.raises(BadMessage):
            incoming.repair((1, 1), generation, bytes(length))
    assert incoming.held == 0
    assert not incoming.equations


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 255), st.binary(min_size=5, max_size=5))))
def test_sums_that_lie_are_bounded_and_the_digest_finds_them_out(
    lies: list[tuple[int, int, bytes]],
) -> None:
    payload = data(300 * FRAGMENT_BYTES)
    outgoing, incoming = ends(payload)
    for generation, number, total in lies * 3:
        incoming.repair((7, number), generation, total)
    assert sum(held for _, held in incoming.equations) <= incoming.count - incoming.have
    for index in range(outgoing.count):
        incoming.store(index, outgoing.fragment(index))
    assert incoming.complete
    assert not incoming.equations
    if (whole := incoming.verified()) is not None:
        assert whole == payload
    incoming.clear()
    assert incoming.held == 0


def test_equations_do_not_outlive_the_fragments_they_are_about() -> None:
    payload = data(40 * FRAGMENT_BYTES)
    outgoing, incoming = ends(payload)
    for number in range(20):
        incoming.repair((1, number), 0, outgoing.repair(0, (1, number)))
    assert dict(incoming.equations) == {0: 20}
    incoming.refragment(7)
    assert not incoming.equations
    equations = Equations()
    assert equations.add(0, 0) == []
    assert equations.rank == 0


def flown(loss: float, lost: set[int], fragments: int = 60) -> Outgoing:
    """An object wholly transmitted, of which the first half is reported and `lost` of it was missing."""
    outgoing = Outgoing(UPDATE, bytes(fragments * FRAGMENT_BYTES), FRAGMENT_BYTES)
    for index in range(fragments):
        outgoing.sent(index, index + 1)
    half = fragments // 2
    held = sum(1 << index for index in range(half) if index not in lost)
    report = Report(1, half, outgoing.digest[:PREFIX_BYTES], held)
    assert outgoing.report(report, heard=(1, 1), epoch=1) is not None
    return outgoing


def test_no_repair_leaves_where_nothing_is_lost() -> None:
    outgoing = flown(0.0, set())
    assert outgoing.deficit(0.0)[0] <= 0
    assert outgoing.deficit(0.001)[0] <= 0
    assert outgoing.next_fragment() is None


@pytest.mark.parametrize("loss", [0.05, 0.2, 0.4])
def test_as_many_repairs_leave_as_make_up_for_the_likely_losses(loss: float) -> None:
    outgoing = flown(loss, set())
    made = 0
    while outgoing.deficit(loss)[0] > 0:
        made += 1
        outgoing.repair_sent(outgoing.deficit(loss)[1], 60 + made)
    rnd = random.Random(5)
    enough = sum(
        sum(rnd.random() >= loss for _ in range(30 + made)) >= 30 for _ in range(2000)
    )  # of 30 in flight and the repairs, at least 30 arrive
    assert enough / 2000 > 0.9
    assert made <= 30 * loss / (1 - loss) + 2.5 * (30 * loss) ** 0.5 / (1 - loss) + 3
    assert outgoing.in_flight == 30 + made


def test_what_repairs_in_flight_are_likely_to_give_is_not_sent_as_well() -> None:
    outgoing = flown(0.2, set())
    for number in range(12):
        outgoing.repair_sent(0, 61 + number)
    held = (1 << 50) - 1
    report = Report(1, 60, outgoing.digest[:PREFIX_BYTES], held)  # 10 were lost, 12 repairs are in flight
    assert outgoing.report(report, heard=(1, 2), epoch=1) is not None
    assert outgoing.to_send == (1 << 60) - 1 & ~held
    assert outgoing.next_fragment(0.1) is None
    assert outgoing.next_fragment(0.3) == 50
    report = Report(1, 72, outgoing.digest[:PREFIX_BYTES], held, equations=((0, 9),))
    assert outgoing.report(report, heard=(1, 3), epoch=1) is not None
    assert outgoing.next_fragment(0.1) == 50
    assert outgoing.in_flight == 0


def test_a_tail_is_repaired_without_waiting_and_without_waste() -> None:
    pair = Pair(FAST, seed=4, frame_loss=0.2)
    pair.board.offer(UPDATE, data(1 << 20), 0.0)
    finish(pair, pair.board)
    snapshot = pair.board.session.snapshot(pair.now)  # type: ignore[union-attr]
    assert snapshot.repairs_sent > 0
    sent = snapshot.fragments_sent + snapshot.repairs_sent
    assert sent <= 1.1 * 749 / 0.8


def test_a_clean_link_carries_no_repair() -> None:
    for link in (FULL, FAST):
        pair = Pair(link)
        pair.board.offer(UPDATE, data(65536), 0.0)
        finish(pair, pair.board)
        assert pair.board.session.snapshot(pair.now).repairs_sent == 0  # type: ignore[union-attr]


def test_repair_is_of_the_documented_size() -> None:
    assert fragments.repair_bytes(65536, 200, 0) == 200
    assert fragments.repair_bytes(256 * 200 + 3, 200, 1) == 3
