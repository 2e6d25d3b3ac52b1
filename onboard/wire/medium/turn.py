"""On a half-duplex link one end speaks at a time: a turn ends with OVER, and silence ends it as well.

Whoever hears OVER may answer at once. If nobody does, who may begin depends on what each end knows of the
last turn, and the order in which they may is such that the first has been heard by the time of the next:

- an end that asked something in it and got no answer asks again, the ground (the primary) before the board;
- an end that knows the turn to be over begins in slots, the ground's between the board's;
- an end that never heard its OVER waits for as long as a run of lost frames may last, and then as before
  but later, so that the other end can ask again first.

Where much is lost a turn closes with several short frames that count down to its end, the last with OVER: who
hears any of them knows when it may begin.

Both ends know the end of a turn to within the delay, so on an undisturbed channel they never speak at the
same time; after losses they may, once. A channel on which nobody has anything to say carries nothing.
"""

from __future__ import annotations

import math

from onboard.wire.medium.timing import GRACE_S, GUARD_S, Timing

MAX_CLOSING = 8
_LONGEST = 2.0
_MISSED = 0.07  # that all closing frames are lost costs about a second, one of them 20 to 70 ms of 9.6 kbit/s


class HalfDuplexTurn:
    """Whose turn it is, as one end sees it."""

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self._quiet_since = now  # end of the last frame on the channel
        self._wait_s = 0.0 if timing.primary else timing.slot_s  # from there to this end's first slot
        self._mine = False  # OVER was heard, or this end is within its turn
        self._speaking = False  # this end has begun and not yet said OVER
        self._began = -math.inf
        self._closed_with = 0  # frames, the last time
        self._closing = 0  # frames that this turn has left, once nothing but its end is to be told

    def opens_at(self, now: float) -> float:
        """The earliest time from `now` on at which this end may transmit."""
        if self._mine and now <= self._quiet_since + GRACE_S:
            return max(now, self._quiet_since)
        first = self._quiet_since + self._wait_s
        if now <= first:
            return first
        period_s = 2 * self._timing.slot_s
        slot = first + math.floor((now - first) / period_s) * period_s
        return now if now <= slot + GRACE_S else slot + period_s

    @property
    def closing(self) -> bool:
        """Whether this end has said all that it had to say but for the turn's end."""
        return self._closing > 0

    def close(self, loss: float, burst: float = 1.0) -> bool:
        """This turn ends: with the frame just sent (True), or with some more, where `loss` (0..1) is high.
        burst: how many times longer losses last than if they were independent."""
        loss = min(max(loss, 0.01), 0.9)
        frames = 1 + max(0, math.ceil(math.log(_MISSED / loss) / math.log(_after_a_loss(loss, burst))))
        self._closing = 0 if frames <= 1 else min(frames, MAX_CLOSING)
        self._closed_with = self._closing
        return self._closing == 0

    def count_down(self) -> int:
        """A closing frame was sent: how many follow it."""
        self._closing -= 1
        return self._closing

    def in_turn(self, now: float) -> bool:
        """Whether this end has begun to speak, has not yet said OVER, and has not been still for too long."""
        return self._speaking and now <= self._quiet_since + GRACE_S

    def begins(self, now: float) -> bool:
        """Whether a frame sent now would be the first of a turn, so that the transmitter must be keyed."""
        return not self.in_turn(now)

    def has_room(self, end: float, loss: float = 0.0, burst: float = 1.0) -> bool:
        """Whether a turn that goes on to `end` is no longer than a turn may be: up to twice the usual where
        losses (see `close`) come in bursts, so that fewer changes of turn are there to be lost in them."""
        longer = min(1 + loss * (max(burst, 1.0) - 1), _LONGEST)
        return end - self._began <= longer * self._timing.burst_s

    def sent(self, start: float, end: float) -> None:
        """A frame leaves at `start`; its last bit at `end`."""
        if self.begins(start):
            self._began = start
            self._closing = 0  # of a turn that fell still
        self._speaking = self._mine = True
        self._quiet_since = end
        self._wait_s = self._slots_s(2)  # should this end fall still before it says OVER

    def hand_over(self, asked: int | None) -> None:
        """The frame just sent says OVER. `asked`: fragments of the largest object that the turn asked
        about, None if it asked nothing."""
        self._speaking = self._mine = False
        if asked is None:
            self._wait_s = self._slots_s(1)
        else:
            self._wait_s = self._timing.answer_slot_s(asked)
            # Where this end closes with so many frames the other does, and must not be interrupted in it.
            self._wait_s += self._closed_with * self._timing.back_airtime_s(
                self._timing.report_frame_bytes(asked)
            )
            self._wait_s += 0.0 if self._timing.primary else self._timing.question_slot_s

    def heard(self, now: float, *, over: bool, loss: float, burst: float = 1.0, left_s: float = 0.0) -> None:
        """A frame of the peer's has wholly arrived. Without OVER more follow: loss and burst, as in `close`,
        say how many frame times of nothing still mean that they were lost, not that the turn is over.
        left_s: airtime of the closing frames that follow, 0 if it was none of these."""
        self._speaking = False
        if left_s:
            over = True
            now += left_s + GUARD_S
        self._mine = over
        self._quiet_since = now
        self._wait_s = self._slots_s(1)
        if not over:
            self._wait_s = self._slots_s(2) + _run_of_losses(loss, burst) * self._timing.back_frame_s

    def _slots_s(self, primaries: int) -> float:
        """The time from the end of the turn to the primary's slot of that number, or to the other end's
        behind it."""
        return (primaries if self._timing.primary else primaries + 1) * self._timing.slot_s


def _run_of_losses(loss: float, burst: float) -> int:
    """The length that a run of lost frames passes in 1 of 100 cases."""
    loss = min(max(loss, 0.01), 0.9)
    return math.ceil(math.log(0.01 / loss) / math.log(_after_a_loss(loss, burst))) + 1


def _after_a_loss(loss: float, burst: float) -> float:
    """The probability that the frame after a lost one is lost as well, in a Gilbert channel."""
    return 1 - (1 - loss) / max(burst, 1.0)
