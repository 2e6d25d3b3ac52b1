"""What one end knows of its peer: whether it is there and where, whether it owes an answer, and the losses.

On a port where addresses change, an end asks after a silence (docs/wire.md, "On UDP"), and seldom: RFC 8085,
section 3.5, asks for 15 s at least between keep-alives of UDP. A peer that owes an answer for too long is
silent: it is sent questions alone, at intervals that grow to 2 s.

Losses are modelled as a Gilbert channel (E. N. Gilbert, Capacity of a Burst-Noise Channel, BSTJ 39, 1960): a
share of frames lost, in bursts of some mean length."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onboard.wire.events import Event, PeerHeard
from onboard.wire.framing.frame import Frame, Origin, PendingFrame, Type
from onboard.wire.medium.medium_access import RETRY_S, Timing
from onboard.wire.security.security_context import RekeyHandshake

QUIET_S = 15.0
_FIRST_S = 2.0  # after the start, when whatever there is to say has not been answered
_AGAIN_S = 2.0  # without an answer, and twice as long each time
_AT_LAST_S = 60.0  # the longest: 2 frames, 100 B on UDP, a minute
_TOUCH_S = 10.0  # after a proof of the peer's; two turns at their longest are less
_DOUBTFUL = 2  # unanswered in a row, as a frame may be lost

_QUICK_TURNS = 12  # half-duplex: each with a question; later ones follow every 2 s
# Full duplex: the first questions to a silent peer, and how much more slowly the next follow, up to RETRY_S.
# It is worth 1.5 % of 9.6 kbit/s with 40 % lost in bursts of 5, and costs 22 questions, 0.5 kB, a silence.
_SILENT_FIRST_S, _SILENT_SLOWER = 0.25, 1.1

MOST_LOSS = 0.7
"""A link that loses a larger share is as good as down, and no margin makes up for it."""
_FATES = 8  # the weight, in frames, of the first guess that losses are few and single
_REMEMBERED = 512  # beyond this many fates older ones count half
_SHORT = 8  # from this many on, short frames alone give the fates
_BUSY_S = 4.0  # after the last DATA; then the peer's bulk is over


@dataclass(frozen=True, slots=True)
class DeliveryStats:
    """The numbers of frames of one length that were lost and kept."""

    lost: float = 0
    kept: float = 0

    def __add__(self, other: DeliveryStats) -> DeliveryStats:
        return DeliveryStats(self.lost + other.lost, self.kept + other.kept)


class ReceiveStats:
    """Counts the peer's authentic frames. Gaps in the seqs of its present epoch count as losses.

    `epoch`: the peer's, 0 until it was heard; `at`: when the last frame came; `bytes`: on the wire;
    `is_busy`: whether the peer was sending fragments when last heard; `fragment_bytes`: as it offered last, 0
    for none; `bulk_s`: contact time from the first fragment to the last."""

    def __init__(self) -> None:
        self.epoch = self.bytes = self.fragment_bytes = 0
        self.at = -math.inf
        self.is_busy = False
        self._rekeyed = 0
        self._first_seq = self._highest_seq = 0
        self._frames_in_epoch = self._bytes_in_epoch = self._gaps = 0
        self._bulk_from, self._bulk_at = math.inf, -math.inf
        self._short_bytes = self._short_lost = self._short_frames = 0  # while no object was coming

    def heard(
        self, frame: Frame, wire_bytes: int, now: float, link_now: float, *, object_comes: bool = False
    ) -> bool:
        """Count a frame; returns whether its epoch is newer than those before. `object_comes`: the peer may
        have sent fragments, so the length of lost frames is unknown."""
        restarted = frame.epoch > self.epoch
        is_bulk = frame.type in (Type.DATA, Type.REPAIR)
        if is_bulk:
            self._bulk_from, self._bulk_at = min(self._bulk_from, link_now), link_now
        elif not object_comes:
            self._short_frames += 1
            self._short_bytes += wire_bytes
            missed = frame.seq - self._highest_seq - 1  # one less where a frame comes late
            self._short_lost = max(0, self._short_lost + (0 if restarted else max(missed, -1)))
        self.is_busy = is_bulk or link_now - self._bulk_at < _BUSY_S
        if restarted:
            self.epoch, self._first_seq, self._highest_seq = frame.epoch, frame.seq, 0
            self._frames_in_epoch = self._bytes_in_epoch = self._gaps = 0
        self.bytes += wire_bytes
        self._bytes_in_epoch += wire_bytes
        self._gaps += frame.seq > self._highest_seq + 1 and not restarted
        self._highest_seq = max(self._highest_seq, frame.seq)
        self._frames_in_epoch += 1
        self.at = now
        return restarted

    def rekeyed(self) -> None:
        self.epoch = 0
        self._rekeyed += 1

    def order(self, frame: Frame) -> tuple[int, int]:
        """Return a key that orders the peer's frames as they were sent, across its restarts and new salts."""
        return self._rekeyed << 16 | frame.epoch, frame.seq

    @property
    def bulk_s(self) -> float:
        return max(0.0, self._bulk_at - self._bulk_from)

    @property
    def fates(self) -> dict[int, DeliveryStats]:
        """The fates of the peer's frames, by length; lost frames count at the mean length of those that came.
        Enough
        frames that came while no object did are preferred, as long frames are lost first."""
        if self._short_frames >= _SHORT:
            mean_bytes = self._short_bytes // self._short_frames
            return {mean_bytes: DeliveryStats(self._short_lost, self._short_frames)}
        if not self._frames_in_epoch:
            return {}
        mean_bytes = self._bytes_in_epoch // self._frames_in_epoch
        return {mean_bytes: DeliveryStats(max(0, self._lost), self._frames_in_epoch)}

    @property
    def _lost(self) -> int:
        return self._highest_seq - self._first_seq + 1 - self._frames_in_epoch

    @property
    def burst(self) -> float:
        """How many times longer losses last than independent ones would; 1 or more."""
        return max(1.0, (self._lost + _FATES) / (self._gaps + _FATES) * (1 - self.loss))

    @property
    def loss(self) -> float:
        """The share of the peer's frames that were lost since its epoch was first heard."""
        if not self._frames_in_epoch:
            return 0.0
        return max(0.0, 1 - self._frames_in_epoch / (self._highest_seq - self._first_seq + 1))


class LossEstimator:
    """Estimates the losses of this end's frames from what REPORTs settle."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: fragments of another length meet other losses."""
        self._lost = self._bursts = self._settled = 0.0

    def weigh(self, lost: float, bursts: int, settled: float) -> None:
        self._lost += lost
        self._bursts += bursts
        self._settled += settled
        if self._settled > _REMEMBERED:
            self._lost, self._bursts, self._settled = self._lost / 2, self._bursts / 2, self._settled / 2

    @property
    def measured(self) -> float:
        """The loss rate of the latest few hundred fragments whose fate is known."""
        return self._lost / self._settled if self._settled else 0.0

    @property
    def expected(self) -> float:
        """`measured`, discounted for lack of evidence, 0..MOST_LOSS: one frame lost of one says little."""
        return min(self._lost / (self._settled + _FATES), MOST_LOSS)

    @property
    def burst(self) -> float:
        mean_frames = (self._lost + _FATES) / (self._bursts + _FATES)
        return max(1.0, mean_frames * (1 - self.expected))

    @property
    def questions(self) -> int:
        """The number of questions of which at least one is answered in 99 of 100 cases; 2 to 49."""
        unanswered = 1 - (1 - max(self.expected, 0.01)) ** 2
        return max(2, math.ceil(math.log(0.01) / math.log(unanswered)))


class PeerLiveness:
    """Tracks this end's questions: whether the peer owes an answer, and when to ask again. The first
    questions about an object follow its sender's pace. `silent`: the peer has owed an answer for too long;
    `retry_at`: when to ask again, if nothing else may leave. On half-duplex, `spoke`: this turn asked
    something; `answer_due`: this end handed a question over."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._since: float | None = None  # the end of the first question since the peer was heard
        self._misses = 0  # questions since the peer was heard
        self._in_silence = 0  # of these, to a silent peer
        self.silent = self.answer_due = self.spoke = False
        self.retry_at = 0.0

    @property
    def loss(self) -> float:
        """The loss to assume: a half while questions have no answer yet, 0 where nothing is suspected."""
        return 0.5 if self._misses and not self.silent else 0.0

    def asked(self, end: float) -> None:
        if self._since is None:
            self._since = end
        self._misses += 1
        quick = self._timing.half_duplex and self._misses <= _QUICK_TURNS and not self.silent
        patience_s = RETRY_S
        if self.silent and not self._timing.half_duplex:
            self._in_silence += 1
            patience_s = min(_SILENT_FIRST_S * _SILENT_SLOWER ** min(self._in_silence, 64), RETRY_S)
        self.retry_at = end if quick else end + patience_s

    def hand_over(self, end: float) -> None:
        self.answer_due, self.spoke = self.spoke, False
        if self.answer_due:
            self.asked(end)

    def heard(self) -> None:
        self.silent = self.answer_due = False
        self._since = None
        self._misses = self._in_silence = 0

    def silent_at(self, fragments: int) -> float:
        """Return when a peer asked about an object of this many fragments becomes silent; inf for never."""
        if self.silent or self._since is None:
            return math.inf
        return self._since + self._timing.silence_s(fragments)

    def tick(self, now: float, fragments: int) -> None:
        if now >= self.silent_at(fragments):
            self.silent, self.retry_at = True, now


class Presence:
    """Whether the peer is there, and where. `quiet_s`: after this silence it is asked; inf for never.

    `proof_of_life`: whether the last frame proves that the peer is now at its source: it is authentic, and
    the newest so far or a fresh HELLO, which no replay is. `is_asked`: whether the last HELLO proved that, or
    is to be answered because the peer was still; it may be a replay, but costs nobody a turn. `destination`:
    where the last frame goes, None for the peer. `active_at`: when the peer last said more than that it is
    there. `is_reachable`: whether its address is known; until then only answers to HELLOs leave."""

    def __init__(self, greeting: RekeyHandshake, timing: Timing, quiet_s: float, now: float) -> None:
        self.liveness = PeerLiveness(timing)
        self._greeting, self._half_duplex = greeting, timing.half_duplex
        self._quiet_s = self._interval_s = quiet_s
        self._asked = 0  # HELLOs without an answer
        self._owes_sign = False  # the peer asked, or answered a HELLO, a replay for all it knows
        self._ask_at = now + _FIRST_S if quiet_s < math.inf else math.inf
        # When a POLL asks first, in half of HELLO's bytes with its answer; inf where it has, or need not.
        self._poll_at, self._polled = math.inf, False
        self.is_reachable = True
        self.proof_of_life = self.is_asked = False
        self.destination: Origin = None
        self.active_at = -math.inf
        self._touch_s = -math.inf  # when the peer proved last that it is there

    @property
    def in_doubt(self) -> bool:
        """Whether the peer left more than one question unanswered: it may be elsewhere."""
        return self.liveness.silent or self._asked >= _DOUBTFUL or self._greeting.in_doubt

    @property
    def alone(self) -> bool:
        """Whether nothing may leave but the frames of `frame`."""
        return not self.is_reachable or self._greeting.is_unsure

    # -- what may leave --------------------------------------------------------------------------------

    def frame_at(self) -> float:
        if not self.is_reachable:
            return -math.inf if self._greeting.owes else math.inf
        due_at = self._greeting.due_at()
        if self._greeting.is_unsure or due_at == -math.inf:
            return due_at
        if self._owes_sign:
            return -math.inf
        return math.inf if self._greeting.is_settling else min(self._poll_at, self._ask_at)

    def frame(self, now: float) -> PendingFrame:
        is_due = now >= self._ask_at and not self._owes_sign
        if is_due or self.alone or self._greeting.due_at() == -math.inf:
            return self._greeting.say()
        return PendingFrame(Type.POLL, poll=not self._owes_sign)

    def sent(self, send: PendingFrame, end: float) -> None:
        if send.type is not Type.HELLO:
            if send.type is Type.POLL and send.poll and not send.object_id:
                self._poll_at, self._polled = math.inf, True
            self._owes_sign = False
            return
        if not self._greeting.owes and not self._greeting.is_unsure and self._quiet_s < math.inf:
            self._ask_at = end + min(_AGAIN_S * 2.0**self._asked, _AT_LAST_S)
            self._asked = min(self._asked + 1, 16)
        self._greeting.said(end)

    def ask(self) -> None:
        """Ask the peer at once: it may be at an address that was not tried yet."""
        self._ask_at = -math.inf

    # -- what was heard --------------------------------------------------------------------------------

    def greet(
        self, raw: bytes, now: float, link_now: float, origin: Origin
    ) -> tuple[Frame | None, list[Event]]:
        """Take in a HELLO, or any frame while there is no salt; the frame is None if it is not one."""
        frame = self._greeting.open(raw)
        if frame is None:
            return None, []
        owed = self._greeting.owes
        in_touch = self._half_duplex and link_now < self._touch_s + _TOUCH_S
        events = self._greeting.handle(frame, link_now, origin, in_touch=in_touch)
        if self.heard(frame, now, link_now, proves=self._greeting.is_live):
            events.append(PeerHeard())
        is_new = self._greeting.owes and not owed
        self.is_asked = self.proof_of_life or (is_new and not in_touch)
        return frame, events

    def heard(self, frame: Frame, now: float, link_now: float, *, proves: bool) -> bool:
        """Note an authentic frame; returns whether it ends a silence. `proves`: as in `proof_of_life`."""
        self.proof_of_life = proves
        is_hello = frame.type is Type.HELLO
        if is_hello and not proves:
            return False
        was_silent = self.liveness.silent
        self.liveness.heard()
        if proves:
            self._touch_s = link_now
        is_about_none = frame.type is Type.POLL and not frame.object_id
        is_question, is_sign = is_about_none and frame.poll, is_hello or is_about_none
        if not is_sign:
            self.active_at = now
        if not is_sign and frame.type is not Type.MSG:  # a board sends its health once a minute
            self._interval_s = self._quiet_s
        elif self._asked or self._polled:
            self._interval_s = min(2 * self._interval_s, _AT_LAST_S)
        self._owes_sign |= is_question or (is_hello and self._asked > 0)
        self._asked, self._polled = 0, False
        self._ask_at = link_now + self._interval_s
        # The peer that asked will ask again before this end's HELLO is due: one of the two is enough.
        is_idle = self._interval_s > self._quiet_s and not is_question
        self._poll_at = self._ask_at - _AGAIN_S if is_idle else math.inf
        return was_silent
