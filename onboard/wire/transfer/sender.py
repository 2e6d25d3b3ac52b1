"""The sender of one object: which of its frames may leave next, and when.

The OFFER leaves first, then the fragments, then what REPORTs show as lost, and a question whenever nothing
else is left. The window and the pace of the questions follow from the link's round trip and the measured
losses. The sender knows nothing of other objects, or of whether the peer is there."""

from __future__ import annotations

import math
from dataclasses import replace

from onboard.wire.framing.frame import OVERHEAD_BYTES, PendingFrame, Type
from onboard.wire.medium.medium_access import BURST_S, RETRY_S, Timing
from onboard.wire.messages import Cancel, Report
from onboard.wire.transfer.outgoing import Outgoing
from onboard.wire.transfer.peer import MOST_LOSS, LossEstimator, ReceiveStats
from onboard.wire.transfer.states import OutgoingEvent

BULK = (Type.DATA, Type.REPAIR)
_QUESTIONS = 16
_PROBES = 2  # fragments in flight where none of their length ever passed; one where some were lost
_OFFER_EVERY = 8  # fragments sent before an OFFER is answered are in vain if it is lost
_QUICK_ASKS = 12  # questions, 288 B where little is lost; later ones follow ever more slowly
_LITTLE_LOSS = 0.05
_MOST_BURST = 3.0
_SLOWER_FROM_S, _SLOWER = 0.25, 1.5
_MAX_ACCEPT_S = 30.0  # the longest pause between questions about a complete object that is not accepted


class ObjectSender:
    """Sends `object` in this end's `epoch`. `ask_at`: when to ask (again), if nothing else can be sent;
    `asks`: the questions since the receiver last reported. `fruitless`: the REPORTs in a row that told of
    losses alone; `is_doubtful`: no fragment of this length is known to have passed; `was_recut`: the object
    was refragmented. `progress_at`: when the receiver last reported more; `is_stuck`: that was told."""

    def __init__(
        self,
        outgoing: Outgoing,
        timing: Timing,
        hearing: ReceiveStats,
        loss: LossEstimator,
        *,
        epoch: int,
        now: float,
        was_recut: bool = False,
    ) -> None:
        self.object = outgoing
        self.was_recut = self.is_doubtful = was_recut
        self.fruitless = 0.0
        self.progress_at, self.is_stuck = now, False
        self.ask_at = 0.0
        self.asks = 0
        self._timing, self._hearing, self._loss, self._epoch = timing, hearing, loss, epoch
        self._offer_seq = 0  # seq of the last OFFER; 0 when an OFFER is due
        self._cancel_seq = 0  # seq of the first CANCEL
        self._questions: list[int] = []  # the seqs of the first ones since the last REPORT
        self._unpolled = 0  # fragments sent since the last POLL flag
        self._unoffered = 0  # fragments sent since the last OFFER

    @property
    def is_unheard_of(self) -> bool:
        """Whether the receiver cannot know of the object: not offered in this epoch, or forgotten."""
        return not self._offer_seq and not self.object.in_flight

    # -- what may leave --------------------------------------------------------------------------------

    def next(self) -> tuple[float, Type]:
        outgoing = self.object
        if outgoing.withdrawn is not None:
            return self.ask_at, Type.CANCEL
        if not self._offer_seq or (not outgoing.answered and self._unoffered >= _OFFER_EVERY):
            return -math.inf, Type.OFFER
        if outgoing.in_flight < self._window:
            if outgoing.next_fragment(self._loss.expected) is not None:
                return -math.inf, Type.DATA
            if self._repairs and outgoing.deficit(self._loss.expected, self._loss.burst)[0] > 0:
                return -math.inf, Type.REPAIR
        return self.ask_at, Type.POLL if outgoing.answered else Type.OFFER

    def frame(self, type_: Type, now: float, seq: int) -> PendingFrame:
        outgoing = self.object
        if type_ is Type.DATA:
            return self._data()
        if type_ is Type.REPAIR:
            return self._repair(seq)
        if type_ is Type.POLL and self._repairs and self._repair_asks:
            return replace(self._repair(seq), question=True)
        payload = b""
        if type_ is Type.OFFER:
            payload = outgoing.offer(now)
        elif type_ is Type.CANCEL and outgoing.withdrawn is not None:
            payload = Cancel(outgoing.digest, outgoing.withdrawn).encode()
        return PendingFrame(type_, payload, outgoing.object_id, poll=True, question=True, is_outgoing=True)

    def question(self) -> PendingFrame:
        """Return the 24-byte question to a peer that owes an answer; without the OFFER it answers "unknown".
        A withdrawn object's is CANCEL, as its digest is all that a restarted receiver knows."""
        if self.object.withdrawn is not None:
            return self.frame(Type.CANCEL, 0.0, 0)
        return PendingFrame(Type.POLL, b"", self.object.object_id, poll=True, question=True, is_outgoing=True)

    def data_bytes(self) -> int:
        return len(self.object.fragment(self._next_fragment()))

    def _next_fragment(self) -> int:
        index = self.object.next_fragment(self._loss.expected)
        assert index is not None, "next has looked"
        return index

    def _data(self) -> PendingFrame:
        """It polls as the window's last, and once a round trip; on half-duplex the turn's end does."""
        outgoing, index, window = self.object, self._next_fragment(), self._window
        poll = not self._timing.half_duplex and (
            self.is_doubtful
            or outgoing.to_send.bit_count() == 1
            or outgoing.in_flight + 1 >= window
            or self._unpolled + 1 >= window // self._spare_round_trips
        )
        return self._bulk(Type.DATA, outgoing.fragment(index), index, poll)

    def _repair(self, seq: int) -> PendingFrame:
        _, generation = self.object.deficit(self._loss.expected, self._loss.burst)
        payload = self.object.repair(generation, (self._epoch, seq))
        return self._bulk(Type.REPAIR, payload, generation << 8, not self._timing.half_duplex)

    def _bulk(self, type_: Type, payload: bytes, fragment: int, poll: bool) -> PendingFrame:
        object_id, priority = self.object.object_id, self.object.priority
        return PendingFrame(type_, payload, object_id, fragment, priority, poll, is_outgoing=True)

    # -- what befalls it -------------------------------------------------------------------------------

    def sent(self, send: PendingFrame, seq: int, end: float) -> None:
        if send.question and len(self._questions) < _QUESTIONS:
            self._questions.append(seq)
        self.asks += send.question and not (send.type is Type.OFFER and self._unoffered)
        if send.type is Type.REPAIR:
            self.object.repair_sent(send.fragment >> 8, seq)
        elif send.type is Type.DATA:
            self.object.sent(send.fragment, seq)
        if send.type in BULK:
            self._unpolled = 0 if send.poll else self._unpolled + 1
            self._unoffered += 1
        elif send.type is Type.OFFER:
            self.object.meet(OutgoingEvent.OFFER_SENT)
            self._offer_seq = seq
            self._unoffered = 0
        elif send.type is Type.CANCEL:
            self._cancel_seq = self._cancel_seq or seq
        if send.poll or self._timing.half_duplex:
            self.ask_at = end + self._patience_s()

    def missed(self, seq: int) -> int:
        """Return how many questions were lost before frame `seq`, which the receiver heard."""
        before = sum(asked < seq for asked in self._questions)
        self._questions = [asked for asked in self._questions if asked > seq]
        return before

    def was_cancelled(self, report: Report) -> bool:
        """Return whether the REPORT answers a CANCEL, the only question about a withdrawn object."""
        return report.epoch == self._epoch and report.seq >= self._cancel_seq > 0

    def unknown(self, report: Report) -> None:
        """Offer the object again if the receiver that does not know it heard the last OFFER's seq."""
        if report.epoch != self._epoch or report.seq >= self._offer_seq:
            self.object.meet(OutgoingEvent.UNKNOWN_REPORTED)
            self._offer_seq = 0

    # -- its window, and its patience ------------------------------------------------------------------

    @property
    def _window(self) -> int:
        """The number of fragments that may be in flight.

        It is 1/64 of the object, so that a receiver that is killed takes no more with it, and at least one
        bandwidth-delay product for each round trip in which a question may be lost and for the last answer. A
        half-duplex turn carries 1/16, or more where answers are lost: each costs two changes of direction."""
        outgoing, count = self.object, self.object.count
        round_trip = self._timing.round_trip_fragments(count, outgoing.fragment_bytes)
        if not outgoing.answered:
            # One round trip after an OFFER is filled and no more: the receiver may hold the whole object.
            waits = self._timing.waits_for_answer(len(outgoing.payload))
            window = 0 if waits else max(4, round_trip + 1)
        elif self._timing.half_duplex:
            window = max(8, round(count / 16 * self._round_trips / 2))
        else:
            window = max(4, round(self._spare_round_trips * round_trip), count // 64)
        return min(window, 1 if self.fruitless else _PROBES) if self.is_doubtful else window

    @property
    def _repairs(self) -> bool:
        """Whether repairs are worth sending: where nearly all frames are lost, repairs are lost as well."""
        return not self.is_doubtful and self._loss.measured <= MOST_LOSS

    @property
    def _repair_asks(self) -> bool:
        """Whether a REPAIR replaces a POLL: it asks as well and may fill a hole, in air otherwise idle."""
        if self.object.complete or self._timing.half_duplex or self._loss.expected < _LITTLE_LOSS:
            return False
        return self._timing.fragment_s(self.object.fragment_bytes) <= self._quick_s

    def _patience_s(self) -> float:
        """Return the pause after the latest question, if nothing else is left to send. On a link that loses
        little, the answer is awaited. On one that loses more, a few questions follow within one round trip,
        as the air is idle; later ones follow ever more slowly."""
        if self.object.complete:
            return min(RETRY_S * 2.0 ** min(self.asks, 8), _MAX_ACCEPT_S)
        if self._timing.half_duplex:
            return BURST_S  # not again in this turn; the next one may ask at once
        if self.asks <= 1 and self._loss.measured < _LITTLE_LOSS:
            return self._answer_s
        slower = self.asks - round(_QUICK_ASKS * self._round_trips / 2)
        if slower <= 0:
            return min(self._quick_s, RETRY_S)
        return min(max(self._quick_s, _SLOWER_FROM_S) * _SLOWER ** min(slower, 32), RETRY_S)

    @property
    def _round_trips(self) -> float:
        """The round trips, with a question in each, for at least one answer in 99 of 100 cases."""
        return self._loss.questions * self._loss.burst

    @property
    def _spare_round_trips(self) -> float:
        """The window's length in round trips: those that may lose their question, and one to answer the last.
        Bursts of losses need more, as the answers have bursts too."""
        return self._round_trips * min(self._loss.burst, _MOST_BURST) + 1

    @property
    def _answer_s(self) -> float:
        return self._timing.answer_s(self.object.count, busy=self._hearing.is_busy)

    @property
    def _quick_s(self) -> float:
        """The pause between questions of which enough leave while one answer is awaited."""
        questions = max(self._loss.questions, min(self.asks, _QUICK_ASKS))
        return max(self._answer_s / questions, 8 * self._timing.airtime_s(OVERHEAD_BYTES))
