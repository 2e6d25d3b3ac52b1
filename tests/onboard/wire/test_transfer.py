"""The state of one object: every fragment is held, in flight or to be sent, and none is sent in vain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.wire.messages import MAX_FRAGMENTS, PREFIX_BYTES, BadMessage, Report, digest
from onboard.wire.transfer.fragments import indices
from onboard.wire.transfer.incoming import Incoming, Partial
from onboard.wire.transfer.outgoing import Outgoing

FRAGMENT_BYTES = 7
payloads = st.binary(min_size=1, max_size=40 * FRAGMENT_BYTES)


def incoming_of(payload: bytes, fragment_bytes: int = FRAGMENT_BYTES) -> Incoming:
    """An empty Incoming for that payload."""
    return Incoming(digest(2, payload), 2, len(payload), fragment_bytes)


def bits(of: set[int]) -> int:
    """The set as an integer."""
    return sum(1 << index for index in of)


@given(payloads, st.randoms(use_true_random=False))
def test_fragments_in_any_order_make_the_object(payload: bytes, rnd) -> None:  # type: ignore[no-untyped-def]
    outgoing = Outgoing(2, payload, FRAGMENT_BYTES)
    incoming = incoming_of(payload)
    order = list(range(outgoing.count)) * 2
    rnd.shuffle(order)
    new = [index for index in order if incoming.store(index, outgoing.fragment(index))]
    assert sorted(new) == list(range(outgoing.count))
    assert set(indices(incoming.dirty)) == set(new)
    assert incoming.complete
    assert incoming.verified() == payload
    assert bytes(incoming.fragment(0)) == payload[:FRAGMENT_BYTES]


def test_an_empty_object_is_whole_at_once() -> None:
    incoming = incoming_of(b"")
    assert incoming.complete
    assert incoming.verified() == b""
    assert Outgoing(2, b"", FRAGMENT_BYTES).next_fragment() is None


@given(payloads, st.integers(-3, 60), st.binary(max_size=FRAGMENT_BYTES + 2))
def test_a_fragment_that_cannot_be_changes_nothing(payload: bytes, index: int, data: bytes) -> None:
    incoming = incoming_of(payload)
    expected = payload[max(index, 0) * FRAGMENT_BYTES :][:FRAGMENT_BYTES] if index >= 0 else b""
    if 0 <= index < incoming.count and len(data) == len(expected):
        assert incoming.store(index, data)
        return
    with pytest.raises(BadMessage):
        incoming.store(index, data)
    assert (incoming.held, incoming.have, incoming.dirty) == (0, 0, 0)


@given(payloads, st.sets(st.integers(0, 39)), st.integers(1, 30))
def test_partial_and_refragment_keep_what_is_held(payload: bytes, have: set[int], other_bytes: int) -> None:
    outgoing = Outgoing(2, payload, FRAGMENT_BYTES)
    before = incoming_of(payload)
    for index in have & set(range(before.count)):
        before.store(index, outgoing.fragment(index))
    after = Incoming.of(before.partial())
    assert after.held == before.held
    assert after.dirty == 0

    after.refragment(other_bytes)
    other = Outgoing(2, payload, other_bytes)
    held = {b for i in have for b in range(i * FRAGMENT_BYTES, min((i + 1) * FRAGMENT_BYTES, len(payload)))}
    for index in range(other.count):
        span = set(range(index * other_bytes, min((index + 1) * other_bytes, len(payload))))
        assert bool(after.held >> index & 1) == (span <= held)
        if span <= held:
            assert bytes(after.fragment(index)) == other.fragment(index)
        else:
            after.store(index, other.fragment(index))
    assert after.verified() == payload


def test_a_partial_that_contradicts_itself_is_refused() -> None:
    good = Partial(bytes(16), 2, 20, 7, 0b101, bytes(20))
    assert Incoming.of(good).have == 2
    for bad in (
        Partial(bytes(16), 2, 20, 7, 0b1000, bytes(20)),
        Partial(bytes(16), 2, 20, 7, 0, bytes(19)),
        Partial(bytes(16), 2, 20, 7, -1, bytes(20)),
        Partial(bytes(16), 2, 20, 0, 0, bytes(20)),
        Partial(bytes(16), 2, MAX_FRAGMENTS + 1, 1, 0, bytes(MAX_FRAGMENTS + 1)),
    ):
        with pytest.raises(ValueError, match=r"partial|fragments"):
            Incoming.of(bad)


def test_a_wrong_byte_is_noticed_and_the_map_can_be_cleared() -> None:
    payload = bytes(range(20))
    incoming = incoming_of(payload)
    for index in range(3):
        incoming.store(index, payload[7 * index :][:7] if index else bytes(7))
    assert incoming.complete
    assert incoming.verified() is None
    incoming.clear()
    assert (incoming.held, incoming.have) == (0, 0)


def report_on(
    outgoing: Outgoing, held: set[int], seq: int, epoch: int = 1, covered: int = MAX_FRAGMENTS
) -> Report:
    """As a receiver that heard up to `seq` and holds `held` says it."""
    told = {index for index in held if index < covered}
    return Report(epoch, seq, outgoing.digest[:PREFIX_BYTES], bits(told), covered)


@given(
    payloads,
    st.lists(
        st.tuples(st.sampled_from(["send", "send", "send", "hear", "report"]), st.booleans()), max_size=200
    ),
    st.integers(0, 3),
)
def test_nothing_goes_again_unless_it_was_lost(
    payload: bytes, steps: list[tuple[str, bool]], slack: int
) -> None:
    """On an orderly channel that loses frames, a fragment is transmitted again only if every earlier
    transmission of it was lost, and once the channel is good the object is complete."""
    outgoing = Outgoing(2, payload, FRAGMENT_BYTES)
    receiver = incoming_of(payload)
    seq = highest = 0
    air: list[tuple[int, int, bool]] = []  # seq, fragment, lost
    lost_sends: dict[int, list[bool]] = {}
    reports = 0

    def hear() -> None:
        nonlocal highest
        number, fragment, lost = air.pop(0)
        if not lost:
            receiver.store(fragment, outgoing.fragment(fragment))
            highest = number

    def report() -> None:
        nonlocal reports
        reports += 1
        verdict = outgoing.report(
            Report(1, highest, outgoing.digest[:PREFIX_BYTES], receiver.held),
            heard=(1, reports),
            epoch=1,
            slack=slack,
        )
        assert verdict is not None
        assert 0 <= verdict.lost <= verdict.settled

    def send(lost: bool) -> None:
        nonlocal seq
        fragment = outgoing.next_fragment()
        if fragment is None:
            return
        seq += 1
        assert all(lost_sends.setdefault(fragment, [])), f"fragment {fragment} goes again and was not lost"
        lost_sends[fragment].append(lost)
        outgoing.sent(fragment, seq)
        air.append((seq, fragment, lost))

    for step, lost in steps:
        if step == "send":
            send(lost)
        elif step == "hear" and air:
            hear()
        elif step == "report":
            report()
    for _ in range(3 * outgoing.count + 10):
        send(lost=False)
        while air:
            hear()
        highest = seq + slack  # later frames, such as POLLs, were heard
        seq += slack
        report()
    assert outgoing.complete
    assert receiver.verified() == payload
    assert outgoing.in_flight == 0
    assert outgoing.resent == sum(len(sends) - 1 for sends in lost_sends.values() if sends)


def test_only_newer_reports_on_this_object_count() -> None:
    outgoing = Outgoing(2, bytes(70), FRAGMENT_BYTES)
    for index in range(6):
        outgoing.sent(index, seq=index + 1)
    assert outgoing.report(report_on(outgoing, {0, 2}, seq=3), heard=(1, 5), epoch=1) is not None
    state = outgoing.acknowledged, outgoing.in_flight, outgoing.to_send
    assert state == (0b101, 3, bits({1, 6, 7, 8, 9}))
    older = report_on(outgoing, {0}, seq=1)
    other = Report(1, 6, b"none", 0)
    too_many = report_on(outgoing, {10}, seq=6)
    unknown = Report(1, 6, unknown=True)
    assert outgoing.report(older, heard=(1, 4), epoch=1) is None
    assert outgoing.report(older, heard=(1, 5), epoch=1) is None
    for bad in (other, too_many, unknown):
        assert outgoing.report(bad, heard=(1, 9), epoch=1) is None
    assert (outgoing.acknowledged, outgoing.in_flight, outgoing.to_send) == state


def test_a_receiver_that_lost_unsaved_fragments_is_believed() -> None:
    outgoing = Outgoing(2, bytes(70), FRAGMENT_BYTES)
    for index in range(10):
        outgoing.sent(index, seq=index + 1)
    outgoing.report(report_on(outgoing, set(range(10)), seq=10), heard=(1, 5), epoch=1)
    assert outgoing.complete
    outgoing.report(report_on(outgoing, set(range(8)), seq=10), heard=(2, 1), epoch=1)
    assert not outgoing.complete
    assert outgoing.to_send == bits({8, 9})


def test_a_report_of_an_earlier_epoch_is_not_taken() -> None:
    outgoing = Outgoing(2, bytes(70), FRAGMENT_BYTES)
    outgoing.sent(0, seq=1)
    outgoing.sent(1, seq=2)
    early = report_on(outgoing, {4}, seq=900, epoch=1)
    assert outgoing.report(early, heard=(1, 1), epoch=2) is None
    assert (outgoing.acknowledged, outgoing.in_flight, outgoing.answered) == (0, 2, False)


def test_after_a_report_that_was_cut_only_what_it_tells_of_is_sent() -> None:
    outgoing = Outgoing(2, bytes(70), FRAGMENT_BYTES)
    outgoing.report(report_on(outgoing, {1, 8}, seq=0, covered=5), heard=(1, 1), epoch=1)
    assert outgoing.to_send == bits({0, 2, 3, 4})
    assert not outgoing.complete
    outgoing.report(report_on(outgoing, {0, 1, 2, 3, 4, 8}, seq=0), heard=(1, 2), epoch=1)
    assert outgoing.to_send == bits({5, 6, 7, 9})


def test_with_slack_a_fragment_may_be_overtaken_by_so_many_frames() -> None:
    outgoing = Outgoing(2, bytes(70), FRAGMENT_BYTES)
    for index in range(4):
        outgoing.sent(index, seq=index + 1)
    verdict = outgoing.report(report_on(outgoing, {3}, seq=4), heard=(1, 1), epoch=1, slack=2)
    assert verdict is not None
    assert verdict.lost == 2
    assert outgoing.in_flight == 1  # fragment 2 went just before 3 and may be on its way yet


def test_too_many_fragments_are_refused() -> None:
    with pytest.raises(ValueError, match="65536 fragments"):
        Outgoing(2, bytes(65536), 1)
