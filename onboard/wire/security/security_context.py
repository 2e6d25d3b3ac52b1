"""Every start of an end begins under a new salt, and no frame that was recorded before is taken under it.

docs/wire.md says why ("Replay": no disk proves its state the latest, and there is no clock) and by which
rules ("HELLO"). HELLOs are sealed with a subkey of their own that no salt changes and no replay window
guards: only the answer proves anything. Between A, which has no salt, and B:

    A: challenge a,  answer -, salt -      (repeated, at last every 8 s where nothing is heard)
    B: challenge b,  answer a, salt old    (B is there; A notes the salt made of a and b)
    A: challenge a,  answer b, salt -      (A is there, now; B puts that salt in force and draws a new nonce)
    B: challenge b', answer a, salt new    (A knows it, and puts it in force, too)

An end that has a salt and hears nothing says HELLO without an answer, to learn whether the other end is
there, and where, as addresses change (`Presence`). The other end answers, and changes nothing:

    A: challenge a,  answer -, salt old
    B: challenge b,  answer a, salt old    (B is there, now; a POLL from A then proves the same of A)

Why no replay passes. An end puts a salt in force only on a fresh answer: one to a nonce that it drew since it
last did so. The salt is a hash of both nonces, one of them its own and fresh. So, but for one chance in 2^64,
no frame was ever sealed under that salt before. Among frames under it (epoch, seq) is taken once, as the
floor begins at zero. As no salt returns, no number is used twice under one, whatever became of the disk.

Why nobody is locked out, and nothing amplified. A HELLO without a fresh answer changes nothing: it is
answered by one HELLO of the same length, to its source, at most once a second for each challenge and source.
Several challenges are answered side by side, so that a flood of recorded ones does not crowd out the real
one. A source counts as the peer's only once a HELLO from it is fresh and heard for the first time.

During a change of keys both ends open frames under any ("Key and tag"); the ground gets a new one first."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from hashlib import blake2s
from typing import ClassVar, TypeVar

from onboard.wire.config import Identity, Security, SessionState
from onboard.wire.events import Event, OutOfStep, Rekeyed, TwoEnds
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Frame, Origin, PendingFrame, Type
from onboard.wire.messages import BadMessage, Payload
from onboard.wire.security.link_diagnostics import REFUSED, Agreements, Doubt, Seldom
from onboard.wire.security.seal import HELLO, NO_SALT, SALT_BYTES, SECRET, TRAFFIC, Opener, Sealer

K = TypeVar("K")
T = TypeVar("T")

NONCE_BYTES = 8
NO_NONCE = bytes(NONCE_BYTES)
HELLO_AT_LAST_S = 8.0  # to an absent peer: 360 B a minute, where an idle link may carry 1000
_UNPROVEN = 3  # an unprovable frame makes HELLOs come no sooner than every 8 first pauses, 2 s
_UNDER_WAY_S = 10.0  # frames from before a new salt may come this late
_ANSWER_AGAIN_S = 1.0
_ANSWER_SELDOM_S = 2.0  # for any challenge on half-duplex: 46 B are 2 % of 9.6 kbit/s
_REMEMBERED = 64  # challenges answered, salts noted: each is of one start of an end


class Hello(Payload, frozen=True):
    """HELLO: prove that you speak now. 24 B. `challenge`: 8 random bytes, never zeros; `answer`: the
    challenge heard from the peer; `salt`: the one in force. Zeros stand for none."""

    challenge: bytes
    answer: bytes = NO_NONCE
    salt: bytes = NO_SALT

    _LAYOUT: ClassVar = struct.Struct(f">{NONCE_BYTES}s{NONCE_BYTES}s{SALT_BYTES}s")

    def check(self) -> None:
        if self.challenge == NO_NONCE:
            raise BadMessage("HELLO without a challenge")


class RekeyHandshake:
    """One end's HELLOs. `salt` is the one in force. Without a nonce, as when a recording is replayed, it says
    no HELLO and believes the salt in each one. `follows`: it answers a HELLO under the key that it came by,
    and tries one key after the other for the rest. `first_s`: the pause after an unanswered first HELLO.

    `heard` were authentic, `stale` of them without a fresh answer, `sent` left; `unproven` are other frames
    that came while this end had no salt. `is_live`: the last one was made now, as it answers this end's
    challenge and is no copy; `is_confirmed`: and it names the salt in force."""

    def __init__(
        self, identity: Identity, security: Security, state: SessionState, *, follows: bool, first_s: float
    ) -> None:
        key, nonce, node, peer = security.key, security.nonce, identity.node, identity.peer
        self.sealer = Sealer(key, source=node, destination=peer, epoch=state.epoch, purpose=HELLO)
        self.opener = Opener(key, source=peer, destination=node, purpose=HELLO)
        self.salt = state.salt
        self._key_ids = list(key) if follows and not isinstance(key, bytes) else [self.sealer.key_id]
        self._is_lower = node < peer  # both ends hash the two nonces in the order of their numbers
        self._nonce = nonce
        self._challenge = NO_NONCE if nonce is None else nonce(NONCE_BYTES)
        self._noted: OrderedDict[bytes, None] = OrderedDict()  # salts that the peer may put in force
        # The key id to answer under, by the peer's challenge and its origin.
        self._owed: OrderedDict[tuple[bytes, Origin], int] = OrderedDict()
        self._answered: OrderedDict[tuple[bytes, Origin], float] = OrderedDict()  # when, though unproven
        self._answered_at = -math.inf
        self._newest: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # (epoch, seq) of fresh ones
        self.key_id = self.sealer.key_id  # of the last HELLO that was fresh
        self._offered = NO_SALT  # agreed upon, and not yet in force here
        self.agreed_at = 0.0
        self._agreements, self._two_ends = Agreements(), Seldom()
        self._doubts = self._asks = False  # the salt in force; whether the peer has the same
        self._first_s = first_s
        self._said_at = -math.inf
        self._unanswered = 0  # HELLOs since anything was heard
        self.is_live = self.is_confirmed = False
        self.heard = self.stale = self.sent = self.unproven = 0

    @property
    def is_unsure(self) -> bool:
        """Whether this end may neither send nor take anything but HELLO."""
        return self.salt == NO_SALT and self._nonce is not None

    def takes(self, raw: bytes) -> bool:
        """Return whether a frame is to be opened here, and not as traffic."""
        return self.is_unsure or framing.is_hello(raw)

    def open(self, raw: bytes) -> Frame | None:
        """Return the peer's HELLO in `raw`, made at any time; else None, and count why."""
        if framing.is_hello(raw) or not framing.is_shaped(raw):
            return self.opener.open(raw, at_any_time=True)
        self.unproven += 1
        self._unanswered = min(self._unanswered, _UNPROVEN)
        self.opener.refusal = None
        return None

    @property
    def in_doubt(self) -> bool:
        """Whether this end is without a salt and its HELLOs have no answer."""
        return self.is_unsure and self._unanswered > 1

    @property
    def is_settling(self) -> bool:
        """Whether a salt was agreed upon and is not in force here yet."""
        return self._offered != NO_SALT

    @property
    def owes(self) -> bool:
        """Whether an answer is due."""
        return bool(self._owed) and self._offered == NO_SALT

    def ask(self, *, doubting: bool) -> None:
        """Say HELLO at once, as the peer may have another salt. `doubting`: replace even the same one."""
        if self._offered == NO_SALT and not self.is_unsure:
            self._asks = True
            self._doubts |= doubting

    def proven(self) -> None:
        self._doubts = self._asks = False

    def handle(
        self, frame: Frame, now: float, origin: Origin = None, *, in_touch: bool = False
    ) -> list[Event]:
        """Take in a HELLO from `open`; Rekeyed if it brought a salt to `use`. `in_touch`: on half-duplex the
        peer just proved that it is there, so one that proves nothing is seldom answered."""
        self.is_live = self.is_confirmed = False
        try:
            hello = Hello.decode(frame.payload)
        except BadMessage:
            self.opener.counts["malformed"] += 1
            return []
        self.heard += 1
        self._unanswered = 0
        if self._nonce is None:
            return [Rekeyed(hello.salt)] if hello.salt not in (NO_SALT, self.salt) else []
        fresh = hello.answer == self._challenge
        self.stale += not fresh
        transmission, newest = (frame.epoch, frame.seq), self._newest.get(hello.challenge, (0, 0))
        self.is_live = fresh and transmission > newest  # else it is a copy, or older than one
        if self.is_live:
            _put(self._newest, hello.challenge, transmission)

        if self._offered != NO_SALT:
            return []
        if fresh:
            self.key_id = frame.key_id
        asker = hello.challenge, origin
        in_force = hello.salt == self.salt != NO_SALT and not self._doubts
        self.is_confirmed = in_force and self.is_live
        if in_force and (fresh or hello.answer != NO_NONCE):
            return []
        if not in_force and not self._agreements.may(frame.epoch, now):
            if hello.answer == NO_NONCE:  # it learns that this end is there, and no more
                self._owe((NO_NONCE, origin), frame.key_id)
            return []
        if fresh and hello.salt in self._noted:
            return self._agree(hello.salt, frame.epoch, now)  # it is in force there
        again_at = self._answered_at + _ANSWER_SELDOM_S if in_touch else -math.inf
        again_at = max(again_at, self._answered.get(asker, -math.inf) + _ANSWER_AGAIN_S)
        if not fresh and now < again_at:
            return []
        _put(self._answered, asker, now)
        self._answered_at = now
        self._owe(asker, frame.key_id)
        if in_force:
            return []
        ours, theirs = self._challenge, hello.challenge
        nonces = ours + theirs if self._is_lower else theirs + ours
        agreed = blake2s(nonces, digest_size=SALT_BYTES, person=HELLO).digest()

        if fresh and (hello.salt == NO_SALT or not self.is_unsure):
            self._owed.move_to_end(asker, last=False)  # once the salt is in force, this is said first
            return self._agree(agreed, frame.epoch, now)
        _put(self._noted, agreed, None)  # the peer has to go first
        return []

    def use(self, salt: bytes) -> None:
        """Put the salt from `handle` in force. Raises ValueError for any other."""
        if self._nonce is not None and (salt != self._offered or salt == NO_SALT):
            raise ValueError(f"salt {salt.hex()} was not agreed upon, {self._offered.hex()} was")
        self.salt, self._offered = salt, NO_SALT
        self._doubts = self._asks = False
        self._noted.clear()
        self._newest.clear()
        if self._nonce is not None:
            self._challenge = self._nonce(NONCE_BYTES)

    def due_at(self) -> float:
        if self._offered != NO_SALT:
            return math.inf
        if self._owed or self._asks:
            return -math.inf
        if not self.is_unsure:
            return math.inf
        again_s = self._first_s * 2.0 ** min(max(0, self._unanswered - 1), 16)
        return self._said_at + min(again_s, max(self._first_s, HELLO_AT_LAST_S))

    def say(self) -> PendingFrame:
        """Return the HELLO that is due, or one for want of anything else."""
        unasked = (NO_NONCE, None), self._key_ids[self.sent % len(self._key_ids)]
        (answer, origin), key_id = next(iter(self._owed.items()), unasked)
        if key_id != self.sealer.key_id:
            self.sealer.turn(key_id)
        salt = NO_SALT if self._doubts else self.salt
        return PendingFrame(Type.HELLO, Hello(self._challenge, answer, salt).encode(), to=origin)

    def said(self, now: float) -> None:
        if self._owed:
            self._owed.popitem(last=False)
        else:
            self._asks = False
        self._unanswered += 1
        self._said_at = now
        self.sent += 1

    def _owe(self, asker: tuple[bytes, Origin], key_id: int) -> None:
        _put(self._owed, asker, key_id if key_id in self._key_ids else self.sealer.key_id)

    def _agree(self, salt: bytes, epoch: int, now: float) -> list[Event]:
        self._offered, self.agreed_at = salt, now
        again = self._agreements.is_repeated(epoch)
        events: list[Event] = [Rekeyed(salt, again)]
        if self._agreements.agreed(epoch, now) and self._two_ends.may(now):
            events.append(TwoEnds(take_turns=True))
        return events


def _put(table: OrderedDict[K, T], key: K, value: T) -> None:
    table[key] = value
    if len(table) > _REMEMBERED:
        table.popitem(last=False)


class SecurityContext:
    """One end's security. `hello_s`: RekeyHandshake's `first_s`. Raises ValueError for a bad key or epoch."""

    def __init__(
        self, identity: Identity, security: Security, state: SessionState, *, hello_s: float
    ) -> None:
        node, peer, purpose = identity.node, identity.peer, SECRET if security.encrypted else TRAFFIC
        keys = {0: security.key} if isinstance(security.key, bytes) else security.key
        self._follows = identity.primary and len(keys) > 1
        first = next(iter(keys)) if self._follows else None
        self.encrypted = security.encrypted
        self.sealer = Sealer(
            keys, source=node, destination=peer, epoch=state.epoch, key_id=first, salt=state.salt,
            purpose=purpose,
        )  # fmt: skip
        self.opener = Opener(
            keys, source=peer, destination=node, floor=state.replay_floor, salt=state.salt, purpose=purpose
        )
        self.handshake = RekeyHandshake(identity, security, state, follows=self._follows, first_s=hello_s)
        self._keys, self._can_agree, self._purpose = keys, security.nonce is not None, purpose
        self._doubt, self._step = Doubt(), Seldom()
        self._before: Opener | None = None  # under the salt that was in force before
        self._rekeyed_at = 0.0
        # Frames under the earlier salt that alternate with those under this one: another live end. A few were
        # merely in flight.
        self._alternations, self._is_alternate = 0, False
        self._told_two_ends = False
        self.is_earlier = False  # the last refused frame is new under the earlier salt

    @property
    def next_seq(self) -> int:
        return self.sealer.seq + 1

    @property
    def frames_sent(self) -> int:
        """The number of frames sent, HELLOs included."""
        return self.sealer.seq + self.handshake.sent

    def open(self, raw: bytes) -> Frame | None:
        """Return the peer's new frame in `raw`; else None, counted, and `refused` says what it means."""
        frame = self.opener.open(raw)
        if frame is None:
            return None
        self._doubt.proven()
        self._is_alternate = True
        self.handshake.proven()
        if self._follows and frame.key_id != self.sealer.key_id:
            self.sealer.turn(frame.key_id)
        return frame

    def refused(self, raw: bytes, now: float) -> list[Event]:
        """Tell what the frame that `open` just refused says of two ends that disagree."""
        is_replay, has_bad_tag = (self.opener.refusal == why for why in ("replays", "bad_tags"))
        self.is_earlier = False
        if not self._can_agree or not (is_replay or has_bad_tag):
            return []
        events: list[Event] = []
        if self._doubt.refused(now, replay=is_replay):
            self.handshake.ask(doubting=self._doubt.is_certain)
            if self._doubt.is_certain or self._doubt.is_lasting:
                events += self._out_of_step(now)
        self.is_earlier = has_bad_tag and self._before is not None and self._before.open(raw) is not None
        if self.is_earlier and self._is_alternate and now >= self._rekeyed_at + _UNDER_WAY_S:
            self._alternations, self._is_alternate = self._alternations + 1, False
            if self._alternations >= REFUSED and not self._told_two_ends:
                self._told_two_ends = True
                events.append(TwoEnds(take_turns=False))
        return events

    def greeted(self, now: float) -> list[Event]:
        """Tell what the HELLO just heard says of a doubt."""
        self._doubt.is_answered = True
        if self.handshake.is_confirmed:
            self._doubt.confirmed()
        return self._out_of_step(now) if self._doubt.asked and self.handshake.is_settling else []

    def _out_of_step(self, now: float) -> list[Event]:
        told, self._doubt.told = self._doubt.told, True
        return [] if told or not self._step.may(now) else [OutOfStep(self._doubt.only_replays)]

    def least(self, asks_about: int = 0) -> PendingFrame:
        """Return the shortest frame that can hand a turn over."""
        if self.handshake.is_unsure:
            return self.handshake.say()
        return PendingFrame(Type.POLL, object_id=asks_about)

    def seal(self, send: PendingFrame, *, fragment: int, poll: bool, over: bool) -> bytes:
        sealer = self.handshake.sealer if send.type is Type.HELLO else self.sealer
        return sealer.seal(
            send.type, send.payload, object_id=send.object_id, fragment=fragment, priority=send.priority,
            poll=poll, over=over,
        )  # fmt: skip

    def use(self, salt: bytes) -> None:
        """Put an agreed salt in force, with a floor of (0, 0). Raises ValueError for any other."""
        before = self.handshake.salt
        self.handshake.use(salt)
        if before != NO_SALT:
            self._before = Opener(
                self._keys, source=self.opener.source, destination=self.opener.destination,
                floor=self.opener.floor, salt=before, purpose=self._purpose,
            )  # fmt: skip
        self._doubt.proven()
        self._rekeyed_at, self._alternations, self._is_alternate = self.handshake.agreed_at, 0, False
        self.sealer.use(salt)
        if self._follows:
            self.sealer.turn(self.handshake.key_id)
        self.opener.use(salt)
