"""The objects that one end sends: what may leave next, and when to ask how far the other end is.

An object is offered, its fragments go out once and in order, what a REPORT shows as lost goes out again,
and it ends by DONE, CANCEL or its deadline. No more of it than a window is ever out of the receiver's
REPORTs, so that a receiver that dies takes little with it. Questions (POLL, or the POLL flag on DATA) keep
the REPORTs coming. To a peer that does not answer, one POLL goes every 2 s, and nothing else.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onboard.wire.cadence import Cadence
from onboard.wire.events import Cancelled, Delivered, Event, Expired, Progress
from onboard.wire.frame import GROUP_ID, Type
from onboard.wire.messages import Cancel, Done, Offer, Reason
from onboard.wire.report import Report
from onboard.wire.timing import RETRY_S, Timing
from onboard.wire.transfer import Outgoing

_BULK = (Type.DATA, Type.REPAIR)
_AT_WORK = 4  # objects on their way at a time; the others have not been offered yet
_OFFER_EVERY = 8  # fragments that follow an OFFER without waiting for its answer are in vain if it is lost
_QUICK_TURNS = 12  # half-duplex: a question in each, and then every 2 s
_MAX_ID = GROUP_ID - 1


@dataclass(frozen=True, slots=True)
class Send:
    """A frame that may leave."""

    type: Type
    payload: bytes = b""
    object_id: int = 0
    fragment: int = 0
    priority: int = 0
    poll: bool = False
    question: bool = False  # and it is what the frame is for
    about: Outgoing | None = None


@dataclass(slots=True)
class _Talk:
    """Where the conversation about one outgoing object stands."""

    object: Outgoing
    offer_seq: int = 0  # of the last OFFER; 0 when one is due
    ask_at: float = 0.0  # when to ask (again), if nothing else can be sent
    asks: int = 0  # since the receiver last spoke of this object
    unpolled: int = 0  # fragments sent since the last POLL flag
    unoffered: int = 0  # and since the last OFFER


class Outbox:
    """All outgoing objects of a session, by digest in `talks`."""

    def __init__(self, timing: Timing, *, epoch: int, slack: int) -> None:
        self._timing = timing
        self._epoch, self._slack = epoch, slack
        self._talks: dict[bytes, _Talk] = {}
        self._by_id: dict[int, _Talk] = {}
        self._last_id = 0
        self._asked_since: float | None = None  # end of the first question since the peer was heard
        self._misses = 0  # questions since the peer was heard
        self._retry_at = 0.0
        self._spoke = False  # half-duplex: in this turn, something that wants an answer
        self._handed_over = False  # half-duplex: the turn in which it was is over
        self.silent = False
        self.fragments_sent = self.fragments_resent = self.repairs_sent = self.orphans = 0
        self._peer_epoch = 0  # of the last REPORT
        self._cadence = Cadence(timing)
        self._loss = self._cadence.loss
        self._acknowledged_bytes = 0
        self._active_s = 0.0
        self._active_from: float | None = None

    # -- the application's side ------------------------------------------------------------------------

    def offer(self, kind: int, payload: bytes, now: float, *, priority: int, deadline: float) -> bytes:
        """Put an object on its way, once; returns its digest. Raises ValueError if it has too many
        fragments for this link."""
        outgoing = Outgoing(kind, payload, self._timing.payload_bytes, priority=priority, deadline=deadline)
        known = self._talks.get(outgoing.digest)
        if known is not None and known.object.withdrawn is None:
            return outgoing.digest
        if known is not None:
            self._forget(known, now)
        if len(self._talks) >= _MAX_ID // 2:
            raise ValueError(f"{len(self._talks)} objects are on their way already")
        self._last_id = self._last_id % _MAX_ID + 1
        while self._last_id in self._by_id:
            self._last_id = self._last_id % _MAX_ID + 1
        outgoing.object_id = self._last_id
        talk = _Talk(outgoing)
        self._talks[outgoing.digest] = self._by_id[outgoing.object_id] = talk
        if self._active_from is None:
            self._active_from = now
        return outgoing.digest

    def cancel(self, digest: bytes, now: float, reason: Reason = Reason.WITHDRAWN) -> None:
        """Stop sending an object. The receiver is told until it answers; an unknown digest is no error."""
        talk = self._talks.get(digest)
        if talk is None or talk.object.withdrawn is not None:
            return
        if talk.offer_seq == 0 and not talk.object.in_flight:
            self._forget(talk, now)  # the receiver never heard of it in this epoch
            return
        talk.object.withdrawn = reason
        talk.object.deadline = math.inf
        talk.ask_at, talk.asks = now, 0

    def objects(self) -> Iterator[Outgoing]:
        """Those on their way or waiting for it, withdrawn ones left out."""
        return (talk.object for talk in self._talks.values() if talk.object.withdrawn is None)

    def progress(self) -> Iterator[Progress]:
        """How far each object is, at the link's rate and measured loss."""
        for outgoing in self.objects():
            held, size = outgoing.held.bit_count(), len(outgoing.payload)
            left_s = (outgoing.count - held) * self._timing.frame_s / max(1 - self.loss, 0.01)
            yield Progress(outgoing.digest, outgoing.kind, False, size, outgoing.count, held, left_s)

    def goodput_bps(self, now: float) -> float:
        """Payload bits that the peer has said to hold, over the time in which some object was on its way."""
        active_s = self._active_s + (0.0 if self._active_from is None else now - self._active_from)
        return 8 * self._acknowledged_bytes / active_s if active_s > 0 else 0.0

    @property
    def loss(self) -> float:
        """Share of fragments that the latest few hundred fates in REPORTs showed as lost."""
        return self._loss.measured

    # -- what may leave --------------------------------------------------------------------------------

    @property
    def held_back(self) -> bool:
        """Whether only what `control` gives may leave: the peer owes an answer."""
        return bool(self._talks) and (self.silent or self._handed_over)

    def control_at(self) -> float:
        """When `control` has a frame next, inf for never as things stand."""
        if self.held_back:
            return math.inf if self._spoke else self._retry_at  # one question a turn
        return min((at for at, type_, _ in self._plan() if type_ not in _BULK), default=math.inf)

    def control(self, now: float, seq: int) -> Send | None:
        """The OFFER, POLL or CANCEL that is due; it will be frame `seq`."""
        plan = [] if now < self.control_at() else self._plan()
        if plan and self.held_back:
            return self._question(plan[0][2])
        for at, type_, talk in plan:
            if at <= now and type_ not in _BULK:
                return self._control_frame(type_, talk, now, seq)
        return None

    def has_bulk(self) -> bool:
        """Whether `bulk` has a frame."""
        return any(type_ in _BULK for _, type_, _ in self._plan())

    def bulk(self, seq: int) -> Send | None:
        """The next DATA: of the most urgent object, the one with least to go first. Else a REPAIR.
        It will be frame `seq`."""
        plan = self._plan()
        for _, type_, talk in plan:
            if type_ is Type.DATA:
                return self._data_frame(talk)
        for _, type_, talk in plan:
            if type_ is Type.REPAIR:
                return self._repair_frame(talk, seq)
        return None

    def sent(self, send: Send, seq: int, end: float) -> None:
        """A frame that `control` or `bulk` gave leaves as `seq`, its last bit at `end`."""
        if send.about is None:
            return
        talk = self._by_id[send.object_id]
        self._spoke = self._timing.half_duplex
        talk.asks += send.question and not (send.type is Type.OFFER and talk.unoffered)
        if send.type in _BULK:
            self._bulk_sent(send, talk, seq)
            talk.unpolled = 0 if send.poll else talk.unpolled + 1
            talk.unoffered += 1
            if not send.poll and not self._timing.half_duplex:
                return
        elif send.type is Type.OFFER:
            talk.offer_seq = seq
            talk.unoffered = 0
        talk.ask_at = end + self._cadence.patience_s(talk.object, talk.asks)
        if not self._timing.half_duplex:
            self._note_question(end)

    @property
    def asked(self) -> int | None:
        """Half-duplex: fragments of the largest object at work if this turn wants an answer, else None."""
        if not self._spoke:
            return None
        return max((talk.object.count for talk in self._talks.values()), default=0)

    @property
    def asks_about(self) -> int:
        """The object id of the most urgent object that an answer is wanted about, 0 for none."""
        plan = self._plan() if self._spoke else []
        return plan[0][2].object.object_id if plan else 0

    def handed_over(self, end: float) -> None:
        """Half-duplex: this end's turn is over at `end`. What it asked may be asked again in the next."""
        self._handed_over, self._spoke = self._spoke, False
        for talk in self._talks.values():
            if not talk.object.complete:
                talk.ask_at = min(talk.ask_at, end)
        if self._handed_over:
            self._note_question(end)

    def peer_is_busy(self, busy: bool) -> None:
        """Whether the peer sends bulk as well."""
        self._cadence.peer_is_busy = busy

    # -- what was heard --------------------------------------------------------------------------------

    def heard(self) -> None:
        """Something authentic came from the peer: go on at once."""
        self.silent = self._handed_over = False
        self._asked_since = None
        self._misses = 0

    def on_report(self, report: Report, object_id: int, heard: tuple[int, int], now: float) -> None:
        """What the peer holds of an object; one that makes no sense only counts."""
        talk = self._by_id.get(object_id)
        if talk is None:
            self.orphans += 1
            return
        if report.unknown:
            self._on_unknown(talk, report, now)
            return
        outgoing = talk.object
        before = outgoing.remaining_bytes
        verdict = outgoing.report(report, heard=heard, epoch=self._epoch, slack=self._slack)
        if verdict is None:
            self.orphans += 1
            return
        if heard[0] == self._peer_epoch:  # what was lost on a peer that was off says nothing of the link
            self._loss.weigh(verdict)
        self._peer_epoch = heard[0]
        self._acknowledged_bytes += max(0, before - outgoing.remaining_bytes)
        if outgoing.withdrawn is not None:
            return  # CANCEL goes again when it is due
        if not outgoing.complete:
            talk.asks = 0
        else:
            talk.ask_at = max(talk.ask_at, now + RETRY_S)  # its application is storing it

    def on_done(self, done: Done, now: float) -> list[Event]:
        """The peer has an object durably."""
        talk = self._talks.get(done.digest)
        if talk is None:
            self.orphans += 1
            return []
        self._acknowledged_bytes += talk.object.remaining_bytes
        self._forget(talk, now)
        return [] if talk.object.withdrawn is not None else [Delivered(done.digest)]

    def on_cancel(self, cancel: Cancel, object_id: int, now: float) -> list[Event]:
        """The peer will not take an object."""
        talk = self._talks.get(cancel.digest)
        if talk is None or talk.object.object_id != object_id:
            self.orphans += 1
            return []
        self._forget(talk, now)
        return [] if talk.object.withdrawn is not None else [Cancelled(cancel.digest, cancel.reason)]

    def tick(self, now: float) -> list[Event]:
        """Deadlines that have passed, and silence."""
        late = [talk.object.digest for talk in self._talks.values() if talk.object.deadline <= now]
        for digest in late:
            self.cancel(digest, now, Reason.EXPIRED)
        if not self.silent and now >= self._silent_at():
            self.silent = True
            self._retry_at = now
        return [Expired(digest) for digest in late]

    def tick_at(self) -> float:
        """When `tick` next has something to do."""
        deadline = min((talk.object.deadline for talk in self._talks.values()), default=math.inf)
        return min(deadline, math.inf if self.silent else self._silent_at())

    # -- one rule each ---------------------------------------------------------------------------------

    def _plan(self) -> list[tuple[float, Type, _Talk]]:
        """For each object at work, the most urgent first, when which frame of it may leave."""
        talks = list(self._talks.values())
        if len(talks) > 1:
            whole = [talk for talk in talks if talk.object.complete]  # they only wait for DONE
            talks = heapq.nsmallest(_AT_WORK, (t for t in talks if not t.object.complete), key=_urgency)
            talks += whole
        return [(*self._next(talk), talk) for talk in talks]

    def _next(self, talk: _Talk) -> tuple[float, Type]:
        outgoing = talk.object
        if outgoing.withdrawn is not None:
            return talk.ask_at, Type.CANCEL
        if talk.offer_seq == 0 or (not outgoing.answered and talk.unoffered >= _OFFER_EVERY):
            return -math.inf, Type.OFFER
        if outgoing.in_flight < self._cadence.window(outgoing):
            if outgoing.next_fragment(self._loss.expected) is not None:
                return -math.inf, Type.DATA
            if outgoing.lacking(self._loss.expected, self._loss.burst)[0] > 0:
                return -math.inf, Type.REPAIR
        return talk.ask_at, Type.POLL if outgoing.answered else Type.OFFER

    def _data_frame(self, talk: _Talk) -> Send:
        outgoing = talk.object
        index = outgoing.next_fragment(self._loss.expected)
        assert index is not None, "_next has looked"
        poll = self._cadence.wants_report(outgoing, talk.unpolled, last=outgoing.to_send.bit_count() == 1)
        payload = outgoing.fragment(index)
        return Send(Type.DATA, payload, outgoing.object_id, index, outgoing.priority, poll, about=outgoing)

    def _repair_frame(self, talk: _Talk, seq: int) -> Send:
        outgoing = talk.object
        _, generation = outgoing.lacking(self._loss.expected, self._loss.burst)
        payload = outgoing.repair(generation, (self._epoch, seq))
        poll = self._cadence.wants_report(outgoing, talk.unpolled, last=True)
        return Send(
            Type.REPAIR, payload, outgoing.object_id, generation << 8, outgoing.priority, poll, about=outgoing
        )

    def _bulk_sent(self, send: Send, talk: _Talk, seq: int) -> None:
        if send.type is Type.REPAIR:
            talk.object.repair_sent(send.fragment >> 8, seq)
            self.repairs_sent += 1
        else:
            resent = talk.object.resent
            talk.object.sent(send.fragment, seq)
            self.fragments_sent += 1
            self.fragments_resent += talk.object.resent - resent

    def _control_frame(self, type_: Type, talk: _Talk, now: float, seq: int) -> Send:
        outgoing = talk.object
        payload = b""
        if type_ is Type.POLL and self._cadence.repair_asks(outgoing, talk.asks):
            return replace(self._repair_frame(talk, seq), question=True)
        if type_ is Type.OFFER:
            left_s = 0 if math.isinf(outgoing.deadline) else max(1, math.ceil(outgoing.deadline - now))
            payload = Offer(
                outgoing.digest, len(outgoing.payload), outgoing.fragment_bytes, outgoing.kind, left_s
            ).encode()
        elif type_ is Type.CANCEL and outgoing.withdrawn is not None:
            payload = Cancel(outgoing.digest, outgoing.withdrawn).encode()
        return Send(type_, payload, outgoing.object_id, poll=True, question=True, about=outgoing)

    def _question(self, talk: _Talk) -> Send:
        """To a peer that owes an answer: 24 B, and it says "unknown" if the OFFER never came."""
        return Send(Type.POLL, b"", talk.object.object_id, poll=True, question=True, about=talk.object)

    def _note_question(self, end: float) -> None:
        if self._asked_since is None:
            self._asked_since = end
        self._misses += 1
        quick = self._timing.half_duplex and self._misses <= _QUICK_TURNS and not self.silent
        self._retry_at = end if quick else end + RETRY_S

    def _silent_at(self) -> float:
        if self._asked_since is None or not self._talks:
            return math.inf
        most = max(talk.object.count for talk in self._talks.values())
        return self._asked_since + self._timing.silence_s(most)

    def _on_unknown(self, talk: _Talk, report: Report, now: float) -> None:
        if talk.object.withdrawn is not None:
            self._forget(talk, now)
        elif report.epoch != self._epoch or report.seq >= talk.offer_seq:  # it knew of the last OFFER
            talk.object.unknown()
            talk.offer_seq = 0

    def _forget(self, talk: _Talk, now: float) -> None:
        del self._talks[talk.object.digest]
        del self._by_id[talk.object.object_id]
        if not self._talks and self._active_from is not None:
            self._active_s += now - self._active_from
            self._active_from = None


def _urgency(talk: _Talk) -> tuple[int, int, int]:
    return talk.object.priority, talk.object.remaining_bytes, talk.object.object_id
