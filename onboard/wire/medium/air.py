"""When one end may transmit: at the pace of its link, in contact, and on half-duplex in its turn.

Delimiters go before the first frame after a pause, so that what a line spoils at a start is no frame of ours.
A transmitter that keys late, or a receiver that is still settling, spoils the first bytes of whatever comes
after a pause, and a quiet line may have left noise in the other end's buffer: without a delimiter in front a
frame would be one chunk with all of that. On half-duplex every turn begins with enough delimiters. On a line
that is always on one delimiter will do, unless nothing comes back or the same question comes twice: then
there are as many as on half-duplex.
"""

from __future__ import annotations

import math

from onboard.wire.medium.timing import Pacer, Timing
from onboard.wire.medium.turn import HalfDuplexTurn

_EAGER = 8  # bursts in a row without an answer that have a long lead; every fourth one after them does
_DOUBTFUL = 3.0  # questions asked again, from which on every lead is long
_TRUST = 0.5  # the part of a doubt that a new question takes away


class Lead:
    """Says how long the lead of each burst of one end is. On a datagram port no burst has one."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._unheard = 0  # bursts since anything was heard
        self._again = False  # the peer has asked the same once more: it did not hear the answer
        self._doubt = 0.0

    def begins(self) -> int:
        """A burst begins: the delimiters before its first frame."""
        short, long = self._timing.lead_bytes
        eager = 0 < self._unheard <= _EAGER or self._unheard % 4 == 3
        is_long = eager or self._again or self._doubt >= _DOUBTFUL
        self._unheard += 1
        self._again = False
        return long if is_long else short

    def within(self, *, lossy: bool) -> int:
        """A frame follows another without a pause: it needs no lead, but where frames are lost noise may be
        what comes in between."""
        return min(1, self._timing.lead_bytes[0]) if lossy else 0

    def heard(self, *, again: bool) -> None:
        """A frame of the peer's came; `again`: it asks what the one before it asked, and was answered."""
        self._unheard = 0
        self._again = again
        self._doubt = self._doubt + 1 if again else max(0.0, self._doubt - _TRUST)


class MediumAccess:
    """The link's airtime as one end has it, on the link's clock. `closes_at`: no frame ends after that.

    Full duplex knows no turns: none begins, none ends. `lead_bytes`: delimiters that go before the frame that
    was sent last.
    """

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self._pacer = Pacer(timing, now)
        self._turn = HalfDuplexTurn(timing, now) if timing.half_duplex else None
        self._lead = Lead(timing)
        self.lead_bytes = 0
        self.closes_at = math.inf

    @property
    def airtime_s(self) -> float:
        """The time for which the transmitter was on, keying included."""
        return self._pacer.airtime_s

    def opens_at(self, now: float) -> float:
        """The earliest time from `now` on at which this end may transmit."""
        at = max(now, self._pacer.opens_at)
        if self._turn is not None:
            at = self._turn.opens_at(at)
        longest_s = self._timing.keying_s + self._timing.lead_s + self._timing.frame_s
        end = max(at, self._pacer.latest) + longest_s
        return at if end <= self.closes_at else max(at, self.closes_at)

    def contact_begins(self) -> None:
        """The port has nothing left of what was sent before."""
        self._pacer.port_is_empty()

    def in_turn(self, now: float) -> bool:
        """Whether this end is within a turn that it has to hand over."""
        return self._turn is not None and self._turn.in_turn(now)

    def closing(self, now: float) -> bool:
        """Whether its turn has nothing left but its end to be told."""
        return self._turn is not None and self._turn.closing and self._turn.in_turn(now)

    def sent(self, frame_bytes: int, now: float, *, lossy: bool = False) -> float:
        """A frame leaves; returns when its last bit has. lossy: see Lead.within."""
        keyed = self._turn is not None and self._turn.begins(now)
        start = max(now, self._pacer.end)
        self.lead_bytes = (
            self._lead.begins() if keyed or now > self._pacer.end else self._lead.within(lossy=lossy)
        )
        end = self._pacer.sent(frame_bytes, now, keyed=keyed, lead_bytes=self.lead_bytes)
        if self._turn is not None:
            self._turn.sent(start, end)
        return end

    def count_down(self) -> int:
        """A closing frame was sent: how many follow it."""
        return 0 if self._turn is None else self._turn.count_down()

    def ends_turn(self, end: float, *, more: bool, loss: float, burst: float) -> bool:
        """Whether the frame just sent, whose last bit leaves at `end`, says OVER. more: something else waits
        to be sent. loss, burst: see HalfDuplexTurn.close, which may have the turn close with further
        frames."""
        if self._turn is None:
            return False
        next_end = end + self._timing.frame_s
        answered = next_end + self._timing.slot_s  # a last answer is worth more than a last fragment
        if more and self._turn.has_room(next_end, loss, burst) and answered <= self.closes_at:
            return False
        return self._turn.close(loss, burst)

    def hand_over(self, asked: int | None) -> None:
        """This end's turn is over, see HalfDuplexTurn.hand_over."""
        if self._turn is not None:
            self._turn.hand_over(asked)

    def heard(
        self, now: float, *, over: bool, loss: float, burst: float, left: int = 0, frame_bytes: int = 0,
        again: bool = False,
    ) -> None:  # fmt: skip
        """A frame of the peer's has arrived; `left` closing frames of `frame_bytes` follow it. again: see
        Lead.heard."""
        self._lead.heard(again=again)
        if self._turn is not None:
            left_s = left * self._timing.back_airtime_s(frame_bytes)
            self._turn.heard(now, over=over, loss=loss, burst=burst, left_s=left_s)
