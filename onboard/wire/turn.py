"""On a half-duplex link one end speaks at a time: a turn ends with OVER, and silence ends it as well.

Whoever hears OVER may answer at once. If nobody does, the channel is free, and time since the last frame
falls into slots, each long enough for the other end to have heard whoever began in it: odd ones are the
ground's (the master's), even ones the board's. Both ends know the end of the last frame to within the
delay, so on an undisturbed channel they never begin together; after losses they may, once, and then the
master's slot comes first. A channel on which nobody has anything to say carries nothing.
"""

from __future__ import annotations

import math

from onboard.wire.timing import GRACE_S, Timing


class Turn:
    """Whose turn it is, as one end sees it."""

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self._first_slot = 1 if timing.master else 2
        self._quiet_since = now - timing.slot_s  # the master may begin at once
        self._mine = False  # OVER was heard, or this end is within its turn
        self._began = -math.inf
        self._speaking = False  # this end has begun and not yet said OVER

    def opens_at(self, now: float) -> float:
        """The earliest time from `now` on at which this end may transmit."""
        if self._mine and now <= self._quiet_since + GRACE_S:
            return now
        slot_s = self._timing.slot_s
        first = self._quiet_since + self._first_slot * slot_s
        if now <= first:
            return first
        nth = math.floor((now - first) / (2 * slot_s))
        slot = first + nth * 2 * slot_s
        return now if now <= slot + GRACE_S else slot + 2 * slot_s

    def in_turn(self, now: float) -> bool:
        """Whether this end has begun to speak, has not yet said OVER, and has not been still for too long."""
        return self._speaking and now <= self._quiet_since + GRACE_S

    def begins(self, now: float) -> bool:
        """Whether a frame sent now would be the first of a turn, so that the transmitter must be keyed."""
        return not self.in_turn(now)

    def has_room(self, end: float) -> bool:
        """Whether a turn that goes on to `end` is no longer than a turn may be."""
        return end - self._began <= self._timing.burst_s

    def sent(self, start: float, end: float) -> None:
        """A frame leaves at `start`; its last bit at `end`."""
        if self.begins(start):
            self._began = start
        self._speaking = self._mine = True
        self._quiet_since = end

    def hand_over(self) -> None:
        """The frame just sent says OVER."""
        self._speaking = self._mine = False

    def heard(self, now: float, *, over: bool, loss: float) -> None:
        """A frame of the peer's has wholly arrived. Without OVER more follow: `loss` (0..1) says how many
        frame times of nothing still mean that they were lost, not that the turn is over."""
        self._speaking = False
        self._mine = over
        patience = 0.0 if over else _run_of_losses(loss) * self._timing.back_frame_s
        self._quiet_since = now + patience


def _run_of_losses(loss: float) -> int:
    """The length that a run of independently lost frames passes in 1 of 100 cases."""
    loss = min(max(loss, 0.01), 0.9)
    return math.ceil(math.log(0.01) / math.log(loss))
