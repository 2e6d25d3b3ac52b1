"""The times of a session: every wait follows from the link's profile, and no end sends faster than its link.

All times are seconds. "Out" is this end's transmitter, "back" the peer's.
"""

from __future__ import annotations

from onboard.wire.config import Medium
from onboard.wire.framing.frame import OVERHEAD_BYTES

RETRY_S = 2.0
"""The pause between two POLLs to a silent peer: 24 B each, 0.7 kB a minute."""
GRACE_S = 0.1
"""The time that an end may take from a frame's arrival to its answer: an fsync on an SD card, a USB serial
adapter's 16 ms, a step of training."""
_GREETING_S = 0.25  # the shortest pause between two HELLOs, as between the first POLLs
GUARD_S = 0.02  # the error of two clocks and two schedulers
_DEPTH_S = 0.005  # no timer of an operating system is finer than this
_BURST_S = 10.0  # the airtime of one turn on half-duplex
_REPORT_SHARE = 4  # REPORTs that are asked for take at most 1/4 of the way back
_REPORT_BYTES = 13  # the payload of a REPORT without a bitmap
LEAD_BYTES = 17  # delimiters: one is left when the first 16 B of a burst are spoiled
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
        """The bytes that the line carries from the peer each second, now."""
        return 1 / self._back_s_per_byte

    def run_at(self, rate_bps: float | None) -> None:
        """Both directions have this line rate from now on; with None, the rates of the link's profile."""
        out_bps = self._link.rate_down_bps if self.primary else self._link.rate_up_bps
        back_bps = self._link.rate_up_bps if self.primary else self._link.rate_down_bps
        self._out_s_per_byte = self._link.bits_per_byte / (rate_bps or out_bps)
        self._back_s_per_byte = self._link.bits_per_byte / (rate_bps or back_bps)
        self.frame_bytes = self.wire_bytes(self._link.mtu_bytes)
        self.frame_s = self.airtime_s(self._link.mtu_bytes)
        self.back_frame_s = self.back_airtime_s(self._link.mtu_bytes)

    @property
    def lead_bytes(self) -> tuple[int, int]:
        """The delimiters before a burst that is surely heard, and before one that may not be; `Lead` says
        which it is. On half-duplex both numbers are the same, as both ends compute the slots alike."""
        if not self.half_duplex:
            return min(1, self._most_lead_bytes), self._most_lead_bytes
        lead_s = max(_LEAD_S, self.keying_s * _LEAD_SHARE)
        slower_s_per_byte = max(self._out_s_per_byte, self._back_s_per_byte)
        lead_bytes = max(_LEAST_LEAD_BYTES, int(lead_s / slower_s_per_byte))
        return (min(lead_bytes, self._most_lead_bytes),) * 2

    @property
    def lead_s(self) -> float:
        """The time that the longest lead takes."""
        return self.lead_bytes[1] * max(self._out_s_per_byte, self._back_s_per_byte)

    def airtime_s(self, frame_bytes: int) -> float:
        """The time that one frame out takes."""
        return self.wire_bytes(frame_bytes) * self._out_s_per_byte

    def bare_s(self, count_bytes: int) -> float:
        """The time that bytes out take which are no frame."""
        return count_bytes * self._out_s_per_byte

    def back_airtime_s(self, frame_bytes: int) -> float:
        """The time that one frame back takes."""
        return self.wire_bytes(frame_bytes) * self._back_s_per_byte

    @property
    def greeting_s(self) -> float:
        """The pause before a HELLO that nobody answered is said again."""
        return max(_GREETING_S, self.answer_s(0, busy=True) + 2 * self.keying_s + GRACE_S)

    def report_frame_bytes(self, fragments: int) -> int:
        """The length of the longest REPORT on an object of so many fragments."""
        return OVERHEAD_BYTES + min(self.payload_bytes, _REPORT_BYTES + (fragments + 7) // 8)

    def report_interval_s(self, fragments: int, loss: float) -> float:
        """The pause between two REPORTs that nobody asked for, so long that they cost little (docs/wire.md,
        REPORT). It is shorter where more of the peer's frames are lost, as its questions are lost as well.
        """
        report_s = self.airtime_s(self.report_frame_bytes(fragments))
        return max(4 * self.delay_s, 8 * report_s, min(16 * self.back_frame_s, 3.0) / (1 + 8 * loss))

    def report_gap_s(self, frame_bytes: int) -> float:
        """The pause after a REPORT of `frame_bytes`, before the next one that is asked for may leave."""
        return 0.0 if self.half_duplex else (_REPORT_SHARE - 1) * self.airtime_s(frame_bytes)

    def answer_s(self, fragments: int, *, busy: bool) -> float:
        """The time from the end of a question until its REPORT must be here. busy: the peer sends bulk as
        well."""
        report_s = self.back_airtime_s(self.report_frame_bytes(fragments))
        queue_s = 2 * self.back_frame_s if busy else 0.0
        return 2 * self.delay_s + _REPORT_SHARE * report_s + queue_s + GUARD_S

    def silence_s(self, fragments: int) -> float:
        """The time without an answer after which the peer counts as silent: 4 intervals of its REPORTs."""
        report_s = self.back_airtime_s(self.report_frame_bytes(fragments))
        interval_s = max(4 * self.delay_s, 8 * report_s, min(16 * self.frame_s, 3.0))
        return max(4 * interval_s, RETRY_S)

    def fragment_s(self, fragment_bytes: int) -> float:
        """The airtime of a fragment of so many bytes."""
        return self.airtime_s(OVERHEAD_BYTES + fragment_bytes)

    def round_trip_fragments(self, fragments: int, fragment_bytes: int) -> int:
        """The bandwidth-delay product: the fragments that leave between one fragment and the REPORT on it."""
        return 1 + int(self.answer_s(fragments, busy=False) / self.fragment_s(fragment_bytes))

    def waits_for_answer(self, size: int, fragments: int) -> bool:
        """Whether waiting for the answer to an OFFER costs little beside the object's airtime."""
        if self.half_duplex:
            return True
        report_s = self.back_airtime_s(self.report_frame_bytes(0))
        object_s = (size / max(self.payload_bytes, 1)) * self.frame_s
        return 2 * self.delay_s + report_s < 0.05 * object_s

    @property
    def slot_s(self) -> float:
        """The slot on half-duplex: the other end has heard, by its end, whoever began to speak at its
        start."""
        return self._heard_within_s(max(self.frame_s, self.back_frame_s))

    def answer_slot_s(self, fragments: int) -> float:
        """The slot on half-duplex from a question's end until its answer, which begins with a REPORT, is
        heard."""
        return self._heard_within_s(self.back_airtime_s(self.report_frame_bytes(fragments)))

    @property
    def question_slot_s(self) -> float:
        """The slot on half-duplex in which a POLL is heard, so that of two ends that ask one desists."""
        return self._heard_within_s(max(self.airtime_s(OVERHEAD_BYTES), self.back_airtime_s(OVERHEAD_BYTES)))

    def _heard_within_s(self, airtime_s: float) -> float:
        return GRACE_S + self.keying_s + self.lead_s + airtime_s + 2 * self.delay_s + GUARD_S

    @property
    def burst_s(self) -> float:
        """The airtime of one turn on half-duplex."""
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
        """The port's buffer holds nothing of an earlier run any more."""
        self.latest = self.end

    def sent(self, frame_bytes: int, now: float, *, keyed: bool, lead_bytes: int = 0) -> float:
        """A frame leaves behind `lead_bytes` delimiters; returns when its last bit leaves. keyed: the
        transmitter has to be keyed for it."""
        airtime_s = self._timing.airtime_s(frame_bytes) + self._timing.bare_s(lead_bytes)
        airtime_s += self._timing.keying_s if keyed else 0.0
        self.end = max(self.end, now) + airtime_s
        self.latest = max(self.latest, now) + airtime_s
        self.airtime_s += airtime_s
        return self.end
