"""The sender of one object: which frame of the object may leave next, and when.

The OFFER leaves first, then the fragments, then what the REPORTs show as lost, and a question whenever
nothing else is left to send. The sender knows nothing of other objects, or of whether the peer is there at
all.
"""

from __future__ import annotations

import math
from dataclasses import replace

from onboard.wire.framing.frame import PendingFrame, Type
from onboard.wire.messages import Cancel, Offer
from onboard.wire.transfer.peer import MOST_LOSS
from onboard.wire.transfer.report import Report
from onboard.wire.transfer.states import OutgoingEvent
from onboard.wire.transfer.transfer import Outgoing
from onboard.wire.transfer.window import SendWindow

BULK = (Type.DATA, Type.REPAIR)
_QUESTIONS = 16
_PROBES = 2  # fragments in flight where none of their length ever passed; one where some were lost
_OFFER_EVERY = 8  # fragments that follow an OFFER without waiting for its answer are in vain if it is lost


class ObjectSender:
    """Sends `object`, in this end's `epoch`. `ask_at`: when to ask (again), if nothing else can be sent;
    `asks`: the questions since the receiver last reported on it. `fruitless`: the answers in a row that told
    of losses alone; `is_doubtful`: no fragment of that length is known to have passed; `was_recut`: see
    Fitting. `progress_at`: when the receiver last reported more of it."""

    def __init__(
        self,
        outgoing: Outgoing,
        pace: SendWindow,
        epoch: int,
        now: float = 0.0,
        *,
        was_recut: bool = False,
    ) -> None:
        self.object = outgoing
        self.was_recut, self.is_doubtful = was_recut, was_recut
        self.fruitless = 0.0
        self.progress_at, self.is_stuck = now, False
        self.ask_at = 0.0
        self.asks = 0
        self._pace, self._loss, self._epoch = pace, pace.loss, epoch
        self._offer_seq = 0  # seq of the last OFFER; 0 when an OFFER is due
        self._cancel_seq = 0  # seq of the first CANCEL
        self._questions: list[int] = []  # seqs of those since the last REPORT, the first ones
        self._unpolled = 0  # fragments sent since the last POLL flag
        self._unoffered = 0  # fragments sent since the last OFFER

    @property
    def is_unheard_of(self) -> bool:
        """Whether the receiver cannot have heard of the object in this epoch, or has forgotten it."""
        return self._offer_is_due and not self.object.in_flight

    @property
    def _offer_is_due(self) -> bool:
        return self._offer_seq == 0

    def next(self) -> tuple[float, Type]:
        """When the next frame may leave, and its type."""
        outgoing = self.object
        if outgoing.withdrawn is not None:
            return self.ask_at, Type.CANCEL
        if self._offer_is_due or (not outgoing.answered and self._unoffered >= _OFFER_EVERY):
            return -math.inf, Type.OFFER
        if outgoing.in_flight < self._window():
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
        if type_ is Type.POLL and self._repairs and self._pace.repair_asks(outgoing, self.asks):
            return replace(self._repair(seq), question=True)
        payload = b""
        if type_ is Type.OFFER:
            left_s = 0 if math.isinf(outgoing.deadline) else max(1, math.ceil(outgoing.deadline - now))
            payload = Offer(
                outgoing.digest, len(outgoing.payload), outgoing.fragment_bytes, outgoing.kind, left_s
            ).encode()
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
        if send.poll or self._pace.by_turns:
            self.ask_at = end + self._pace.patience_s(self.object, self.asks)

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

    @property
    def _repairs(self) -> bool:
        """Whether repairs are worth sending: where nearly all frames are lost, repairs are lost as well."""
        return not self.is_doubtful and self._loss.measured <= MOST_LOSS

    def _window(self) -> int:
        window = self._pace.window(self.object)
        return min(window, 1 if self.fruitless else _PROBES) if self.is_doubtful else window

    def _next_fragment(self) -> int:
        index = self.object.next_fragment(self._loss.expected)
        assert index is not None, "next has looked"
        return index

    def _data(self) -> PendingFrame:
        outgoing, index = self.object, self._next_fragment()
        poll = self._pace.wants_report(outgoing, self._unpolled, last=outgoing.to_send.bit_count() == 1)
        poll = poll or (self.is_doubtful and not self._pace.by_turns)
        payload = outgoing.fragment(index)
        return self._bulk(Type.DATA, payload, index, poll)

    def _repair(self, seq: int) -> PendingFrame:
        outgoing = self.object
        _, generation = outgoing.deficit(self._loss.expected, self._loss.burst)
        payload = outgoing.repair(generation, (self._epoch, seq))
        poll = self._pace.wants_report(outgoing, self._unpolled, last=True)
        return self._bulk(Type.REPAIR, payload, generation << 8, poll)

    def _bulk(self, type_: Type, payload: bytes, fragment: int, poll: bool) -> PendingFrame:
        object_id, priority = self.object.object_id, self.object.priority
        return PendingFrame(type_, payload, object_id, fragment, priority, poll, is_outgoing=True)
