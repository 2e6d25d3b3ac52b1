"""Whoever has something to send gets its share of bytes, whatever the lengths of the frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.wire.transfer.outbox import RoundRobin

QUANTUM_BYTES = 200


@given(st.lists(st.integers(1, QUANTUM_BYTES), min_size=1, max_size=6), st.integers(1, 400))
def test_shares_differ_by_less_than_two_frames(lengths: list[int], frames: int) -> None:
    """The bound of Shreedhar and Varghese (lemma 2): a quantum and the longest frame."""
    shares = RoundRobin(QUANTUM_BYTES)
    sent = dict.fromkeys(range(len(lengths)), 0)
    for _ in range(frames):
        name = shares.choose(dict(enumerate(lengths)))
        sent[name] += lengths[name]
        assert max(sent.values()) - min(sent.values()) <= QUANTUM_BYTES + max(lengths)


@given(st.data())
def test_who_has_nothing_to_send_saves_nothing_up(data: st.DataObject) -> None:
    shares = RoundRobin(QUANTUM_BYTES)
    for _ in range(data.draw(st.integers(0, 20))):
        shares.choose({1: 100})
    sent = {1: 0, 2: 0}
    for _ in range(40):
        sent[shares.choose({1: 100, 2: 100})] += 100
    assert abs(sent[1] - sent[2]) <= 2 * QUANTUM_BYTES


def test_one_alone_has_it_all_and_none_is_an_error() -> None:
    shares = RoundRobin(QUANTUM_BYTES)
    assert [shares.choose({7: 200}) for _ in range(5)] == [7] * 5
    with pytest.raises(ValueError, match="nobody"):
        shares.choose({})
