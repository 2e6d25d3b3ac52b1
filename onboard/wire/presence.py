"""The presence of the peer: whether it is there, and where. HELLOs ask, and what leaves meanwhile is limited.

On a port where addresses change, an end that knows where the peer is says HELLO when it has heard nothing for
some time: the peer may have lost its state, and with it where this end is, or either may have moved. A peer
that lives answers to where the HELLO came from, which is how it is found again; a POLL then proves to it that
this end is there, too. Keep-alives are rare: RFC 8085, section 3.5, asks for 15 s at least between those of
UDP, and an idle link that answers is asked ever more seldom.
"""

from __future__ import annotations

import math

from onboard.wire.events import Event, PeerHeard
from onboard.wire.framing.frame import Frame, Origin, PendingFrame, Type
from onboard.wire.security.hello import RekeyHandshake
from onboard.wire.transfer.outbox import Outbox

QUIET_S = 15.0
_FIRST_S = 2.0  # after the start, when whatever there is to say has not been answered
_AGAIN_S = 2.0  # without an answer, and twice as long each time
_AT_LAST_S = 60.0  # 3 frames, 200 B on UDP, a minute
_TOUCH_S = 10.0  # after a proof of the peer's; two turns at their longest are less
_DOUBTFUL = 2  # of these in a row without an answer: a frame may be lost


class Presence:
    """What one end knows of its peer. quiet_s: after a silence so long the peer is asked; inf for never.

    proof_of_life: whether the frame that was heard last proves that the peer is where it came from, now: it
    is authentic, and the newest so far or a fresh HELLO, which no recording of it is. is_asked: whether the
    HELLO that was heard last proved that, or is one to answer of a peer that has been still: it may be a
    recording, but nobody's turn is lost by it. destination: where the frame that was sent
    last goes; None for the peer. active_at: when the peer last said anything but that it is there.
    is_reachable: whether it is known where the peer is; until it is, nothing leaves but answers to HELLOs.
    """

    def __init__(
        self,
        greeting: RekeyHandshake,
        outbox: Outbox,
        quiet_s: float,
        now: float,
        *,
        half_duplex: bool = False,
    ) -> None:
        self._greeting, self._outbox, self._half_duplex = greeting, outbox, half_duplex
        self._quiet_s = self._interval_s = quiet_s
        self._asked = 0  # without an answer
        self._owes_proof = False  # the peer answered, and cannot know yet that it is this end that asked
        self._ask_at = now + _FIRST_S if quiet_s < math.inf else math.inf
        self.is_reachable = True
        self.proof_of_life = self.is_asked = False
        self.destination: Origin = None
        self.active_at = -math.inf
        self._touch_s = -math.inf  # when the peer proved last that it is there

    @property
    def in_doubt(self) -> bool:
        """Whether the peer was asked, more than once, and gave no answer: it may be elsewhere."""
        return self._outbox.silent or self._asked >= _DOUBTFUL or self._greeting.in_doubt

    @property
    def alone(self) -> bool:
        """Whether nothing may leave but what `frame` gives."""
        return not self.is_reachable or self._greeting.is_unsure

    # -- what may leave --------------------------------------------------------------------------------

    def frame_at(self) -> float:
        """When the next frame of `frame` is due."""
        if not self.is_reachable:
            return -math.inf if self._greeting.owes else math.inf
        due_at = self._greeting.due_at()
        if self._greeting.is_unsure or due_at == -math.inf:
            return due_at
        if self._owes_proof:
            return -math.inf
        return math.inf if self._greeting.is_settling else self._ask_at

    def frame(self) -> PendingFrame:
        """The frame that is due, ahead of all others."""
        is_hello = self._greeting.owes or self.alone or not self._owes_proof
        return self._greeting.say() if is_hello else PendingFrame(Type.POLL)

    def sent(self, send: PendingFrame, end: float) -> None:
        """A frame leaves, its last bit at `end`."""
        if send.type is not Type.HELLO:
            self._owes_proof = False
            return
        if not self._greeting.owes and not self._greeting.is_unsure and self._quiet_s < math.inf:
            self._ask_at = end + min(_AGAIN_S * 2.0**self._asked, _AT_LAST_S)
            self._asked = min(self._asked + 1, 16)
        self._greeting.said(end)

    def ask(self) -> None:
        """There is a reason to ask the peer now: it may be where it was not looked for yet."""
        self._ask_at = -math.inf

    # -- what was heard --------------------------------------------------------------------------------

    def greet(
        self, raw: bytes, now: float, link_now: float, origin: Origin
    ) -> tuple[Frame | None, list[Event]]:
        """A HELLO, or anything at all while there is no salt: the frame, if it is one, and what it brings."""
        frame = self._greeting.open(raw)
        if frame is None:
            return None, []
        owed = self._greeting.owes
        in_touch = self._half_duplex and link_now < self._touch_s + _TOUCH_S
        events = self._greeting.handle(frame, link_now, origin, in_touch=in_touch)
        self.heard(frame, now, link_now, proves=self._greeting.is_live)
        if self.proof_of_life:
            events += [PeerHeard()] if self._outbox.silent else []
            self._outbox.heard()
        is_new = self._greeting.owes and not owed
        self.is_asked = self.proof_of_life or (is_new and not in_touch)
        return frame, events

    def heard(self, frame: Frame, now: float, link_now: float, *, proves: bool = True) -> None:
        """An authentic frame of the peer's came in. proves: that it is there now, see `proof_of_life`."""
        self.proof_of_life = proves
        is_hello = frame.type is Type.HELLO
        if is_hello and not proves:
            return
        if proves:
            self._touch_s = link_now
        is_sign = is_hello or (frame.type is Type.POLL and not frame.object_id)
        if not is_sign:
            self.active_at = now
        if not is_sign and frame.type is not Type.MSG:  # which a board says about itself once a minute
            self._interval_s = self._quiet_s
        elif self._asked:
            self._interval_s = min(2 * self._interval_s, _AT_LAST_S)
        self._owes_proof |= is_hello and self._asked > 0
        self._asked = 0
        self._ask_at = link_now + self._interval_s
