"""A peer with a key that says too much: neither another peer's object nor its own comes late.

Ground and boards are the programs' own pumps, sessions and spools, on a virtual clock on which every fsync
takes as long as on an SD card.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from firmware_sim.world.world import AirPort
from hw_profiles import load_link
from onboard.console.log import BURST, EVERY_S, Rarely, record_of
from onboard.link.peer import BURST_WRITES, PeerShare
from onboard.link.ports.port import PortEvent
from onboard.link.pump import SLICE_FRAMES, Pump, PumpEvent
from onboard.link.spool import Spool
from onboard.mission.objects import UPDATE
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Message
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import Type
from onboard.wire.messages import Cancel, Offer, Reason, digest
from onboard.wire.session import Session
from tests.onboard.link.objects import lines, payload

LINK = load_link("isl-2mbyte")
FSYNC_S = 0.02  # of a usual SD card
STEP_S = 0.002
UPDATE_BYTES = 1_700_000
KEY = bytes(range(32))
MIB = 1 << 20


class FairBoard:
    """A board and the ground's end of its link, which takes an object of 1.7 MB and refuses all others. `say`
    says things beside what the session says, under the same numbers: whoever holds the key can."""

    def __init__(self, folder: Path, node: int, now: float) -> None:
        def session(*, master: bool) -> Session:
            ends = {"node": 0, "peer": node} if master else {"node": node, "peer": 0}
            wire_bytes = cobs.wire_bytes
            return Session(
                Identity(**ends, primary=master),
                Medium(LINK, wire_bytes),
                Security(KEY),
                SessionState(epoch=1),
                now=now,
            )

        self._at_ground: list[AirPort] = []
        self._at_board: list[AirPort] = []

        def opener(ours: list[AirPort], others: list[AirPort], side: str) -> Callable[[], AirPort]:
            def opened() -> AirPort:
                ours.append(AirPort(side, LINK, lambda wire: [each.hear(wire) for each in others]))  # type: ignore[arg-type]
                return ours[-1]

            return opened

        self.ground = Pump(
            opener(self._at_ground, self._at_board, "ground"),
            session(master=True),
            Spool(folder / "g", 16 * MIB),
        )
        self.board = Pump(
            opener(self._at_board, self._at_ground, "board"),
            session(master=False),
            Spool(folder / "b", 16 * MIB),
        )
        self.events: list[PumpEvent] = []
        self.object_id, self.takes_all = 20_000, False

    def say(self, kind: Type, content: bytes = b"", **fields: int) -> None:
        """A frame that the session knows nothing of."""
        frame = self.board.session._security.sealer.seal(kind, content, **fields)  # type: ignore[arg-type]
        for port in self._at_ground:
            port.hear(cobs.encode(frame))

    def offers(self, name: bytes, size: int, fragment_bytes: int = 1000) -> int:
        self.object_id += 1
        offer = Offer(name, size, fragment_bytes, UPDATE).encode()
        self.say(Type.OFFER, offer, object_id=self.object_id)
        return self.object_id

    def act(self, now: float) -> None:
        self.board.poll(now)
        for event in self.ground.poll(now):
            self.events.append(event)
            if isinstance(event, Arrived) and (len(event.payload) == UPDATE_BYTES or self.takes_all):
                self.ground.session.accept(event.digest, now)
            elif isinstance(event, Arrived):
                self.ground.session.refuse(event.digest, Reason.REFUSED, now)

    def seen(self, kind: type) -> list[PumpEvent]:
        return [event for event in self.events if isinstance(event, kind)]


class Sky:
    """Boards under one ground, whose loop polls one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.fsyncs = 0
        real = os.fsync

        def slow(handle: int) -> None:
            real(handle)
            self.now += FSYNC_S
            self.fsyncs += 1

        monkeypatch.setattr(os, "fsync", slow)

    def crosses(self, honest: FairBoard, others: list[FairBoard], nonsense: Callable[[int], None]) -> float:
        """How long an honest update takes; `nonsense` is said 20 times a second."""
        turns, began = 0, self.now
        name = honest.board.session.offer(UPDATE, payload(UPDATE_BYTES), self.now)
        while not any(isinstance(each, Arrived) and each.digest == name for each in honest.events):
            assert self.now < began + 60
            while began + turns * 0.05 < self.now:
                nonsense(turns)
                turns += 1
            for board in [honest, *others]:
                board.act(self.now)
            self.now += STEP_S
        return self.now - began


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> Sky:
    return Sky(monkeypatch)


def begins_and_withdraws(board: FairBoard, nth: int) -> None:
    """Every time something for the spool to write, and to delete."""
    whole = payload(60_000, nth)
    name = digest(UPDATE, whole)
    number = board.offers(name, len(whole))
    for index in range(3):
        board.say(Type.DATA, whole[index * 1000 : (index + 1) * 1000], object_id=number, fragment=index)
    board.say(Type.CANCEL, Cancel(name, Reason.WITHDRAWN).encode(), object_id=number)


def small_and_whole(board: FairBoard, nth: int) -> None:
    """Every time an object that has to be on the disk before the application hears of it."""
    for part in range(3):
        whole = b"%d %d" % (nth, part)
        number = board.offers(digest(UPDATE, whole), len(whole))
        board.say(Type.DATA, whole, object_id=number)


def wrong_digests(board: FairBoard, nth: int) -> None:
    """Whole objects that are none."""
    for part in range(3):
        number = board.offers(digest(UPDATE, b"%d %d" % (nth, part)), 100)
        board.say(Type.DATA, bytes(100), object_id=number)


def cuts_anew(board: FairBoard, nth: int) -> None:
    """Another object in 65,000 fragments, of which each counts anew each time."""
    number = board.offers(digest(UPDATE, b"recut"), 65_000, 1 + nth % 2)
    for index in range(0, 64, 2):
        board.say(Type.DATA, bytes(1 + nth % 2), object_id=number, fragment=index)


def talks(board: FairBoard, nth: int) -> None:
    """Messages, each of which the ground would store."""
    for _ in range(20):
        board.say(Type.MSG, b"%d" % nth)


NONSENSE = [begins_and_withdraws, small_and_whole, wrong_digests, cuts_anew, talks]


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("whose", ["another's", "its own"])
def test_an_honest_update_takes_at_most_twice_its_time(
    sky: Sky, tmp_path: Path, nonsense: Callable[[FairBoard, int], None], whose: str
) -> None:
    alone = sky.crosses(FairBoard(tmp_path / "alone", 1, sky.now), [], lambda nth: None)
    honest, other = FairBoard(tmp_path / "honest", 1, sky.now), FairBoard(tmp_path / "other", 2, sky.now)
    for board in (honest, other):
        board.act(sky.now)
    hostile = other if whose == "another's" else honest
    took = sky.crosses(honest, [other], lambda nth: nonsense(hostile, nth))
    assert took < 2 * alone, (took, alone)


def test_an_object_is_cut_anew_a_few_times_and_no_more(sky: Sky, tmp_path: Path) -> None:
    board = FairBoard(tmp_path, 1, sky.now)
    board.act(sky.now)
    whole = payload(60_000)
    name = digest(UPDATE, whole)
    number = board.offers(name, len(whole))
    board.say(Type.OFFER, Offer(name, len(whole), 333, UPDATE).encode(), object_id=number)
    board.act(sky.now)
    cuts = [board.ground.session.incoming[name].fragment_bytes]
    assert cuts == [1000]  # under one id there is one length
    for nth in range(200):
        board.offers(name, len(whole), 1000 - nth % 7)
        board.act(sky.now)
        sky.now += 0.05
        cuts.append(board.ground.session.incoming[name].fragment_bytes)
    changes = sum(a != b for a, b in pairwise(cuts))
    assert 5 < changes < 15


def test_a_flood_is_dealt_with_in_slices_and_another_is_heard_in_between(sky: Sky, tmp_path: Path) -> None:
    flooding, honest = FairBoard(tmp_path / "f", 1, sky.now), FairBoard(tmp_path / "h", 2, sky.now)
    for board in (flooding, honest):
        board.act(sky.now)
    for _ in range(10 * SLICE_FRAMES):
        flooding.say(Type.MSG, b"me")
    honest.say(Type.MSG, b"and me")
    flooding.act(sky.now)
    assert len(flooding.seen(Message)) == SLICE_FRAMES
    assert flooding.ground.wakeup(sky.now) == sky.now
    honest.act(sky.now)
    assert len(honest.seen(Message)) == 1
    for _ in range(9):
        flooding.act(sky.now)
    assert len(flooding.seen(Message)) == 10 * SLICE_FRAMES


def test_a_peer_over_its_share_is_told_once_heard_less_and_then_again(sky: Sky, tmp_path: Path) -> None:
    board = FairBoard(tmp_path, 1, sky.now)
    board.takes_all = True
    board.act(sky.now)
    began = sky.now
    for nth in range(1000):
        whole = b"%d" % nth
        number = board.offers(digest(UPDATE, whole), len(whole))
        board.say(Type.DATA, whole, object_id=number)
        if nth % 4 == 0:
            board.act(sky.now)
    board.say(Type.MSG, b"the last")
    while not board.seen(Message):
        board.act(sky.now)
        if not board.ground.wants_read():
            assert board.ground.wakeup(sky.now) <= sky.now + 20
        sky.now += 0.1
        assert sky.now < began + 300
    (told,) = lines(board.seen(PortEvent), "over-its-share")
    assert told.fields["what"] == "writes"
    assert told.fields["rate_per_s"] > told.fields["bound_per_s"]
    assert sky.fsyncs < 6 * (BURST_WRITES + 40 * (sky.now - began))


def test_what_waits_for_a_full_disk_is_bounded_and_heard_later(sky: Sky, tmp_path: Path) -> None:
    board = FairBoard(tmp_path, 1, sky.now)
    board.act(sky.now)
    board.ground.hears = False
    for _ in range(100):
        board.say(Type.MSG, b"wait")
    board.act(sky.now)
    assert not board.seen(Message)
    assert not board.ground.wants_read()
    board.ground.hears = True
    for _ in range(2):
        board.act(sky.now)
    assert len(board.seen(Message)) == 100


def test_an_honest_peer_is_never_over_its_share() -> None:
    """At twice its line's rate on any profile, saved four times a second, after a pause of a second."""
    for name in ("lora-sf12", "uhf-9k6", "bench-serial-115k2", "isl-2mbyte", "bench-udp"):
        share, link = PeerShare(), load_link(name)
        share.line(link.rate_up_bps / link.bits_per_byte)
        now, left = 0.0, 0.0
        for tick in range(600):
            now = 0.05 * tick
            if 100 <= tick < 120:  # paused: all of it is there at once then
                left += 0.05 * link.rate_up_bps / link.bits_per_byte
                continue
            left += 0.05 * link.rate_up_bps / link.bits_per_byte
            while left >= link.mtu_bytes:
                left -= link.mtu_bytes
                share.heard(link.mtu_bytes, now)
            if tick % 5 == 0:
                share.wrote(now)
            assert share.free_at(now) == now
        assert not share.over(now)


def test_bad_frames_of_others_are_not_a_peer_s_bytes() -> None:
    share = PeerShare()
    share.line(1200.0)
    for nth in range(10_000):
        share.heard(256, nth / 10_000, bad=True)
    assert share.free_at(1.0) == 1.0
    for _ in range(10_000):
        share.heard(256, 1.0)
    assert share.free_at(1.0) > 1.0
    assert {told.fields["what"] for told in share.over(1.0)} == {"frames", "bytes"}
    assert share.over(2.0) == []


def test_lines_of_one_kind_are_few_and_counted() -> None:
    rarely, said, unsaid = Rarely(), 0, 0
    for nth in range(6000):
        counted = rarely.may(("refused", "pi"), nth / 100)
        if counted is not None:
            said, unsaid = said + 1, unsaid + counted
    assert BURST <= said <= BURST + 60 / EVERY_S + 1
    assert rarely.may(("refused", "pi"), 1000.0) == 6000 - said - unsaid
    assert rarely.may(("refused", "zero"), 60.0) == 0
    assert record_of(logging.getLogger("x"), "refused", level=logging.WARNING, node="pi").levelno == 30
