"""Every start of an end begins under a new salt, and nothing that was ever recorded is heard under it.

Replay protection stands on what the ends remember: the sender's epoch and the receiver's floor. An end that
starts cannot know whether what it finds on its disk is the last that was there, or an older copy (a backup,
the image of a card, a folder that ran elsewhere meanwhile), or nothing. So it can neither speak, as it might
use numbers again that were used, nor listen, as recorded frames might be new to it. Nor has it a clock. So
both ends draw a *salt* for the subkeys of their frames; an end without one, as after every start, says HELLO
and nothing else until they agree.

A HELLO holds the speaker's challenge (a nonce of its own), its answer (the challenge that it heard last), and
its salt in force, zeros for none. An end that has one and doubts it (see `Doubt`) says none. A HELLO is
sealed with a subkey of its own, that no salt changes and no replay window guards: what it proves, it proves
by its answer. Between A, who has no salt, and B:

    A: challenge a,  answer -, salt -      (again soon; at last, where nothing is heard, every 8 s)
    B: challenge b,  answer a, salt old    (B is there; A takes note of the salt made of a and b)
    A: challenge a,  answer b, salt -      (A is there, now; B puts that salt in force and draws a new nonce)
    B: challenge b', answer a, salt new    (A knows it, and puts it in force, too)

An end that has a salt and hears nothing says HELLO too, without an answer, to learn whether the other end is
there, and where, as addresses change (`Presence`). Who hears that answers it, and changes nothing:

    A: challenge a,  answer -, salt old
    B: challenge b,  answer a, salt old    (B is there, now; a POLL from A then proves the same of A)

Why no replay passes. An end puts a salt in force only when it holds a fresh answer: one to a nonce that it
drew after it last did so. The salt is a hash of both nonces, one of them its own and fresh. So, but for one
chance in 2^64, no frame was ever sealed under that salt before, none from before a loss opens after it, and
among those that do (epoch, seq) is taken once, as the floor begins at zero. No end comes back to a salt that
was, so none uses a number twice under one, whatever became of its disk.

Why nobody is locked out, and nothing amplified. A HELLO without a fresh answer changes nothing: it is
answered by one HELLO of the same length, to where it came from, for each challenge and place at most once a
second, and challenges are answered beside one another, so that a flood of recorded ones does not crowd out
the one that is real. Where it came from is not the peer until a HELLO from there is fresh, and is heard for
the first time: a copy of a fresh one is as old as any other recording.

A link may have several keys while one takes the other's place. Both ends open frames under any that they
hold. The board seals with its newest, as the ground is given a new key first; the ground with the one under
which it heard the board last, at first with its oldest.
"""

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
from onboard.wire.security.link_diagnostics import Agreements, Doubt, Earlier, Seldom
from onboard.wire.security.seal import HELLO, NO_SALT, SALT_BYTES, SECRET, TRAFFIC, Opener, Sealer

K = TypeVar("K")
T = TypeVar("T")

NONCE_BYTES = 8
NO_NONCE = bytes(NONCE_BYTES)
HELLO_AT_LAST_S = 8.0  # to a peer that is not there: 360 B a minute, where an idle link may carry 1000
_UNPROVEN = 3  # what nobody can prove makes no HELLO come sooner than every 8 first ones, 2 s
_ANSWER_AGAIN_S = 1.0
_ANSWER_SELDOM_S = 2.0  # whichever it is, where turns are taken: 46 B are 2 % of 9.6 kbit/s
_REMEMBERED = 64  # challenges answered, salts noted: each belongs to one boot of an end that lost its state


class Hello(Payload, frozen=True):
    """HELLO: prove that you speak now. 24 B.

    `challenge` 8 random bytes, never zeros; `answer` the challenge heard from the peer, zeros for none;
    `salt` that of the keys in force, zeros for none: the speaker lost its state, and takes HELLO only.
    """

    challenge: bytes
    answer: bytes = NO_NONCE
    salt: bytes = NO_SALT

    _LAYOUT: ClassVar = struct.Struct(f">{NONCE_BYTES}s{NONCE_BYTES}s{SALT_BYTES}s")

    def check(self) -> None:
        """Raises BadMessage for a challenge of zeros."""
        if self.challenge == NO_NONCE:
            raise BadMessage("HELLO without a challenge")


class RekeyHandshake:
    """One end's HELLOs. `salt` is the one in force. Without a nonce, as where a recording is played again, no
    HELLO is said and each one is believed in the salt that it names. follows: a HELLO is answered under the
    key that it came by, and others try one key after the other. first_s: the time after which the first HELLO
    is said again if there was no answer.

    `heard` were authentic, `stale` of them without a fresh answer, `sent` left; `unproven` are other frames
    that came while this end had no salt to prove them by. `is_live`: the last one heard was made now, as it
    answers this end's challenge and is no copy; `is_confirmed`: and names the salt in force.
    """

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
        # The peer's challenges to answer, and where they came from: by which key.
        self._owed: OrderedDict[tuple[bytes, Origin], int] = OrderedDict()
        self._answered: OrderedDict[tuple[bytes, Origin], float] = OrderedDict()  # when, unproven as it was
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
        """Whether this end may neither say nor take anything but HELLO."""
        return self.salt == NO_SALT and self._nonce is not None

    def takes(self, raw: bytes) -> bool:
        """Whether what came in is to be opened here, and by nobody else."""
        return self.is_unsure or framing.is_hello(raw)

    def open(self, raw: bytes) -> Frame | None:
        """The HELLO in `raw`, by the peer and for us, made at any time; None, and one counter more, else."""
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
        """Whether somebody waits for an answer."""
        return bool(self._owed) and self._offered == NO_SALT

    def ask(self, *, doubting: bool) -> None:
        """A HELLO is to be said at once, as the peer may have another salt; `doubting`: to agree anew even if
        it has the same."""
        if self._offered == NO_SALT and not self.is_unsure:
            self._asks = True
            self._doubts |= doubting

    def proven(self) -> None:
        """A frame under the salt in force was taken."""
        self._doubts = self._asks = False

    def handle(
        self, frame: Frame, now: float, origin: Origin = None, *, in_touch: bool = False
    ) -> list[Event]:
        """Take a HELLO that `open` gave, from there; Rekeyed if it brought a salt to `use`. in_touch: on
        half-duplex the peer has just proved that it is there: one that proves nothing may be a recording, and
        an answer to it takes the peer's time."""
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
        self.is_live = fresh and self._is_first(hello.challenge, (frame.epoch, frame.seq))
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
            if hello.answer == NO_NONCE:  # it is told that this end is there, and no more
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
        agreed = self._salt_with(hello.challenge)
        if fresh and (hello.salt == NO_SALT or not self.is_unsure):
            self._owed.move_to_end(asker, last=False)  # once it is settled, this is said first
            return self._agree(agreed, frame.epoch, now)
        _put(self._noted, agreed, None)  # the peer has to go first
        return []

    def use(self, salt: bytes) -> None:
        """The salt that `handle` gave is in force. Raises ValueError for any other."""
        if self._nonce is not None and (salt != self._offered or salt == NO_SALT):
            raise ValueError(f"salt {salt.hex()} was not agreed upon, {self._offered.hex()} was")
        self.salt, self._offered = salt, NO_SALT
        self._doubts = self._asks = False
        self._noted.clear()
        self._newest.clear()
        if self._nonce is not None:
            self._challenge = self._nonce(NONCE_BYTES)

    def due_at(self) -> float:
        """When the next HELLO may leave; inf if none is wanted."""
        if self._offered != NO_SALT:
            return math.inf
        if self._owed or self._asks:
            return -math.inf
        if not self.is_unsure:
            return math.inf
        again_s = self._first_s * 2.0 ** min(max(0, self._unanswered - 1), 16)
        return self._said_at + min(again_s, max(self._first_s, HELLO_AT_LAST_S))

    def say(self) -> PendingFrame:
        """The HELLO that is due, or that is to be said for want of anything else."""
        unasked = (NO_NONCE, None), self._key_ids[self.sent % len(self._key_ids)]
        (answer, origin), key_id = next(iter(self._owed.items()), unasked)
        if key_id != self.sealer.key_id:
            self.sealer.turn(key_id)
        salt = NO_SALT if self._doubts else self.salt
        return PendingFrame(Type.HELLO, Hello(self._challenge, answer, salt).encode(), to=origin)

    def said(self, now: float) -> None:
        """What `say` gave has left."""
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

    def _is_first(self, challenge: bytes, transmission: tuple[int, int]) -> bool:
        """Whether no fresh HELLO of that challenge was heard that is as new: the peer counts them, and draws
        another challenge when it starts."""
        if transmission <= self._newest.get(challenge, (0, 0)):
            return False
        _put(self._newest, challenge, transmission)
        return True

    def _salt_with(self, challenge: bytes) -> bytes:
        ours, theirs = self._challenge, challenge
        nonces = ours + theirs if self._is_lower else theirs + ours
        return blake2s(nonces, digest_size=SALT_BYTES, person=HELLO).digest()


def _put(table: OrderedDict[K, T], key: K, value: T) -> None:
    table[key] = value
    if len(table) > _REMEMBERED:
        table.popitem(last=False)


class SecurityContext:
    """One end's security. hello_s: see RekeyHandshake's first_s. Raises ValueError for a key or an epoch out
    of range."""

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
        self._doubt, self._earlier, self._step = Doubt(), Earlier(), Seldom()
        self._before: Opener | None = None  # under the salt that was in force before
        self.is_earlier = False  # what was refused last: the peer's, and new, under the salt before

    @property
    def next_seq(self) -> int:
        """The seq of the next frame that is no HELLO."""
        return self.sealer.seq + 1

    @property
    def frames_sent(self) -> int:
        """The frames sent so far, HELLOs included."""
        return self.sealer.seq + self.handshake.sent

    def open(self, raw: bytes) -> Frame | None:
        """The frame in `raw`, taken once; None, and one counter more, for what is not the peer's and new.
        What that means is to be asked of `refused`."""
        frame = self.opener.open(raw)
        if frame is None:
            return None
        self._doubt.proven()
        self._earlier.proven()
        self.handshake.proven()
        if self._follows and frame.key_id != self.sealer.key_id:
            self.sealer.turn(frame.key_id)
        return frame

    def refused(self, raw: bytes, now: float) -> list[Event]:
        """`open` has just refused this: what that tells of two ends that disagree."""
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
        if self.is_earlier and self._earlier.heard(now) and not self._earlier.told:
            self._earlier.told = True
            events.append(TwoEnds(take_turns=False))
        return events

    def greeted(self, now: float) -> list[Event]:
        """The handshake has just heard a HELLO: what that tells of a doubt."""
        self._doubt.is_answered = True
        if self.handshake.is_confirmed:
            self._doubt.confirmed()
        return self._out_of_step(now) if self._doubt.asked and self.handshake.is_settling else []

    def _out_of_step(self, now: float) -> list[Event]:
        told, self._doubt.told = self._doubt.told, True
        return [] if told or not self._step.may(now) else [OutOfStep(self._doubt.only_replays)]

    def least(self, asks_about: int = 0) -> PendingFrame:
        """The shortest frame that a turn can be handed over with."""
        if self.handshake.is_unsure:
            return self.handshake.say()
        return PendingFrame(Type.POLL, object_id=asks_about)

    def seal(self, send: PendingFrame, *, fragment: int, poll: bool, over: bool) -> bytes:
        """The bytes of one transmission."""
        sealer = self.handshake.sealer if send.type is Type.HELLO else self.sealer
        return sealer.seal(
            send.type, send.payload, object_id=send.object_id, fragment=fragment, priority=send.priority,
            poll=poll, over=over,
        )  # fmt: skip

    def use(self, salt: bytes) -> None:
        """A salt that was agreed upon is in force, with a floor of (0, 0). Raises ValueError for others."""
        before = self.handshake.salt
        self.handshake.use(salt)
        if before != NO_SALT:
            self._before = Opener(
                self._keys, source=self.opener.source, destination=self.opener.destination,
                floor=self.opener.floor, salt=before, purpose=self._purpose,
            )  # fmt: skip
        self._doubt.proven()
        self._earlier.rekeyed(self.handshake.agreed_at)
        self.sealer.use(salt)
        if self._follows:
            self.sealer.turn(self.handshake.key_id)
        self.opener.use(salt)
