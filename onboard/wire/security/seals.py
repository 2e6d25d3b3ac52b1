"""What one end seals its frames with and opens its peer's: keys, salt, window, and HELLO without them.

A link may have several keys while one takes the other's place. Both ends open frames under any that they
hold. The board seals with its newest, as the ground is given a new key first; the ground with the one under
which it heard the board last, at first with its oldest.
"""

from __future__ import annotations

from onboard.wire.config import Identity, Security, SessionState
from onboard.wire.events import Event, OutOfStep, TwoEnds
from onboard.wire.framing.frame import Frame, PendingFrame, Type
from onboard.wire.security.doubt import Doubt, Earlier
from onboard.wire.security.hello import HELLO_FIRST_S, RekeyHandshake
from onboard.wire.security.seal import NO_SALT, SECRET, TRAFFIC, Opener, Sealer
from onboard.wire.seldom import Seldom


class SecurityContext:
    """One end's security. hello_s: see RekeyHandshake's first_s. Raises ValueError for a key or an epoch out
    of range."""

    def __init__(
        self, identity: Identity, security: Security, state: SessionState, *, hello_s: float = HELLO_FIRST_S
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
        self.greeting = RekeyHandshake(identity, security, state, follows=self._follows, first_s=hello_s)
        self._keys, self._can_agree, self._purpose = keys, security.nonce is not None, purpose
        self._doubt, self._earlier, self._step = Doubt(), Earlier(), Seldom()
        self._before: Opener | None = None  # under the salt that was in force before
        self.is_earlier = False  # what was refused last: the peer's, and new, under the salt before
        self._counted = 0, 0  # replays and wrong tags before the last frame

    @property
    def next_seq(self) -> int:
        """The seq of the next frame that is no HELLO."""
        return self.sealer.seq + 1

    @property
    def frames_sent(self) -> int:
        """The frames sent so far, HELLOs included."""
        return self.sealer.seq + self.greeting.sent

    def open(self, raw: bytes) -> Frame | None:
        """The frame in `raw`, taken once; None, and one counter more, for what is not the peer's and new.
        What that means is to be asked of `refused`."""
        self._counted = self.opener.replays, self.opener.bad_tags
        frame = self.opener.open(raw)
        if frame is None:
            return None
        self._doubt.proven()
        self._earlier.proven()
        self.greeting.proven()
        if self._follows and frame.key_id != self.sealer.key_id:
            self.sealer.turn(frame.key_id)
        return frame

    def refused(self, raw: bytes, now: float) -> list[Event]:
        """`open` has just refused this: what that tells of two ends that disagree."""
        replays, bad_tags = self._counted
        is_replay, has_bad_tag = self.opener.replays > replays, self.opener.bad_tags > bad_tags
        self.is_earlier = False
        if not self._can_agree or not (is_replay or has_bad_tag):
            return []
        events: list[Event] = []
        if self._doubt.refused(now, replay=is_replay):
            self.greeting.ask(doubting=self._doubt.is_certain)
            if self._doubt.is_certain or self._doubt.is_lasting:
                events += self._out_of_step(now)
        self.is_earlier = has_bad_tag and self._before is not None and self._before.open(raw) is not None
        if self.is_earlier and self._earlier.heard(now) and not self._earlier.told:
            self._earlier.told = True
            events.append(TwoEnds(take_turns=False))
        return events

    def greeted(self, now: float) -> list[Event]:
        """The greeting has just heard a HELLO: what that tells of a doubt."""
        self._doubt.is_answered = True
        if self.greeting.is_confirmed:
            self._doubt.confirmed()
        return self._out_of_step(now) if self._doubt.asked and self.greeting.is_settling else []

    def _out_of_step(self, now: float) -> list[Event]:
        told, self._doubt.told = self._doubt.told, True
        return [] if told or not self._step.may(now) else [OutOfStep(self._doubt.only_replays)]

    def least(self, asks_about: int = 0) -> PendingFrame:
        """The shortest frame that a turn can be handed over with."""
        return (
            self.greeting.say() if self.greeting.is_unsure else PendingFrame(Type.POLL, object_id=asks_about)
        )

    def seal(self, send: PendingFrame, *, fragment: int, poll: bool, over: bool) -> bytes:
        """The bytes of one transmission."""
        sealer = self.greeting.sealer if send.type is Type.HELLO else self.sealer
        return sealer.seal(
            send.type, send.payload, object_id=send.object_id, fragment=fragment, priority=send.priority,
            poll=poll, over=over,
        )  # fmt: skip

    def use(self, salt: bytes) -> None:
        """A salt that was agreed upon is in force, with a floor of (0, 0). Raises ValueError for others."""
        before = self.greeting.salt
        self.greeting.use(salt)
        if before != NO_SALT:
            self._before = Opener(
                self._keys, source=self.opener.source, destination=self.opener.destination,
                floor=self.opener.floor, salt=before, purpose=self._purpose,
            )  # fmt: skip
        self._doubt.proven()
        self._earlier.rekeyed(self.greeting.agreed_at)
        self.sealer.use(salt)
        if self._follows:
            self.sealer.turn(self.greeting.key_id)
        self.opener.use(salt)
