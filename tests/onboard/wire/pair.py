"""Two sessions, what they have on disk, and the seeded channel between them, on a virtual clock."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from firmware_sim.world.channel import Channel, Impairments, Side
from hw_profiles import Link, load_link
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import (
    Arrived,
    Corrupt,
    Delivered,
    Event,
    Evicted,
    Expired,
    Message,
    QuotaUsage,
    Refused,
    Rekeyed,
    Withdrawn,
)
from onboard.wire.framing import frame as framing
from onboard.wire.medium.contact_gate import Window
from onboard.wire.security.cipher import Cipher
from onboard.wire.security.seal import HELLO, NO_SALT, SECRET, TRAFFIC, directional_key
from onboard.wire.session import Session
from onboard.wire.transfer.incoming import Partial

KEY = bytes(range(32))
COBS_BYTES = 2  # what COBS adds to a frame of up to 253 B; the channel counts the same


def link(name: str = "uhf-9k6", **changes: Any) -> Link:
    """A shipped profile without bit errors unless a test asks for them."""
    clean: dict[str, Any] = {"bit_error_rate": 0.0, "frame_loss": 0.0, **changes}
    return replace(load_link(name), **clean)


def uhf_full(payload_bytes: int = 200, **changes: Any) -> Link:
    """9.6 kbit/s, both ways at once."""
    return link(half_duplex=False, mtu_bytes=payload_bytes + framing.OVERHEAD_BYTES, **changes)


SIDES: tuple[Side, Side] = ("ground", "board")
UPDATE = 2
HALF = link(mtu_bytes=222)
FULL = uhf_full()
FAST = uhf_full(1400, rate_up_bps=16e6, rate_down_bps=16e6, delay_s=0.02)


@dataclass
class PairDisk:
    """What survives a kill of one end."""

    epoch: int = 0
    salt: bytes = NO_SALT
    floor: tuple[int, int] = (0, 0)
    done: list[bytes] = field(default_factory=list)
    objects: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # accepted: kind, payload
    partials: dict[bytes, Partial] = field(default_factory=dict)
    outgoing: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # offered, not yet delivered
    saved_at: float = 0.0
    spent: QuotaUsage = field(default_factory=QuotaUsage)


class PairEnd:
    """One end: its disk, and the session of its present life."""

    def __init__(
        self,
        side: Side,
        link: Link,
        limits: Limits,
        *,
        accept_after_s: float = 0.0,
        contacts: Sequence[Window] | None = None,
        nonce: Callable[[int], bytes] | None = None,
        encrypted: bool = False,
    ) -> None:
        self.side, self.link, self.limits, self.contacts, self.nonce = side, link, limits, contacts, nonce
        self.encrypted = encrypted
        self.node, self.peer = (0, 7) if side == "ground" else (7, 0)
        self.disk = PairDisk()
        self.events: list[tuple[float, Event]] = []
        self.session: Session | None = None
        self.accept_after_s = accept_after_s
        self._floor = (0, 0)  # on disk at the start of this life
        self.taken: set[bytes] = set()  # frames that the session of this life took
        self._to_accept: list[tuple[float, Arrived]] = []

    def boot(self, now: float) -> Session:
        """Start from the disk, with a new epoch on it first."""
        self.disk.epoch += 1
        self._floor = self.disk.floor
        self.session = Session(
            Identity(self.node, self.peer, primary=self.side == "ground"),
            Medium(
                self.link, wire_bytes=lambda frame_bytes: frame_bytes + COBS_BYTES, contacts=self.contacts
            ),
            Security(KEY, nonce=self.nonce, encrypted=self.encrypted),
            SessionState(
                epoch=self.disk.epoch,
                replay_floor=self.disk.floor,
                salt=self.disk.salt,
                done=self.disk.done,
                spent=self.disk.spent,
            ),
            limits=self.limits,
            now=now,
        )
        for partial in self.disk.partials.values():
            self.session.resume(partial)
        for kind, payload in self.disk.outgoing.values():
            self.session.offer(kind, payload, now)
        return self.session

    def kill(self) -> None:
        """As kill -9: what was not saved is gone."""
        self.session = None
        self._to_accept.clear()
        self.taken.clear()

    def hear(self, frame: bytes, now: float) -> None:
        """What the port does with a frame; checks that none is taken twice, nor at or below the floor."""
        session = self.session
        if session is None:
            return
        before = session.snapshot(now).frames_received
        events = session.receive(frame, now)
        if session.snapshot(now).frames_received > before:
            assert frame not in self.taken, "a replayed frame was taken"
            self.taken.add(frame)
            epoch, seq = struct.unpack_from(">HI", frame, 4)
            assert (epoch, seq) > self._floor, "what came before the start was taken again"
        self.act(events, now)
        self.save(now)

    def offer(self, kind: int, payload: bytes, now: float, **options: float) -> bytes:
        """To disk, then to the session."""
        assert self.session is not None
        digest = self.session.offer(kind, payload, now, **options)  # type: ignore[arg-type]
        self.disk.outgoing[digest] = (kind, payload)
        return digest

    def save(self, now: float) -> None:
        """As the pump's spool: every 1/128 of an object, and at the latest 5 s after the first fragment."""
        assert self.session is not None
        for digest, incoming in self.session.incoming.items():
            dirty = incoming.dirty.bit_count()
            if dirty and (dirty >= max(1, incoming.count / 128) or now - self.disk.saved_at > 5):
                partial = incoming.partial()
                self.disk.partials[digest] = replace(partial, data=bytes(partial.data))
                self.disk.floor = self.session.replay_floor
                self.disk.saved_at = now
                incoming.dirty = 0

    def act(self, events: list[Event], now: float) -> None:
        """What an agent or a daemon does with events."""
        for event in events:
            self.events.append((now, event))
            if isinstance(event, Arrived):
                self._to_accept.append((now + self.accept_after_s, event))
            elif isinstance(event, Rekeyed) and self.session is not None:
                self.disk.salt, self.disk.floor = event.salt, (0, 0)
                self._floor = (0, 0)
                self.session.rekey(event.salt)
            elif isinstance(event, QuotaUsage):
                self.disk.spent = event
            elif isinstance(event, Delivered | Expired):
                self.disk.outgoing.pop(event.digest, None)
            if isinstance(event, Corrupt | Withdrawn | Expired | Evicted | Refused):
                self.disk.partials.pop(event.digest, None)
        self.accept_due(now)

    def accept_due(self, now: float) -> None:
        """Make durable what arrived, then say so."""
        while self.session is not None and self._to_accept and self._to_accept[0][0] <= now:
            _, arrived = self._to_accept.pop(0)
            if arrived.digest not in self.session.incoming:
                continue  # expired or withdrawn meanwhile
            assert arrived.digest not in self.disk.objects, "delivered twice"
            self.disk.objects[arrived.digest] = (arrived.kind, arrived.payload)
            self.disk.done.append(arrived.digest)
            self.disk.partials.pop(arrived.digest, None)
            self.disk.floor = self.session.replay_floor
            self.session.accept(arrived.digest, now)

    def next_accept(self) -> float:
        """When `accept_due` next has something to do."""
        return self._to_accept[0][0] if self._to_accept and self.session is not None else math.inf

    def seen(self, kind: type[Event]) -> list[Event]:
        """Events of one class, in all lives."""
        return [event for _, event in self.events if isinstance(event, kind)]

    def messages(self) -> list[tuple[float, bytes]]:
        """MSG payloads heard, with their times."""
        return [(at, event.payload) for at, event in self.events if isinstance(event, Message)]


class SteppedWorld(Protocol):
    """What `advance` plays: its clock, and what was sent in it."""

    now: float
    sent: list[Any]

    def step(self) -> float:
        """All that is to do now; returns when there is more."""


def advance(world: SteppedWorld, until: float, over: Callable[[], bool]) -> float:
    """From one thing to do to the next, until that time or until it is over; returns when."""
    idle = 0
    while world.now <= until:
        before = world.now, len(world.sent)
        wake = world.step()
        if over():
            break
        if wake > until:
            world.now = until
            break
        idle = idle + 1 if (wake, len(world.sent)) == before else 0
        assert idle < 5, f"busy at {world.now} s with nothing to do"
        world.now = max(world.now, wake)
    return world.now


class Pair:
    """Ground and board on one channel. `sent` records every frame put on the air; `encrypted`: which ends."""

    def __init__(
        self,
        link: Link,
        *,
        seed: int = 1,
        limits: Limits | None = None,
        accept_after_s: float = 0.0,
        contacts: Sequence[Window] | None = None,
        nonce: Callable[[int], bytes] | None = None,
        encrypted: Collection[Side] = (),
        mangle: Callable[[bytes, float], list[bytes]] | None = None,
        **channel: object,
    ) -> None:
        self.channel = Channel(link, Impairments(overhead_bytes=COBS_BYTES, **channel), seed=seed)  # type: ignore[arg-type]
        limits = limits or Limits()
        self.ground, self.board = (
            PairEnd(
                side, link, limits, accept_after_s=accept_after_s, contacts=contacts, nonce=nonce,
                encrypted=side in encrypted,
            )
            for side in SIDES
        )  # fmt: skip
        self.now = 0.0
        self.sent: list[tuple[float, Side, framing.Frame]] = []
        self._mangle = mangle
        self.ground.boot(0.0)
        self.board.boot(0.0)

    def end(self, side: Side) -> PairEnd:
        """Of that side."""
        return self.ground if side == "ground" else self.board

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> float:
        """Advance the clock from one thing to do to the next; returns the time at which it stopped."""
        return self.now if stop() else advance(self, until, stop)

    def step(self) -> float:
        """All that is to do now; returns when there is more."""
        for side, data in self.channel.due(self.now):
            for copy in [data] if self._mangle is None else self._mangle(data, self.now):
                self.end(side).hear(copy, self.now)
        wake = self.channel.next_due()
        for end in (self.ground, self.board):
            self._step(end)
            wake = min(wake, self._wakeup(end), end.next_accept())
        return min(wake, self.channel.next_due())

    def _wakeup(self, end: PairEnd) -> float:
        """When that end wants to be called next; checks that it has nothing to send before that."""
        if end.session is None:
            return math.inf
        wake = end.session.wakeup(self.now)
        if self.now + 1e-3 < wake < math.inf:
            assert end.session.transmit((self.now + wake) / 2) is None, "wakeup was too late"
        return wake

    def _step(self, end: PairEnd) -> None:
        session = end.session
        if session is None:
            return
        end.act(session.tick(self.now), self.now)
        end.accept_due(self.now)
        while (raw := session.transmit(self.now)) is not None:
            self.sent.append((self.now, end.side, _read(end, raw)))
            self.channel.send(end.side, raw, self.now)

    def frames(self, kind: framing.Type, side: Side | None = None) -> list[framing.Frame]:
        """Those put on the air, of one type."""
        return [f for _, s, f in self.sent if f.type is kind and side in (None, s)]


def _read(end: PairEnd, raw: bytes) -> framing.Frame:
    """What that end has just sent."""
    hello = framing.is_hello(raw)
    salt = NO_SALT if hello or end.session is None else end.session.salt
    purpose = HELLO if hello else SECRET if end.encrypted else TRAFFIC
    subkey = directional_key(KEY, end.node, end.peer, 0, salt=salt, purpose=purpose)
    return Cipher(subkey).decode(raw) if purpose == SECRET else framing.decode(raw, framing.keyed(subkey))


def ground_session(link: Link = FULL, limits: Limits = Limits()) -> Session:  # noqa: B008 - frozen
    """A ground's end by itself, of the first epoch; its peer is node 7."""
    state = SessionState(epoch=1)
    return Session(Identity(0, 7, primary=True), Medium(link), Security(KEY), state, limits=limits)


def data(size: int, seed: int = 1) -> bytes:
    """Incompressible bytes."""
    return random.Random(seed).randbytes(size)


def finish(pair: Pair, sender: PairEnd, objects: int = 1, until: float = 10_000.0) -> float:
    """Run until all is delivered; returns when."""
    return pair.run(until, lambda: len(sender.seen(Delivered)) == objects)
