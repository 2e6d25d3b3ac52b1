"""What a peer offers costs what is bounded here, and never keeps an honest object out."""

from __future__ import annotations

import mmap
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.wire.config import Limits
from onboard.wire.events import Arrived, Evicted, Refused
from onboard.wire.framing.frame import Frame, Type
from onboard.wire.messages import MAX_FRAGMENTS, Offer, Reason, digest
from onboard.wire.security.seal import Sealer
from onboard.wire.transfer.fragments import indices, recounted
from onboard.wire.transfer.inbox import Early
from onboard.wire.transfer.incoming import Incoming
from tests.onboard.wire.pair import FAST, KEY, UPDATE, data, ground_session

MIB = 1 << 20


class Peer:
    """A board that holds the key and says what it likes, to a ground that listens."""

    def __init__(self, limits: Limits) -> None:
        self.ground = ground_session(FAST, limits)
        self._sealer = Sealer(KEY, source=7, destination=0, epoch=1)
        self.events: list[object] = []
        self.now = 0.0

    def say(self, kind: Type, payload: bytes, **fields: int) -> None:
        self.now += 0.01
        self.events += self.ground.receive(self._sealer.seal(kind, payload, **fields), self.now)  # type: ignore[arg-type]
        while self.ground.transmit(self.now) is not None:
            pass

    def offer(self, object_id: int, payload: bytes, fragment_bytes: int = 1000) -> bytes:
        name = digest(UPDATE, payload)
        self.claim(object_id, name, len(payload), fragment_bytes)
        return name

    def claim(self, object_id: int, name: bytes, size: int, fragment_bytes: int = 1000) -> None:
        self.say(Type.OFFER, Offer(name, size, fragment_bytes, UPDATE).encode(), object_id=object_id)

    def send(self, object_id: int, payload: bytes, first: int, last: int, fragment_bytes: int = 1000) -> None:
        for index in range(first, last):
            piece = payload[index * fragment_bytes : (index + 1) * fragment_bytes]
            self.say(Type.DATA, piece, object_id=object_id, fragment=index)

    def seen(self, kind: type) -> list[object]:
        return [event for event in self.events if isinstance(event, kind)]


def names() -> Iterator[bytes]:
    number = 0
    while True:
        yield digest(UPDATE, b"%d" % number)
        number += 1


def test_an_offer_beyond_the_limit_takes_no_memory_and_says_the_numbers() -> None:
    peer = Peer(Limits(max_object_bytes=4 * MIB))
    tracemalloc.start()
    for number, name in zip(range(1, 100), names(), strict=False):
        peer.claim(number, name, 60 * MIB, 1300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB
    (first, *_) = refused = peer.seen(Refused)
    assert len(refused) == 99
    assert isinstance(first, Refused)
    assert (first.reason, first.size, first.most) == (Reason.TOO_LARGE, 60 * MIB, 4 * MIB)


def test_the_memory_for_all_that_is_offered_stays_within_its_limit() -> None:
    """Objects in fragments of 1 B too, of each of which much would be noted: those take the most."""
    peer = Peer(Limits(max_object_bytes=4 * MIB, max_incoming=8, max_incoming_bytes=8 * MIB))
    tracemalloc.start()
    for number, name in zip(range(1, 60), names(), strict=False):
        peer.claim(number, name, 4 * MIB if number % 2 else MAX_FRAGMENTS, 1300 if number % 2 else 1)
        for index in range(0, MAX_FRAGMENTS, 997):
            peer.say(Type.DATA, b"x", object_id=number, fragment=index)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 13 * MIB  # one more is made before the oldest is let go of
    assert not peer.seen(Refused)


def test_an_honest_object_finds_room_whatever_was_offered_before_it() -> None:
    peer = Peer(Limits(max_object_bytes=4 * MIB, max_incoming=8, max_incoming_bytes=8 * MIB))
    for number, name in zip(range(1, 30), names(), strict=False):
        peer.claim(number, name, 3 * MIB, 1300)
    honest = data(200_000)
    name = peer.offer(100, honest)
    for start in range(0, 200, 10):  # and what is offered while it comes in does not displace it
        peer.send(100, honest, start, start + 10)
        peer.claim(200 + start, digest(UPDATE, b"more %d" % start), 3 * MIB, 1300)
    assert [event.digest for event in peer.seen(Arrived) if isinstance(event, Arrived)] == [name]
    assert not peer.seen(Refused)
    assert peer.seen(Evicted)


def test_what_arrived_and_waits_for_a_full_disk_never_gives_way() -> None:
    peer = Peer(Limits(max_incoming=2))
    first, second = data(5000, 1), data(5000, 2)
    for number, payload in ((1, first), (2, second)):
        peer.offer(number, payload)
        peer.send(number, payload, 0, 5)
    peer.offer(3, data(5000, 3))
    assert len(peer.seen(Arrived)) == 2
    assert [event.reason for event in peer.seen(Refused) if isinstance(event, Refused)] == [Reason.TOO_MANY]


@given(st.sets(st.integers(0, 60)), st.integers(1, 500), st.integers(1, 40), st.integers(1, 40))
def test_recounted_says_which_fragments_of_another_length_are_held_whole(
    held: set[int], size: int, before: int, after: int
) -> None:
    held = {index for index in held if index * before < size}
    bytes_held = {at for index in held for at in range(index * before, min((index + 1) * before, size))}
    expected = {
        index
        for index in range(-(-size // after))
        if bytes_held.issuperset(range(index * after, min((index + 1) * after, size)))
    }
    result = recounted(sum(1 << index for index in held), size, before, after)
    assert set(indices(result)) == expected


@given(st.sets(st.integers(0, 200)))
def test_the_indices_of_a_set_come_in_order(members: set[int]) -> None:
    assert list(indices(sum(1 << index for index in members))) == sorted(members)


@pytest.mark.parametrize("payload_bytes", [1, 60_000])
def test_early_pieces_are_bounded_in_number_and_bytes(payload_bytes: int) -> None:
    early = Early()
    for seq in range(1000):
        frame = Frame(
            type=Type.DATA, source=7, destination=0, epoch=1, seq=seq, object_id=1 + seq % 2, fragment=seq,
            payload=bytes(payload_bytes),
        )  # fmt: skip
        early.keep(frame)
    early.take(range(1, 2))
    kept = early.take(range(2, 3))
    assert 0 < len(kept) <= 256
    assert sum(len(frame.payload) for frame in kept) <= 512 * 1024
    assert kept[-1].seq == 999
    assert not early.take(range(2, 3))


def test_a_recut_keeps_what_is_on_the_disk_there() -> None:
    """Only bytes that the spool does not hold are written again, however often a peer cuts an object anew."""
    peer = Peer(Limits())
    payload = data(100_000)
    name = peer.offer(1, payload)
    peer.send(1, payload, 0, 50)
    incoming = peer.ground.incoming[name]
    incoming.dirty = 0  # as the spool does
    peer.send(1, payload, 50, 52)
    peer.offer(2, payload, 500)
    assert incoming.fragment_bytes == 500
    assert incoming.have == 104
    assert list(indices(incoming.dirty)) == [100, 101, 102, 103]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("index", [0, 31_000, 62_914])
def test_large_objects_that_are_offered_take_memory_only_where_fragments_came(index: int) -> None:
    before = _resident_bytes()
    offered = [Incoming(bytes([n]) * 16, 2, 60 << 20, 1000) for n in range(20)]
    last = (60 << 20) - 62_914 * 1000
    assert all(each.store(index, b"x" * (last if index == 62_914 else 1000)) for each in offered)
    assert _resident_bytes() - before < 8 << 20  # and not 1.2 GiB
    assert offered[0].fragment(index)[:1] == b"x"
    assert bytes(offered[0].fragment(1)) == bytes(1000)
