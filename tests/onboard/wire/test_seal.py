"""Only what the peer made, for us, is opened, and only once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from onboard.wire.framing.frame import Frame, Type
from onboard.wire.security.seal import (
    MAX_SEQ,
    WINDOW,
    Opener,
    ReplayWindow,
    Sealer,
    SeqExhausted,
    directional_key,
)
from tests.onboard.wire.examples import KEY, encoded

GROUND, BOARD = 0, 3


def pair(epoch: int = 1, floor: tuple[int, int] = (0, 0)) -> tuple[Sealer, Opener]:
    return (
        Sealer(KEY, source=BOARD, destination=GROUND, epoch=epoch),
        Opener(KEY, source=BOARD, destination=GROUND, floor=floor),
    )


def takes_each_once(
    sealer: Sealer, opener: Opener, order: list[int], data: st.DataObject, *, encrypted: bool
) -> None:
    """59 frames that come in this order are taken, and one of them that comes again is not."""
    sent = {seq: sealer.seal(Type.MSG, bytes((seq,))) for seq in range(1, 60)}
    for seq in order:
        opened = opener.open(sent[seq])
        assert opened is not None
        assert (opened.seq, opened.payload, opened.encrypted) == (seq, bytes((seq,)), encrypted)
    assert opener.open(sent[data.draw(st.sampled_from(order))]) is None
    assert (opener.opened, opener.counts["replays"]) == (59, 1)


class WindowMachine(RuleBasedStateMachine):
    """A window against the rule it keeps, said as slowly as possible: a set of all pairs taken."""

    def __init__(self) -> None:
        super().__init__()
        self.window = ReplayWindow()
        self.taken: set[tuple[int, int]] = set()
        self.highest = (0, 0)

    @rule(
        epoch=st.integers(0, 3),
        seq=st.integers(0, 20) | st.integers(1000, 1050) | st.integers(MAX_SEQ - 1100, MAX_SEQ),
    )
    def accept(self, epoch: int, seq: int) -> None:
        late = epoch == self.highest[0] and seq <= self.highest[1] - WINDOW
        past = epoch < self.highest[0] or (epoch == 0 and seq == 0)
        expected = (epoch, seq) not in self.taken and not late and not past
        assert self.window.accept(epoch, seq) == expected
        if expected:
            self.taken.add((epoch, seq))
            self.highest = max(self.highest, (epoch, seq))

    @rule()
    def persist_and_restart(self) -> None:
        self.window = ReplayWindow(self.window.floor)
        epoch, highest = self.highest
        self.taken |= {(epoch, seq) for seq in range(max(0, highest - WINDOW), highest + 1)}

    @invariant()
    def floor_is_the_highest_taken(self) -> None:
        assert self.window.floor == self.highest


WindowMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestWindow = WindowMachine.TestCase


@given(st.permutations(range(1, 60)), st.data())
def test_reordered_frames_are_each_taken_once(order: list[int], data: st.DataObject) -> None:
    takes_each_once(*pair(), order, data, encrypted=False)


def test_a_restarted_receiver_takes_nothing_up_to_its_floor() -> None:
    sealer, opener = pair()
    frames = [sealer.seal(Type.DATA) for _ in range(10)]
    for raw in frames[:6]:
        assert opener.open(raw) is not None
    _, restarted = pair(floor=opener.floor)
    assert [restarted.open(raw) is not None for raw in frames] == [False] * 6 + [True] * 4
    assert restarted.counts["replays"] == 6


def test_a_restarted_sender_is_heard_and_its_former_self_is_not() -> None:
    before, opener = pair(epoch=1)
    old = [before.seal(Type.DATA) for _ in range(5)]
    assert opener.open(old[0]) is not None
    after = Sealer(KEY, source=BOARD, destination=GROUND, epoch=2)
    assert opener.open(after.seal(Type.DATA)) is not None
    assert opener.open(old[4]) is None
    assert opener.counts["replays"] == 1
    assert opener.floor == (2, 1)


def test_what_is_refused_is_counted_and_changes_nothing() -> None:
    sealer, opener = pair()
    good = sealer.seal(Type.DATA, b"payload")
    altered = good[:20] + bytes((good[20] ^ 1,)) + good[21:]
    foreign = Sealer(bytes(32), source=BOARD, destination=GROUND, epoch=9).seal(Type.DATA)
    other_node = Sealer(KEY, source=BOARD + 1, destination=GROUND, epoch=1).seal(Type.DATA)
    reflected = Sealer(KEY, source=GROUND, destination=BOARD, epoch=1).seal(Type.DATA)
    secret = encoded(
        Frame(Type.DATA, BOARD, GROUND, 1, 9, encrypted=True), directional_key(KEY, BOARD, GROUND, 0)
    )  # ENC, and yet a tag
    for raw in (altered, foreign, other_node, reflected, secret, good[:10], b""):
        assert opener.open(raw) is None
    counts = (
        opener.counts["bad_tags"],
        opener.counts["misaddressed"],
        opener.counts["encrypted_dropped"],
        opener.counts["malformed"],
        opener.counts["replays"],
    )
    assert counts == (2, 2, 1, 2, 0)
    assert opener.floor == (0, 0)
    assert opener.open(good) is not None


def test_a_frame_sent_back_with_its_addresses_swapped_proves_nothing() -> None:
    sealer, _ = pair()
    raw = bytearray(sealer.seal(Type.DATA, b"x"))
    raw[2], raw[3] = raw[3], raw[2]
    mine = Opener(KEY, source=GROUND, destination=BOARD)
    assert mine.open(bytes(raw)) is None
    assert mine.counts["bad_tags"] == 1


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(raw: bytes) -> None:
    _, opener = pair()
    assert opener.open(raw) is None
    assert opener.counts.total() == 1


def test_every_key_held_opens_and_directions_and_ids_have_their_own_subkeys() -> None:
    keys = {key_id: bytes([key_id]) * 32 for key_id in (2, 3, 0)}
    opener = Opener(keys, source=BOARD, destination=GROUND)
    sealer = Sealer({**keys, 1: KEY}, source=BOARD, destination=GROUND, epoch=1)
    assert sealer.key_id == 1  # the newest
    assert opener.open(sealer.seal(Type.POLL)) is None
    assert opener.counts["unknown_keys"] == 1
    for key_id in keys:
        sealer.turn(key_id)
        raw = sealer.seal(Type.POLL)
        opened = opener.open(raw)
        assert opened is not None
        assert (opened.key_id, opened.seq) == (key_id, sealer.seq)
        assert opener.open(raw) is None  # one window for all keys
    assert opener.counts["replays"] == 3
    with pytest.raises(KeyError):
        Sealer(keys, source=BOARD, destination=GROUND, epoch=1).turn(1)
    subkeys = {
        directional_key(KEY, source, destination, key_id)
        for source in range(4)
        for destination in range(4)
        for key_id in range(4)
    }
    assert len(subkeys) == 64
    assert KEY not in subkeys


def test_directional_key_golden() -> None:
    # blake2s(b"\x03\x00\x01", key=bytes(range(32)), person=b"sdml-dir")
    golden = "1d21f05612ef12e01a21d5d7658282b172a8ea10bba4cb9db145fc2c20a96bab"
    assert directional_key(KEY, 3, 0, 1).hex() == golden


@pytest.mark.parametrize("epoch", [0, -1, 1 << 16])
def test_an_epoch_that_no_boot_has(epoch: int) -> None:
    with pytest.raises(ValueError, match=str(epoch)):
        Sealer(KEY, source=1, destination=0, epoch=epoch)


def test_a_key_of_another_length() -> None:
    with pytest.raises(ValueError, match="31"):
        Sealer(bytes(31), source=1, destination=0, epoch=1)


def test_seqs_run_out_rather_than_round() -> None:
    sealer, opener = pair()
    sealer.seq = MAX_SEQ - 1  # four thousand million frames take too long
    assert opener.open(sealer.seal(Type.MSG)) is not None
    with pytest.raises(SeqExhausted):
        sealer.seal(Type.MSG)
    assert sealer.seq == MAX_SEQ


def test_a_frame_that_cannot_be_made_uses_up_its_seq() -> None:
    sealer, _ = pair()
    with pytest.raises(ValueError, match="70000"):
        sealer.seal(Type.DATA, fragment=70_000)
    opened = Opener(KEY, source=BOARD, destination=GROUND).open(sealer.seal(Type.DATA))
    assert opened is not None
    assert opened.seq == 2


@pytest.mark.parametrize("keys", [{}, {4: KEY}, {-1: KEY, 0: KEY}])
def test_key_ids_have_two_bits(keys: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match="key ids"):
        Sealer(keys, source=1, destination=0, epoch=1)


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=40))
def test_no_frame_is_taken_twice_over_changes_of_the_key(steps: list[tuple[int, bool]]) -> None:
    keys = {0: KEY, 1: bytes(range(32, 64))}
    sealer = Sealer(keys, source=BOARD, destination=GROUND, epoch=1)
    opener, sent, taken = Opener(keys, source=BOARD, destination=GROUND), [], set()
    for key_id, repeat in steps:
        sealer.turn(key_id)
        sent.append(sealer.seal(Type.MSG))
        for raw in [sent[-1], *(sent if repeat else [])]:
            if opener.open(raw) is not None:
                assert raw not in taken
                taken.add(raw)
    assert taken == set(sent)
