"""An object's life on both ends, in any order of things: offered, whole, withdrawn, expired, cut anew,
taken or refused late, under a new salt, with a disk that is full, over restarts and links that begin again.

The ends are sessions, pumps and spools as the programs have them, and a consumer that acts on events when it
comes to it, as theirs do while a disk is full. What an end says reaches the other when a rule carries it.
"""

from __future__ import annotations

import errno
import gc
import random
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from types import FunctionType, ModuleType
from typing import Any, Literal

from hypothesis import given, note, settings
from hypothesis import strategies as st

from firmware_sim.world.channel import Side
from firmware_sim.world.world import AirPort
from onboard.link.ports.port import PortEvent
from onboard.link.pump import Pump
from onboard.link.spool import Spool
from onboard.mission.objects import MODEL, UPDATE
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import (
    Arrived,
    Cancelled,
    Corrupt,
    Delivered,
    Event,
    Evicted,
    Expired,
    Recut,
    Rekeyed,
    Withdrawn,
)
from onboard.wire.messages import Reason, digest
from onboard.wire.session import Session
from tests.onboard.wire.pair import KEY, link

Verdict = Literal["accept", "refuse"]
FAST = link("bench-serial-115k2", mtu_bytes=120, rate_up_bps=1e6, rate_down_bps=1e6, delay_s=0.0)
KINDS = {"ground": MODEL, "board": UPDATE}
SIDES: tuple[Side, Side] = ("ground", "board")
LIMITS = Limits(max_incoming=2, max_incoming_bytes=1500, max_object_bytes=1000, remembered=8)
SIZES = (0, 40, 90, 300, 700, 1200)
OBJECTS = {
    side: [random.Random(f"{side} {size}").randbytes(size) for size in SIZES] for side in SIDES
}  # the last is more than an end takes
NAMES = {side: [digest(KINDS[side], payload) for payload in OBJECTS[side]] for side in SIDES}


def other(side: Side) -> Side:
    return "board" if side == "ground" else "ground"


class LifeDisk(Spool):
    """A spool whose writes fail while the disk is `full`."""

    full = False

    def _refuse(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no space left")

    def save(self, incoming: Any) -> None:
        self._refuse()
        super().save(incoming)

    def drop(self, digest: bytes) -> None:
        self._refuse()
        super().drop(digest)

    def finish(self, *digests: bytes) -> None:
        self._refuse()
        super().finish(*digests)


class LifeEnd:
    """One end: its folder, its session and pump, and a consumer that has yet to act on `untold`."""

    def __init__(self, side: Side, folder: Path, air: deque[bytes], seed: int) -> None:
        self.side, self.folder, self.air = side, folder, air
        self.epoch, self.seed = 0, random.Random(f"{seed} {side}")
        self.effects: dict[bytes, bytes] = {}  # what the consumer holds durably
        self.ever: set[bytes] = set()  # and ever held
        self.full = False
        self.untold: deque[tuple[Session, Event]] = deque()
        self.told: set[bytes] = set()  # arrived in this session, and not gone since
        self.accepted: set[bytes] = set()  # that the session is to deliver no more
        self.sent: dict[bytes, int | None] = {}  # on its way: how it is cut
        self.boot(1.0)

    @property
    def session(self) -> Session:
        return self.pump.session

    def boot(self, now: float) -> None:
        self.spool = LifeDisk(self.folder, 10_000)
        self.spool.retain(self.effects)
        self.accepted = set(self.spool.finished())
        self.port = AirPort(self.side, FAST, self.air.append)
        self.pump = Pump(lambda: self.port, self._session(now), self.spool)
        self._begun(now)

    def renew(self, now: float) -> None:
        """The link begins again while events wait."""
        self.spool.full = False  # what cannot be saved is another test's
        done = self.session.done
        session = self._session(now, done)
        self.pump.close(now)
        self.pump = Pump(lambda: self.port, session, self.spool)
        self.accepted = set(done)
        self.spool.full = self.full
        self._begun(now)

    def _begun(self, now: float) -> None:
        self.spool.full = self.full
        self.told.clear()
        for name, cut in self.sent.items():
            payload = OBJECTS[self.side][NAMES[self.side].index(name)]
            self.session.offer(KINDS[self.side], payload, now, fragment_bytes=cut)

    def _session(self, now: float, done: Any = None) -> Session:
        self.epoch += 1
        return Session(
            Identity(SIDES.index(self.side), SIDES.index(other(self.side)), primary=self.side == "ground"),
            Medium(FAST),
            Security(KEY, nonce=self.seed.randbytes),
            SessionState(epoch=self.epoch, done=self.spool.finished() if done is None else done),
            limits=LIMITS,
            now=now,
        )

    def poll(self, now: float) -> None:
        for event in self.pump.poll(now):
            if not isinstance(event, PortEvent):
                self._note(event)
                self.untold.append((self.session, event))

    def _note(self, event: Event) -> None:
        if isinstance(event, Arrived):
            assert event.digest not in self.accepted, "an object that was accepted arrives as new"
            assert event.digest not in self.told, "an object arrives twice"
            self.told.add(event.digest)
        elif isinstance(event, Withdrawn | Expired | Evicted | Corrupt):
            self.told.discard(event.digest)

    def act(self, peer: LifeEnd, now: float, count: int = 0, verdict: Verdict = "accept") -> None:
        """The consumer comes to the first `count` of what waits, and to what needs no decision up to the next
        that does; a full disk stops it there."""
        decided = 0
        while self.untold:
            session, event = self.untold[0]
            decided += isinstance(event, Arrived | Withdrawn | Cancelled | Delivered)
            if decided > count:
                return
            if session is not self.session:
                self.untold.popleft()
                continue
            if isinstance(event, Arrived):
                if self.full:
                    return
                self._take(event, now, verdict)
            elif isinstance(event, Delivered):
                assert event.digest in peer.ever, "told as delivered, and nobody took it"
                self.sent.pop(event.digest, None)
            elif isinstance(event, Cancelled | Expired):
                self.sent.pop(event.digest, None)
            elif isinstance(event, Recut) and event.digest in self.sent:
                self.sent[event.digest] = event.fragment_bytes
            elif isinstance(event, Rekeyed):
                session.rekey(event.salt)
            self.untold.popleft()

    def _take(self, event: Arrived, now: float, verdict: Verdict) -> None:
        is_there = event.digest in self.told
        before = self.state()
        if verdict == "refuse":
            self.session.refuse(event.digest, Reason.REFUSED, now)
        else:
            self.effects[event.digest] = event.payload
            self.ever.add(event.digest)
            self.session.accept(event.digest, now)
        if is_there:
            assert event.digest not in self.session.incoming
            assert (event.digest in self.session.done) is (verdict == "accept")
            self.told.discard(event.digest)
            if verdict == "accept":
                self.accepted.add(event.digest)
        elif verdict == "accept" or event.digest not in before[0]:
            assert self.state() == before, "what is gone was accepted or refused, and something changed"

    def state(self) -> tuple[list[bytes], list[bytes]]:
        return list(self.session.incoming), list(self.session.done)


class ObjectLives:
    """Both ends, and what may happen next: each step is one thing, of a kind that `how` (0..255) chooses."""

    def __init__(self, seed: int) -> None:
        root = "/dev/shm" if Path("/dev/shm").is_dir() else None  # an fsync is no time of this test's
        self.folder, self.now = Path(mkdtemp(dir=root)), 1.0
        self.air: dict[Side, deque[bytes]] = {side: deque() for side in SIDES}
        self.longest = 1000
        self.ends: dict[Side, LifeEnd] = {
            side: LifeEnd(side, self.folder / side, self.air[side], seed) for side in SIDES
        }
        self.let_pass(1.0)

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def carry(self, side: Side, count: int, *, lost: bool = False) -> None:
        """What an end has said reaches the other's port."""
        to = self.ends[other(side)]
        for _ in range(min(count, len(self.air[side]))):
            wire = self.air[side].popleft()
            if not lost and len(wire) <= self.longest:
                to.port.hear(wire)

    def let_pass(self, seconds: float) -> None:
        """All goes its way, but what consumers are to decide waits."""
        until = self.now + seconds
        for _ in range(40):
            for side in SIDES:
                self.ends[side].poll(self.now)
                self.carry(side, 1000)
                self.ends[side].act(self.ends[other(side)], self.now)
            wakes = [end.pump.wakeup(self.now) for end in self.ends.values()]
            if self.now >= until:
                break
            self.now = min(until, max(min(wakes), self.now + 1e-3))

    # what may happen

    def time_passes(self, side: Side, how: int) -> None:
        self.let_pass((0.01, 0.1, 0.5, 2.5)[how % 4])

    def all_is_acted_on_and_time_passes(self, side: Side, how: int) -> None:
        for each in SIDES:
            self.ends[each].act(self.ends[other(each)], self.now, 100)
        self.let_pass((0.01, 0.1, 0.5, 2.5)[how % 4])

    def both_stand_still(self, side: Side, how: int) -> None:
        self.now += (0.02, 1.0, 40.0)[how % 3]

    def frames_cross(self, side: Side, how: int) -> None:
        self.carry(side, 1 + how % 9, lost=how > 200)

    def one_end_reads(self, side: Side, how: int) -> None:
        self.now += 0.003
        self.ends[side].poll(self.now)

    def the_line_eats_long_frames(self, side: Side, how: int) -> None:
        self.longest = (70, 1000)[how % 2]

    def offer(self, side: Side, how: int) -> None:
        which, how = how % len(SIZES), how // len(SIZES)
        end, deadline_s = self.ends[side], (None, None, 0.05, 3.0)[how % 4]
        name = end.session.offer(
            KINDS[side], OBJECTS[side][which], self.now, deadline_s=deadline_s,
            fragment_bytes=(None, 17, 60)[how // 4 % 3],
        )  # fmt: skip
        end.sent[name] = end.session.fragment_bytes(name)
        self.let_pass((0.2, 0.2, 0.0)[how // 12 % 3])

    def withdraw(self, side: Side, how: int) -> None:
        end = self.ends[side]
        name = [*end.sent, *NAMES[side]][how % len(SIZES)]  # one that is on its way, if there is any
        end.session.cancel(name, self.now)
        end.sent.pop(name, None)

    def offer_and_withdraw_in_one_read(self, side: Side, how: int) -> None:
        """The burst that ended programs: OFFER, DATA, CANCEL before the other end reads once."""
        end, which = self.ends[side], how % 5
        end.session.offer(KINDS[side], OBJECTS[side][which], self.now)
        for _ in range(12):
            self.now += 0.002
            end.poll(self.now)
        end.session.cancel(NAMES[side][which], self.now)
        end.sent.pop(NAMES[side][which], None)
        self.now += 0.01
        end.poll(self.now)
        self.carry(side, 1000)

    def act_late(self, side: Side, how: int) -> None:
        verdict: Verdict = "refuse" if how % 4 == 0 else "accept"
        self.ends[side].act(self.ends[other(side)], self.now, 1 + how // 4 % 9, verdict)

    def refuse_at_any_time(self, side: Side, how: int) -> None:
        end = self.ends[side]
        name = [*end.session.incoming, *NAMES[other(side)]][how % len(SIZES)]
        end.session.refuse(name, Reason.REFUSED, self.now)
        end.told.discard(name)
        assert name not in end.session.incoming

    def accept_what_has_not_arrived(self, side: Side, how: int) -> None:
        end = self.ends[side]
        name = [*end.session.incoming, *NAMES[other(side)]][how % len(SIZES)]
        if name not in end.told:
            before = end.state()
            end.session.accept(name, self.now)
            assert end.state() == before

    def what_it_did_is_lost(self, side: Side, how: int) -> None:
        end, name = self.ends[side], NAMES[other(side)][how % len(SIZES)]
        end.session.forget(name)
        end.effects.pop(name, None)
        end.accepted.discard(name)

    def disk_fills(self, side: Side, how: int) -> None:
        self.ends[side].full = self.ends[side].spool.full = how % 2 == 0

    def restart(self, side: Side, how: int) -> None:
        end = self.ends[side]
        if how % 2:  # else it is killed
            end.pump.close(self.now)
        end.untold.clear()
        self.now += (0.0, 5.0)[how // 2 % 2]
        end.boot(self.now)

    def link_begins_again(self, side: Side, how: int) -> None:
        self.ends[side].renew(self.now)

    # at all times

    def check(self) -> None:
        """Nothing grows, and everything can be asked."""
        for end in self.ends.values():
            assert len(end.session.done) <= LIMITS.remembered
            assert len(end.session.incoming) <= LIMITS.max_incoming
            assert end.pump.wakeup(self.now) >= self.now
            assert len(end.session.snapshot(self.now).objects) <= LIMITS.max_incoming + len(SIZES)


STEPS: tuple[Callable[[ObjectLives, Side, int], None], ...] = (
    ObjectLives.offer,
    ObjectLives.offer,
    ObjectLives.offer,
    ObjectLives.act_late,
    ObjectLives.act_late,
    ObjectLives.time_passes,
    ObjectLives.all_is_acted_on_and_time_passes,
    ObjectLives.all_is_acted_on_and_time_passes,
    ObjectLives.both_stand_still,
    ObjectLives.frames_cross,
    ObjectLives.one_end_reads,
    ObjectLives.the_line_eats_long_frames,
    ObjectLives.withdraw,
    ObjectLives.withdraw,
    ObjectLives.offer_and_withdraw_in_one_read,
    ObjectLives.refuse_at_any_time,
    ObjectLives.accept_what_has_not_arrived,
    ObjectLives.what_it_did_is_lost,
    ObjectLives.disk_fills,
    ObjectLives.restart,
    ObjectLives.link_begins_again,
)


@settings(max_examples=1000, deadline=None)
@given(chosen=st.binary(min_size=8, max_size=50))
def test_no_order_of_events_ends_a_program_or_takes_an_object_twice(chosen: bytes) -> None:
    """Two bytes choose a step: what and at which end, and how."""
    lives = ObjectLives(seed=len(chosen))
    try:
        for what, how in zip(chosen[::2], chosen[1::2], strict=False):
            side, step = SIDES[what % 2], STEPS[what // 2 % len(STEPS)]
            note(f"{step.__name__} {side} {how}")
            step(lives, side, how)
            lives.check()
    finally:
        lives.close()


def test_of_objects_that_ended_nothing_is_held() -> None:
    lives, chance, offered = ObjectLives(seed=1), random.Random(1), list[bytes]()
    try:
        for number in range(60):
            side = SIDES[number % 2]
            end, peer = lives.ends[side], lives.ends[other(side)]
            payload, deadline_s = chance.randbytes(800), chance.choice((None, 0.02, 5.0))
            offered.append(payload)
            name = end.session.offer(KINDS[side], payload, lives.now, deadline_s=deadline_s)
            lives.let_pass(chance.choice((0.0, 0.004, 0.05)))
            if chance.random() < 0.3:
                end.session.cancel(name, lives.now)
            for each in (end, peer):
                verdict: Verdict = "accept" if chance.random() < 0.5 else "refuse"
                each.act(lives.ends[other(each.side)], lives.now, 100, verdict)
            peer.accepted = set(peer.session.done)
            lives.let_pass(0.05)
        lives.let_pass(20.0)
        for each in lives.ends.values():
            each.act(lives.ends[other(each.side)], lives.now, 100)
        lives.let_pass(20.0)
        assert not any(end.session.snapshot(lives.now).objects for end in lives.ends.values())
        pieces = _bytes_behind([end.pump for end in lives.ends.values()])
        assert not [payload for payload in offered if any(payload[:40] in piece for piece in pieces)]
    finally:
        lives.close()


def _bytes_behind(pumps: list[Pump]) -> list[bytes | bytearray]:
    """All that the pumps and what is behind them hold."""
    seen, todo = dict[int, object](), list[object](pumps)
    while todo:
        each = todo.pop()
        if id(each) not in seen and not isinstance(each, type | ModuleType | FunctionType | LifeEnd):
            seen[id(each)] = each
            todo += gc.get_referents(each)
    return [each for each in seen.values() if isinstance(each, bytes | bytearray)]
