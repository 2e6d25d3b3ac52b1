"""The sender of one object: which frame of the object may leave next, and when.

The OFFER leaves first, then the fragments, then what the REPORTs show as lost, and a question whenever
nothing else is left to send. How much may be in flight, and how often the receiver is asked for REPORTs,
follows from the link's round trip and from the losses that were measured: the air is kept busy, and no more
than that, so that a receiver that dies takes little with it, and a peer that is away is asked little. The
sender knows nothing of other objects, or of whether the peer is there at all.
"""

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
_OFFER_EVERY = 8  # fragments that follow an OFFER without waiting for its answer are in vain if it is lost
_QUICK_ASKS = 12  # questions, 288 B where little is lost; the ones after that follow ever more slowly
_LITTLE_LOSS = 0.05
_MOST_BURST = 3.0
_SLOWER_FROM_S, _SLOWER = 0.25, 1.5
_MAX_ACCEPT_S = 30.0  # the longest pause between two questions about an object that is not yet accepted


class ObjectSender:
    """Sends `object` in this end's `epoch`.

    `ask_at`: when to ask (again), if nothing else can be sent; `asks`: the questions since the receiver last
    reported on it. `fruitless`: the answers in a row that told of losses alone; `is_doubtful`: no fragment of
    that length is known to have passed; `was_recut`: see FragmentSizer. `progress_at`: when the receiver last
    reported more of it; `is_stuck`: this was told.
    """

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
        self._questions: list[int] = []  # seqs of those since the last REPORT, the first ones
        self._unpolled = 0  # fragments sent since the last POLL flag
        self._unoffered = 0  # fragments sent since the last OFFER

    @property
    def is_unheard_of(self) -> bool:
        """Whether the receiver cannot have heard of the object in this epoch, or has forgotten it."""
        return not self._offer_seq and not self.object.in_flight

    # -- what may leave --------------------------------------------------------------------------------

    def next(self) -> tuple[float, Type]:
        """When the next frame may leave, and its type."""
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
        """The frame of that type, which will be frame `seq`."""
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
        """The question to a peer that owes an answer. It takes 24 B; a receiver that never got the OFFER
        answers "unknown". A question about an object that is withdrawn names its digest, as a receiver that
        restarted knows nothing else of it."""
        if self.object.withdrawn is not None:
            return self.frame(Type.CANCEL, 0.0, 0)
        return PendingFrame(Type.POLL, b"", self.object.object_id, poll=True, question=True, is_outgoing=True)

    def data_bytes(self) -> int:
        """The payload bytes of the fragment that would leave next."""
        return len(self.object.fragment(self._next_fragment()))

    def _next_fragment(self) -> int:
        index = self.object.next_fragment(self._loss.expected)
        assert index is not None, "next has looked"
        return index

    def _data(self) -> PendingFrame:
        """It asks for a REPORT if it is the last one that the window allows, and once in each round trip; on
        half-duplex the end of the turn asks instead."""
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
        """A frame of this sender leaves as `seq`, its last bit at `end`."""
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
        """The number of questions that were lost before frame `seq`, which the receiver heard."""
        before = sum(asked < seq for asked in self._questions)
        self._questions = [asked for asked in self._questions if asked > seq]
        return before

    def was_cancelled(self, report: Report) -> bool:
        """Whether the REPORT answers a CANCEL, the only question about an object that is withdrawn."""
        return report.epoch == self._epoch and report.seq >= self._cancel_seq > 0

    def unknown(self, report: Report) -> None:
        """The receiver knows no such object: if it heard the last OFFER's seq, another OFFER is due."""
        if report.epoch != self._epoch or report.seq >= self._offer_seq:
            self.object.meet(OutgoingEvent.UNKNOWN_REPORTED)
            self._offer_seq = 0

    # -- its window, and its patience ------------------------------------------------------------------

    @property
    def _window(self) -> int:
        """The number of fragments that may be in flight.

        It is 1/64 of the object, so that a receiver that is killed takes no more with it. It is at least one
        bandwidth-delay product for each round trip in which a question may be lost, and one more in which the
        last question is answered, so that a lost REPORT does not stall the flow. On half-duplex a turn
        carries 1/16 of the object, or more in the same proportion, because each turn costs two changes of
        direction, and a lost answer costs two more.
        """
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
        """Whether a REPAIR is sent in place of a POLL: it asks as well, it may bring what is missing, and the
        air would have been idle until the next question."""
        if self.object.complete or self._timing.half_duplex or self._loss.expected < _LITTLE_LOSS:
            return False
        return self._timing.fragment_s(self.object.fragment_bytes) <= self._quick_s

    def _patience_s(self) -> float:
        """The pause after the latest question, if nothing else is left to send.

        On a link that loses little the answer is waited for. On one that loses more, a few questions follow
        each other within one round trip, as the idle air is worth less than the round trip. After these they
        follow ever more slowly.
        """
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
        """The number of round trips, with a question in each, of which at least one brings an answer in 99 of
        100 cases."""
        return self._loss.questions * self._loss.burst

    @property
    def _spare_round_trips(self) -> float:
        """The length of a window in round trips: those in which questions may be lost, and one in which the
        last question is answered. Where losses come in bursts there are more, as the answers have bursts
        too."""
        return self._round_trips * min(self._loss.burst, _MOST_BURST) + 1

    @property
    def _answer_s(self) -> float:
        return self._timing.answer_s(self.object.count, busy=self._hearing.is_busy)

    @property
    def _quick_s(self) -> float:
        """The pause between two questions, so short that enough of them leave while one answer is awaited."""
        questions = max(self._loss.questions, min(self.asks, _QUICK_ASKS))
        return max(self._answer_s / questions, 8 * self._timing.airtime_s(OVERHEAD_BYTES))
