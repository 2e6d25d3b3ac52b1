"""When one end may transmit, and how long it waits for anything: all follows from its link's profile.

All times are seconds; "out" is this end's transmitter, "back" the peer's.

On a half-duplex link OVER ends a turn, and so does silence. Whoever hears OVER may answer at once. Otherwise
what each end knows of the last turn decides who may begin, so that the first is heard before the next begins:

- an end that asked something in it and got no answer asks again, the ground (the primary) before the board;
- an end that knows that the turn is over begins in slots, the ground's between the board's;
- an end that never heard its OVER waits as long as a run of lost frames may last, then uses later slots, so
  that the other end can ask again first.

On a lossy channel a turn closes with short frames that count down to its end, each of which tells when that
is. Both ends know it to within the delay, so they collide after losses alone, and once."""

from __future__ import annotations

import math

from onboard.wire.config import Medium
from onboard.wire.framing.frame import OVERHEAD_BYTES

RETRY_S = 2.0
"""The pause between two POLLs to a silent peer: 24 B each, 0.7 kB a minute."""
GRACE_S = 0.1
"""The time from a frame's arrival to its answer: an fsync on an SD card, 16 ms of USB, a training step."""
_GREETING_S = 0.25  # the shortest pause between HELLOs, as between the first POLLs
GUARD_S = 0.02  # the error of two clocks and two schedulers
_DEPTH_S = 0.005  # no timer of an operating system is finer than this
BURST_S = 10.0  # the airtime of one turn on half-duplex
_REPORT_SHARE = 4  # REPORTs that are polled for take at most 1/4 of the way back
_REPORT_BYTES = 13  # the payload of a REPORT without a bitmap
LEAD_BYTES = 17  # delimiters: one is left when the first 16 B of a burst are spoiled
_LEAST_LEAD_BYTES = 2
_LEAD_S = 0.02  # on half-duplex the lead takes no more than this, or
_LEAD_SHARE = 1 / 8  # than this share of keying, whichever is longer
MAX_CLOSING = 8
_LONGEST = 2.0
_MISSED = 0.07  # that all closing frames are lost costs about a second, one of them 20 to 70 ms of 9.6 kbit/s
_EAGER = 8  # unanswered bursts in a row that have a long lead; later every fourth one does
_DOUBTFUL = 3.0  # from this many repeated questions on every lead is long
_TRUST = 0.5  # what a new question takes from the doubt


class Timing:
    """The times of one end of a link. `most_lead_bytes`: the most delimiters before a burst.

    `back_bytes_per_s`: the line rate from the peer. `frame_s`, `back_frame_s`: airtime of the longest frame,
    out and back. `lead_bytes`: the delimiters before a burst that is surely heard, and before one that may
    not be; equal on half-duplex, as both ends compute the same slots. `slot_s`: on half-duplex, the time
    until an end that began to speak is heard; `question_slot_s`: the same for a POLL, so that one desists."""

    def __init__(self, medium: Medium, *, primary: bool, most_lead_bytes: int = 0) -> None:
        link = medium.link
        self._link = link
        self.wire_bytes = medium.wire_bytes
        self.primary = primary
        self.half_duplex = link.half_duplex
        self.delay_s = link.delay_s
        self.keying_s = link.keying_s if link.half_duplex else 0.0
        self.payload_bytes = link.mtu_bytes - OVERHEAD_BYTES
        self._most_lead_bytes = most_lead_bytes
        self.run_at(None)

    def run_at(self, rate_bps: float | None) -> None:
        """Set the line rate of both directions; None restores those of the link's profile."""
        out_bps = self._link.rate_down_bps if self.primary else self._link.rate_up_bps
        back_bps = self._link.rate_up_bps if self.primary else self._link.rate_down_bps
        self._out_s_per_byte = self._link.bits_per_byte / (rate_bps or out_bps)
        self._back_s_per_byte = self._link.bits_per_byte / (rate_bps or back_bps)
        self.back_bytes_per_s = 1 / self._back_s_per_byte
        self.frame_bytes = self.wire_bytes(self._link.mtu_bytes)
        self.frame_s = self.airtime_s(self._link.mtu_bytes)
        self.back_frame_s = self.back_airtime_s(self._link.mtu_bytes)
        slower_s_per_byte = max(self._out_s_per_byte, self._back_s_per_byte)
        short, long = min(1, self._most_lead_bytes), self._most_lead_bytes
        if self.half_duplex:
            lead_s = max(_LEAD_S, self.keying_s * _LEAD_SHARE)
            short = long = min(max(_LEAST_LEAD_BYTES, int(lead_s / slower_s_per_byte)), long)
        self.lead_bytes = short, long
        self.lead_s = long * slower_s_per_byte
        self.slot_s = self._heard_within_s(max(self.frame_s, self.back_frame_s))
        poll_s = max(self.airtime_s(OVERHEAD_BYTES), self.back_airtime_s(OVERHEAD_BYTES))
        self.question_slot_s = self._heard_within_s(poll_s)

    def airtime_s(self, frame_bytes: int, lead_bytes: int = 0) -> float:
        """Return the airtime of a frame out, with its lead."""
        return self.wire_bytes(frame_bytes) * self._out_s_per_byte + lead_bytes * self._out_s_per_byte

    def back_airtime_s(self, frame_bytes: int) -> float:
        return self.wire_bytes(frame_bytes) * self._back_s_per_byte

    @property
    def greeting_s(self) -> float:
        """The pause before an unanswered HELLO is repeated."""
        return max(_GREETING_S, self.answer_s(0, busy=True) + 2 * self.keying_s + GRACE_S)

    def report_frame_bytes(self, fragments: int) -> int:
        """Return the length of the longest REPORT on an object of this many fragments."""
        return OVERHEAD_BYTES + min(self.payload_bytes, _REPORT_BYTES + (fragments + 7) // 8)

    def report_interval_s(self, fragments: int, loss: float) -> float:
        """Return the pause between unpolled REPORTs, which keeps their cost low (docs/wire.md, REPORT).
        Losses shorten it, as they also hit the peer's questions."""
        report_s = self.airtime_s(self.report_frame_bytes(fragments))
        return max(4 * self.delay_s, 8 * report_s, min(16 * self.back_frame_s, 3.0) / (1 + 8 * loss))

    def report_gap_s(self, frame_bytes: int) -> float:
        """Return the pause between a REPORT of `frame_bytes` and the next that is polled for."""
        return 0.0 if self.half_duplex else (_REPORT_SHARE - 1) * self.airtime_s(frame_bytes)

    def answer_s(self, fragments: int, *, busy: bool) -> float:
        """Return the time from a question until its REPORT is here. `busy`: the peer sends bulk as well."""
        report_s = self.back_airtime_s(self.report_frame_bytes(fragments))
        queue_s = 2 * self.back_frame_s if busy else 0.0
        return 2 * self.delay_s + _REPORT_SHARE * report_s + queue_s + GUARD_S

    def silence_s(self, fragments: int) -> float:
        """Return the time without an answer that makes a peer silent: 4 intervals of its REPORTs."""
        report_s = self.back_airtime_s(self.report_frame_bytes(fragments))
        interval_s = max(4 * self.delay_s, 8 * report_s, min(16 * self.frame_s, 3.0))
        return max(4 * interval_s, RETRY_S)

    def fragment_s(self, fragment_bytes: int) -> float:
        return self.airtime_s(OVERHEAD_BYTES + fragment_bytes)

    def round_trip_fragments(self, fragments: int, fragment_bytes: int) -> int:
        """Return the bandwidth-delay product: the fragments sent between one of them and the REPORT on it."""
        return 1 + int(self.answer_s(fragments, busy=False) / self.fragment_s(fragment_bytes))

    def waits_for_answer(self, size: int) -> bool:
        """Return whether waiting for the answer to an OFFER costs little beside the object's airtime."""
        if self.half_duplex:
            return True
        report_s = self.back_airtime_s(self.report_frame_bytes(0))
        object_s = (size / max(self.payload_bytes, 1)) * self.frame_s
        return 2 * self.delay_s + report_s < 0.05 * object_s

    def answer_slot_s(self, fragments: int) -> float:
        """Return the time from a question's end until its answer, which begins with a REPORT, is heard."""
        return self._heard_within_s(self.back_airtime_s(self.report_frame_bytes(fragments)))

    def _heard_within_s(self, airtime_s: float) -> float:
        return GRACE_S + self.keying_s + self.lead_s + airtime_s + 2 * self.delay_s + GUARD_S


class Pacer:
    """Paces frames to the link: a token bucket two frames deep, in airtime, so an urgent one waits two at
    most. `end`: when all that was sent has left the antenna; `latest`: the same if a run killed just before
    this one's start had filled that buffer."""

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self.end = now
        self.latest = now + timing.keying_s + max(timing.frame_s, _DEPTH_S) + timing.frame_s
        self.airtime_s = 0.0

    @property
    def opens_at(self) -> float:
        return self.end - max(self._timing.frame_s, _DEPTH_S)

    def sent(self, frame_bytes: int, now: float, *, keyed: bool, lead_bytes: int = 0) -> float:
        """Note that a frame leaves; returns when its last bit does. `keyed`: it keys the transmitter."""
        keying_s = self._timing.keying_s if keyed else 0.0
        airtime_s = self._timing.airtime_s(frame_bytes, lead_bytes) + keying_s
        self.end = max(self.end, now) + airtime_s
        self.latest = max(self.latest, now) + airtime_s
        self.airtime_s += airtime_s
        return self.end


class HalfDuplexTurn:
    """Whose turn it is, as one end sees it. `loss` (0..1) and `burst` are the channel's, as in `peer`."""

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self._quiet_since = now  # end of the last frame on the channel
        self._wait_s = 0.0 if timing.primary else timing.slot_s  # from there to this end's first slot
        self._mine = False  # OVER was heard, or this end is within its turn
        self._speaking = False  # this end has begun and not yet said OVER
        self._began = -math.inf
        self._closed_with = 0  # frames, the last time
        self.closing = 0  # closing frames that this turn has left

    def opens_at(self, now: float) -> float:
        if self._mine and now <= self._quiet_since + GRACE_S:
            return max(now, self._quiet_since)
        first = self._quiet_since + self._wait_s
        if now <= first:
            return first
        period_s = 2 * self._timing.slot_s
        slot = first + math.floor((now - first) / period_s) * period_s
        return now if now <= slot + GRACE_S else slot + period_s

    def close(self, loss: float, burst: float = 1.0) -> bool:
        """End this turn: with the frame just sent (True), or with some more, where `loss` is high."""
        loss = min(max(loss, 0.01), 0.9)
        frames = 1 + max(0, math.ceil(math.log(_MISSED / loss) / math.log(_after_a_loss(loss, burst))))
        self.closing = 0 if frames <= 1 else min(frames, MAX_CLOSING)
        self._closed_with = self.closing
        return self.closing == 0

    def count_down(self) -> int:
        """Note a closing frame; returns how many follow it."""
        self.closing -= 1
        return self.closing

    def in_turn(self, now: float) -> bool:
        """Return whether this end has begun to speak, not said OVER, and not been still for too long."""
        return self._speaking and now <= self._quiet_since + GRACE_S

    def has_room(self, end: float, loss: float = 0.0, burst: float = 1.0) -> bool:
        """Return whether a turn may last to `end`; bursts of losses make it longer, to save changes."""
        longer = min(1 + loss * (max(burst, 1.0) - 1), _LONGEST)
        return end - self._began <= longer * BURST_S

    def sent(self, start: float, end: float) -> None:
        """Note a frame that leaves from `start` to `end`."""
        if not self.in_turn(start):
            self._began = start
            self.closing = 0  # of a turn that fell still
        self._speaking = self._mine = True
        self._quiet_since = end
        self._wait_s = self._slots_s(2)  # if this end falls still before OVER

    def hand_over(self, asked: int | None) -> None:
        """Note that the last frame says OVER. `asked`: the turn's question, as `Outbox.asked` has it."""
        self._speaking = self._mine = False
        if asked is None:
            self._wait_s = self._slots_s(1)
        else:
            self._wait_s = self._timing.answer_slot_s(asked)
            # The other end closes with as many frames as this one, and must not be interrupted.
            closing_s = self._timing.back_airtime_s(self._timing.report_frame_bytes(asked))
            self._wait_s += self._closed_with * closing_s
            self._wait_s += 0.0 if self._timing.primary else self._timing.question_slot_s

    def heard(self, now: float, *, over: bool, loss: float, burst: float = 1.0, left_s: float = 0.0) -> None:
        """Note a frame from the peer. Without OVER more follow, and the losses say how long a silence still
        means that they were lost. `left_s`: airtime of the closing frames that follow, 0 for none."""
        self._speaking = False
        if left_s:
            over = True
            now += left_s + GUARD_S
        self._mine = over
        self._quiet_since = now
        self._wait_s = self._slots_s(1)
        if not over:
            loss = min(max(loss, 0.01), 0.9)
            # The length that a run of lost frames exceeds in 1 of 100 cases.
            lost = math.ceil(math.log(0.01 / loss) / math.log(_after_a_loss(loss, burst))) + 1
            self._wait_s = self._slots_s(2) + lost * self._timing.back_frame_s

    def _slots_s(self, primaries: int) -> float:
        """Return the time from the turn's end to that slot of the primary, or the other end's after it."""
        return (primaries if self._timing.primary else primaries + 1) * self._timing.slot_s


def _after_a_loss(loss: float, burst: float) -> float:
    """Return the probability that the frame after a lost one is lost as well, in a Gilbert channel."""
    return 1 - (1 - loss) / max(burst, 1.0)


class MediumAccess:
    """The link's airtime as one end has it, on the link's clock. `closes_at`: no frame ends after that.
    `turn`: on full duplex this end is never in one.

    `lead_bytes`: the delimiters before the frame sent last. They lead each burst, as a transmitter that keys
    late or a receiver that is still settling spoils its first bytes, and a quiet line may have left noise in
    the other end's buffer. docs/wire.md, "COBS", says how many."""

    def __init__(self, timing: Timing, now: float) -> None:
        self.timing = timing
        self.pacer = Pacer(timing, now)
        self.turn = HalfDuplexTurn(timing, now)
        self._unheard = 0  # bursts since anything was heard
        self._again = False  # the peer repeats its question: it did not hear the answer
        self._doubt = 0.0
        self.lead_bytes = 0
        self.closes_at = math.inf

    def opens_at(self, now: float) -> float:
        """Return when this end may transmit, from `now` on."""
        at = max(now, self.pacer.opens_at)
        if self.timing.half_duplex:
            at = self.turn.opens_at(at)
        longest_s = self.timing.keying_s + self.timing.lead_s + self.timing.frame_s
        end = max(at, self.pacer.latest) + longest_s
        return at if end <= self.closes_at else max(at, self.closes_at)

    def contact_begins(self) -> None:
        """Note that the port's buffer is empty."""
        self.pacer.latest = self.pacer.end

    def sent(self, frame_bytes: int, now: float, *, lossy: bool = False) -> float:
        """Note a frame; returns when its last bit leaves. `lossy`: noise may come between frames."""
        keyed = self.timing.half_duplex and not self.turn.in_turn(now)
        start = max(now, self.pacer.end)
        begins = keyed or now > self.pacer.end
        short, long = self.timing.lead_bytes
        self.lead_bytes = min(1, short) if lossy else 0
        if begins:
            is_eager = 0 < self._unheard <= _EAGER or self._unheard % 4 == 3
            self.lead_bytes = long if is_eager or self._again or self._doubt >= _DOUBTFUL else short
            self._unheard += 1
            self._again = False
        end = self.pacer.sent(frame_bytes, now, keyed=keyed, lead_bytes=self.lead_bytes)
        if self.timing.half_duplex:
            self.turn.sent(start, end)
        return end

    def ends_turn(self, end: float, *, more: bool, loss: float, burst: float) -> bool:
        """Return whether the frame just sent, its last bit at `end`, says OVER. `more`: other frames wait.
        The turn may close with further frames, see `HalfDuplexTurn.close`."""
        next_end = end + self.timing.frame_s
        answered = next_end + self.timing.slot_s  # a last answer is worth more than a last fragment
        if more and self.turn.has_room(next_end, loss, burst) and answered <= self.closes_at:
            return False
        return self.turn.close(loss, burst)

    def heard(
        self, now: float, *, over: bool, loss: float, burst: float, left: int = 0, frame_bytes: int = 0,
        again: bool = False,
    ) -> None:  # fmt: skip
        """Note a peer's frame, before `left` closing ones. `again`: it repeats an answered question."""
        self._unheard = 0
        self._again = again
        self._doubt = self._doubt + 1 if again else max(0.0, self._doubt - _TRUST)
        left_s = left * self.timing.back_airtime_s(frame_bytes)
        self.turn.heard(now, over=over, loss=loss, burst=burst, left_s=left_s)
