"""Every waiting time of a session follows from its link's profile, and one end sends no faster than it.

Seconds throughout. "Out" is this end's transmitter, "back" the peer's.
"""

from __future__ import annotations

from onboard.wire.config import Medium
from onboard.wire.framing.frame import OVERHEAD_BYTES

RETRY_S = 2.0
"""Between two POLLs to a silent peer: 24 B each, 0.7 kB a minute."""
GRACE_S = 0.1
"""From a frame's arrival to the first frame that answers it: an fsync on an SD card, a USB serial
adapter's 16 ms, a step of training."""
_GREETING_S = 0.25  # at the least, as POLLs follow one another at first
GUARD_S = 0.02  # two clocks, two schedulers
_DEPTH_S = 0.005  # no timer of an operating system is finer than this
_BURST_S = 10.0
_REPORT_SHARE = 4  # an asked-for REPORT takes at most 1/4 of the way back
_REPORT_BYTES = 13  # of a REPORT without a bitmap
LEAD_BYTES = 17  # delimiters, so that one is left of a burst of which the first 16 B are spoiled
_LEAST_LEAD_BYTES = 2
_LEAD_S = 0.02  # on half-duplex the lead takes no more than this, or
_LEAD_SHARE = 1 / 8  # than this share of keying, whichever is longer


class Timing:
    """The times of one end of a link. primary: see Identity. most_lead_bytes: the most delimiters before the
    first frame after a pause; 0 where frames have none."""

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

    @property
    def back_bytes_per_s(self) -> float:
        """What the line carries from the peer now."""
        return 1 / self._back_s_per_byte

    def run_at(self, rate_bps: float | None) -> None:
        """From now on both directions have this line rate; None: those of the link's profile."""
        out_bps = self._link.rate_down_bps if self.primary else self._link.rate_up_bps
        back_bps = self._link.rate_up_bps if self.primary else self._link.rate_down_bps
        self._out_s_per_byte = self._link.bits_per_byte / (rate_bps or out_bps)
        self._back_s_per_byte = self._link.bits_per_byte / (rate_bps or back_bps)
        self.frame_bytes = self.wire_bytes(self._link.mtu_bytes)
        self.frame_s = self.airtime_s(self._link.mtu_bytes)
        self.back_frame_s = self.back_airtime_s(self._link.mtu_bytes)

    @property
    def lead_bytes(self) -> tuple[int, int]:
        """Delimiters before a burst, where there is no doubt that it is heard, and where there is. `lead`
        says when; a half-duplex channel, whose slots both ends compute alike, has always as many."""
        if not self.half_duplex:
            return min(1, self._most_lead_bytes), self._most_lead_bytes
        lead_s = max(_LEAD_S, self.keying_s * _LEAD_SHARE)
        slower_s_per_byte = max(self._out_s_per_byte, self._back_s_per_byte)
        lead_bytes = max(_LEAST_LEAD_BYTES, int(lead_s / slower_s_per_byte))
        return (min(lead_bytes, self._most_lead_bytes),) * 2

    @property
    def lead_s(self) -> float:
        """Of the longest lead."""
        return self.lead_bytes[1] * max(self._out_s_per_byte, self._back_s_per_byte)

    def airtime_s(self, frame_bytes: int) -> float:
        """Of one frame out."""
        return self.wire_bytes(frame_bytes) * self._out_s_per_byte

    def bare_s(self, count_bytes: int) -> float:
        """Of so many bytes out that are no frame."""
        return count_bytes * self._out_s_per_byte

    def back_airtime_s(self, frame_bytes: int) -> float:
        """Of one frame back."""
        return self.wire_bytes(frame_bytes) * self._back_s_per_byte

    @property
    def greeting_s(self) -> float:
        """Before a HELLO without an answer is said again."""
        return max(_GREETING_S, self.answer_s(0, busy=True) + 2 * self.keying_s + GRACE_S)

    def report_frame_bytes(self, fragments: int) -> int:
        """The longest REPORT on an object of so many fragments."""
        return OVERHEAD_BYTES + min(self.payload_bytes, _REPORT_BYTES + (fragments + 7) // 8)

    def report_interval_s(self, fragments: int, loss: float) -> float:
        """Between two REPORTs that nobody asked for (docs/wire.md, REPORT): cheap against what they tell.

        Less where more of the peer's frames is lost, as its questions are too.
        """
        report_s = self.airtime_s(self.report_frame_bytes(fragments))
        return max(4 * self.delay_s, 8 * report_s, min(16 * self.back_frame_s, 3.0) / (1 + 8 * loss))

    def report_gap_s(self, frame_bytes: int) -> float:
        """After a REPORT of `frame_bytes`, before the next one that is asked for may leave."""
        return 0.0 if self.half_duplex else (_REPORT_SHARE - 1) * self.airtime_s(frame_bytes)

    def answer_s(self, fragments: int, *, busy: bool) -> float:
        """From the end of a question until its REPORT must be here; `busy`: the peer sends bulk as well."""
        report_s = self.back_airtime_s(self.report_frame_bytes(fragments))
        queue_s = 2 * self.back_frame_s if busy else 0.0
        return 2 * self.delay_s + _REPORT_SHARE * report_s + queue_s + GUARD_S

    def silence_s(self, fragments: int) -> float:
        """Without an answer so long the peer is silent: 4 intervals of its REPORTs."""
        report_s = self.back_airtime_s(self.report_frame_bytes(fragments))
        interval_s = max(4 * self.delay_s, 8 * report_s, min(16 * self.frame_s, 3.0))
        return max(4 * interval_s, RETRY_S)

    def fragment_s(self, fragment_bytes: int) -> float:
        """Airtime of a fragment of so many bytes."""
        return self.airtime_s(OVERHEAD_BYTES + fragment_bytes)

    def round_trip_fragments(self, fragments: int, fragment_bytes: int) -> int:
        """How many fragments leave between one and the REPORT on it: the bandwidth-delay product."""
        return 1 + int(self.answer_s(fragments, busy=False) / self.fragment_s(fragment_bytes))

    def waits_for_answer(self, size: int, fragments: int) -> bool:
        """Whether an OFFER's answer costs so little of the object's airtime that it is waited for."""
        if self.half_duplex:
            return True
        report_s = self.back_airtime_s(self.report_frame_bytes(0))
        object_s = (size / max(self.payload_bytes, 1)) * self.frame_s
        return 2 * self.delay_s + report_s < 0.05 * object_s

    @property
    def slot_s(self) -> float:
        """Half-duplex: whoever begins to speak at its start has been heard by the other at its end."""
        return self._heard_within_s(max(self.frame_s, self.back_frame_s))

    def answer_slot_s(self, fragments: int) -> float:
        """Half-duplex: from a question's end until its answer, which begins with a REPORT, has been heard."""
        return self._heard_within_s(self.back_airtime_s(self.report_frame_bytes(fragments)))

    @property
    def question_slot_s(self) -> float:
        """Half-duplex: in this time a POLL is heard, so that of two that ask the other one desists."""
        return self._heard_within_s(max(self.airtime_s(OVERHEAD_BYTES), self.back_airtime_s(OVERHEAD_BYTES)))

    def _heard_within_s(self, airtime_s: float) -> float:
        return GRACE_S + self.keying_s + self.lead_s + airtime_s + 2 * self.delay_s + GUARD_S

    @property
    def burst_s(self) -> float:
        """Airtime of one turn on half-duplex."""
        return _BURST_S


class Pacer:
    """Hands out airtime as the link has it: a token bucket two frames deep, counted in time on the air.

    `end` is when all that was handed out has left the antenna. So a frame never finds more than one
    other in the port's buffer, and what is urgent waits two frame times at most. `latest` is when it has
    if a run that was killed just before this one's start had filled that buffer.
    """

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self.end = now
        self.latest = now + timing.keying_s + max(timing.frame_s, _DEPTH_S) + timing.frame_s
        self.airtime_s = 0.0

    @property
    def opens_at(self) -> float:
        """The earliest time for the next frame."""
        return self.end - max(self._timing.frame_s, _DEPTH_S)

    def port_is_empty(self) -> None:
        """Of an earlier run nothing is left."""
        self.latest = self.end

    def sent(self, frame_bytes: int, now: float, *, keyed: bool, lead_bytes: int = 0) -> float:
        """A frame leaves, behind so many delimiters; returns when its last bit has. `keyed`: the transmitter
        has to be keyed for it."""
        airtime_s = self._timing.airtime_s(frame_bytes) + self._timing.bare_s(lead_bytes)
        airtime_s += self._timing.keying_s if keyed else 0.0
        self.end = max(self.end, now) + airtime_s
        self.latest = max(self.latest, now) + airtime_s
        self.airtime_s += airtime_s
        return self.end
