"""Both ends of one link as the programs build them, with what they have on disk, on a virtual clock.

An end is a journal, a spool, a pump and a session; frames cross as COBS on the seeded channel. A kill takes
all that is in memory; `boot` goes on from the disk, one epoch later. Nothing here waits.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from firmware_sim.world.channel import Channel, Side
from firmware_sim.world.world import TICK_S, AirPort
from hw_profiles import Link
from onboard.link.pump import Pump, PumpEvent
from onboard.link.spool import Spool
from onboard.storage.journal import Journal
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import Arrived, Cancelled, Delivered, Expired, Message, QuotaUsage, Rekeyed
from onboard.wire.medium.contact_gate import Contacts, Window
from onboard.wire.messages import digest as digest_of
from onboard.wire.security.seal import NO_SALT
from onboard.wire.session import Session

KEY = bytes(range(32))
NODES: dict[Side, int] = {"ground": 0, "board": 1}
SPOOL_BYTES = 64 << 20
REMEMBERED = 256  # digests that an end keeps of what it took, as its spool does


class Broken(AssertionError):  # noqa: N818 - "broken" says error already
    """A promise of the link does not hold; `rule` in a few words."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


class Offered(msgspec.Struct):
    """An object on its way. `deadline_s`: on the link's clock, which runs in contact; None for never."""

    kind: int
    priority: int
    deadline_s: float | None


class EndState(msgspec.Struct):
    """What an end keeps in its journal."""

    epoch: int = 0
    salt: bytes = NO_SALT
    floor: tuple[int, int] = (0, 0)
    spent: QuotaUsage = QuotaUsage()
    taken: list[bytes] = msgspec.field(default_factory=list)  # digests of the objects that had their effect
    offered: dict[bytes, Offered] = msgspec.field(default_factory=dict)


class PairedEnd:
    """One program: what it has in `folder`, and the session of its present life."""

    def __init__(
        self,
        side: Side,
        link: Link,
        folder: Path,
        send: Callable[[bytes], None],
        *,
        limits: Limits,
        contacts: Sequence[Window] | None,
        nonce: Callable[[int], bytes] | None,
    ) -> None:
        self.side, self.link, self.folder = side, link, folder
        self._limits, self._contacts, self._nonce = limits, contacts, nonce
        self._clock = Contacts(contacts)
        self.events: list[tuple[float, PumpEvent]] = []  # of all lives
        self.taken: dict[bytes, bytes] = {}  # payloads that had their effect here, by digest
        self.messages: list[bytes] = []  # that had theirs
        self.pump: Pump | None = None
        self.port = AirPort(side, link, send)
        self._send = send
        self._known = EndState()
        self._journal = Journal(folder, EndState)
        self._tried: dict[bytes, bytes] = {}  # payloads whose effect was begun
        self.floor = (0, 0)  # at or below it nothing may be taken in this life

    @property
    def session(self) -> Session:
        """Raises ValueError while the end is down."""
        if self.pump is None:
            raise ValueError(f"{self.side} is down")
        return self.pump.session

    def boot(self, now: float) -> None:
        """Starts from the disk, the new epoch on it first. Raises Broken if the disk lacks what it had."""
        self._journal = Journal(self.folder, EndState)
        before, self._known = self._known, self._journal.load() or EndState()
        known = self._known
        if known.epoch < before.epoch or known.floor < self.floor:
            raise Broken("what was saved is there", f"epoch {known.epoch} after {before.epoch}")
        self.taken |= {digest: self._tried.pop(digest) for digest in known.taken if digest not in self.taken}
        if set(list(self.taken)[-REMEMBERED:]) - set(known.taken):
            raise Broken("what was saved is there", f"{len(known.taken)} objects of {len(self.taken)}")
        self.floor = known.floor
        known.epoch += 1
        self._journal.save(known)
        spool = Spool(self.folder / "spool", SPOOL_BYTES)
        session = Session(
            Identity(
                NODES[self.side],
                NODES["board" if self.side == "ground" else "ground"],
                primary=self.side == "ground",
            ),
            Medium(self.link, contacts=self._contacts),
            Security(KEY, nonce=self._nonce),
            SessionState(
                epoch=known.epoch,
                replay_floor=known.floor,
                salt=known.salt,
                done=(*spool.finished(), *known.taken),
                spent=known.spent,
            ),
            limits=self._limits,
            now=now,
        )
        self.port = AirPort(self.side, self.link, self._send)
        self.pump = Pump(lambda: self.port, session, spool)
        for digest, offered in list(known.offered.items()):
            payload = self._journal.fetch(digest.hex())
            left_s = None if offered.deadline_s is None else offered.deadline_s - self.link_s(now)
            if payload is None or (left_s is not None and left_s <= 0):
                self._end(digest)
            else:
                session.offer(offered.kind, payload, now, priority=offered.priority, deadline_s=left_s)

    def kill(self) -> None:
        """As kill -9: only the disk is left."""
        self.pump = None

    def lose(self) -> None:
        """After a `kill`: an empty disk takes the place of this one."""
        shutil.rmtree(self.folder)
        self._known, self.floor = EndState(), (0, 0)
        self.taken.clear()
        self._tried.clear()

    def offer(
        self, kind: int, payload: bytes, now: float, *, priority: int = 4, deadline_s: float | None = None
    ) -> bytes:
        """Puts an object on its way, durably; returns its digest. deadline_s: seconds of contact from now."""
        digest = digest_of(kind, payload)
        self._journal.keep(digest.hex(), payload)
        until_s = None if deadline_s is None else self.link_s(now) + deadline_s
        self._known.offered[digest] = Offered(kind, priority, until_s)
        self._save()
        self.session.offer(kind, payload, now, priority=priority, deadline_s=deadline_s)
        return digest

    def cancel(self, digest: bytes, now: float) -> None:
        """Takes back an object that is on its way."""
        self.session.cancel(digest, now)
        self._end(digest)

    def link_s(self, now: float) -> float:
        """The link's clock: seconds of contact since the beginning."""
        return self._clock.up_s(now)

    def poll(self, now: float) -> list[PumpEvent]:
        """All that this end can do now."""
        told: list[PumpEvent] = []
        while self.pump is not None:
            events = self.pump.poll(now)
            if not events:
                break
            for event in events:
                self._act(event, now)
            told += events
        self.events += ((now, event) for event in told)
        return told

    def wakeup(self, now: float) -> float:
        """When `poll` next has something to do, if nothing is heard before."""
        return math.inf if self.pump is None else self.pump.wakeup(now)

    def quiet(self, now: float) -> bool:
        """Whether this end has nothing left to do unless it hears something. An end that is down has not."""
        return not self.offers and (self.pump is None or self.session.wakeup(now) == math.inf)

    @property
    def offers(self) -> frozenset[bytes]:
        """Digests of the objects that this end still has to bring to an end."""
        return frozenset(self._known.offered)

    def _act(self, event: PumpEvent, now: float) -> None:
        """What an agent or a daemon does with an event."""
        if isinstance(event, Arrived):
            if event.digest in self.taken:
                raise Broken("nothing is delivered twice", f"object {event.digest.hex()}")
            self._tried[event.digest] = event.payload
            self._known.taken = [*self._known.taken, event.digest][-REMEMBERED:]
            self._save()
            self.taken[event.digest] = self._tried.pop(event.digest)
            self.session.accept(event.digest, now)
        elif isinstance(event, Message):  # a command: the floor is safe before it has its effect
            self._save()
            self.messages.append(event.payload)
        elif isinstance(event, Delivered | Expired | Cancelled):
            self._end(event.digest)
        elif isinstance(event, QuotaUsage):
            self._known.spent = event
            self._save()
        elif isinstance(event, Rekeyed):
            self._known.salt, self._known.floor = event.salt, (0, 0)
            self._journal.save(self._known)
            self.floor = (0, 0)
            self.session.rekey(event.salt)

    def _end(self, digest: bytes) -> None:
        if self._known.offered.pop(digest, None) is not None:
            self._save()
            self._journal.drop(digest.hex())

    def _save(self) -> None:
        if self.pump is not None:
            self._known.floor = self.pump.session.replay_floor
        self._journal.save(self._known)


@dataclass(frozen=True)
class PairHooks:
    """What a benchmark does on the way of each transmission, and what it is told."""

    mangle: Callable[[bytes, float], list[bytes]] | None = None
    """Returns what is received instead of each transmission (wire bytes, time)."""
    sent: Callable[[Side, bytes, float, float], None] | None = None
    """Is called with each transmission: side, wire bytes, from when and until when the transmitter is on."""
    took: Callable[[PairedEnd, bytes], None] | None = None
    """Is called when an end has accepted what it received as a frame of its peer's."""


class LinkPair:
    """Ground and board, running, with a folder each in `folder`, on one channel.

    contacts: the plan that both ends load, None for none. nonce: see Session.
    """

    def __init__(
        self,
        folder: Path,
        channel: Channel,
        *,
        limits: Limits | None = None,
        contacts: Sequence[Window] | None = None,
        nonce: Callable[[int], bytes] | None = None,
        hooks: PairHooks | None = None,
    ) -> None:
        self.channel, self.now = channel, 0.0
        self._hooks = hooks or PairHooks()
        self.ends: dict[Side, PairedEnd] = {}
        for side in NODES:
            send = partial(self._send, side)
            end = PairedEnd(
                side,
                channel.link,
                folder / side,
                send,
                limits=limits or Limits(),
                contacts=contacts,
                nonce=nonce,
            )
            end.boot(0.0)
            self.ends[side] = end
        self.ground, self.board = self.ends["ground"], self.ends["board"]

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> float:
        """Moves the clock from one thing to do to the next; returns the time at which it stopped."""
        while True:
            for side, wire in self.channel.due(self.now):
                mangle = self._hooks.mangle
                for heard in [wire] if mangle is None else mangle(wire, self.now):
                    self._hear(self.ends[side], heard)
            for end in self.ends.values():
                end.poll(self.now)
            if stop():
                break
            wake = min(self.channel.next_due(), *(end.wakeup(self.now) for end in self.ends.values()))
            if wake > until:
                self.now = max(self.now, until)
                break
            self.now = max(self.now + TICK_S, wake)
        return self.now

    def bytes_sent(self) -> int:
        """On the wire, by both ends, framing included."""
        return sum(self.channel.counters(side).bytes for side in NODES)

    def _hear(self, end: PairedEnd, wire: bytes) -> None:
        """An end that is down hears nothing; the port of its next life begins empty."""
        if end.pump is None:
            return
        before = 0 if self._hooks.took is None else end.session.frames_received
        end.port.hear(wire)
        end.poll(self.now)
        if self._hooks.took is not None and end.session.frames_received > before:
            self._hooks.took(end, wire)

    def _send(self, side: Side, wire: bytes) -> None:
        on_s = max(self.now, self.channel.busy_until(side))
        self.channel.send(side, wire, self.now)
        if self._hooks.sent is not None:
            self._hooks.sent(side, wire, on_s, self.channel.busy_until(side))
