"""The objects that one end sends: what may leave next, and when to ask how far the other end is.

An object is offered, its fragments go out once and in order, what a REPORT shows as lost goes out again,
and it ends by DONE, CANCEL or its deadline. No more of it than a window is ever out of the receiver's
REPORTs, so that a receiver that dies takes little with it. Questions (POLL, or the POLL flag on DATA) keep
the REPORTs coming. To a peer that does not answer, a POLL goes now and then, and nothing else.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping

from hw_profiles import Link
from onboard.wire.events import Cancelled, Delivered, Event, Expired, Progress, Recut, Stuck
from onboard.wire.framing.frame import GROUP_ID, OVERHEAD_BYTES, Type
from onboard.wire.medium.timing import RETRY_S, Timing
from onboard.wire.messages import Cancel, Done, Reason, digest
from onboard.wire.transfer.cadence import SendWindow
from onboard.wire.transfer.fitting import Fitting
from onboard.wire.transfer.length import DeliveryStats, FragmentSizer
from onboard.wire.transfer.owing import PeerLiveness
from onboard.wire.transfer.report import Report
from onboard.wire.transfer.roundrobin import RoundRobin
from onboard.wire.transfer.send import PendingFrame
from onboard.wire.transfer.talk import BULK, ObjectSender
from onboard.wire.transfer.transfer import Outgoing, ReportOutcome

_STUCK_S = 30.0  # without more of an object held, while the peer answers
_AT_WORK = 4  # objects on their way at a time; the others have not been offered yet
_MAX_ID = GROUP_ID - 1


class Outbox:
    """All outgoing objects of a session, by digest in `talks`."""

    def __init__(self, timing: Timing, link: Link, *, epoch: int, slack: int) -> None:
        self._timing = timing
        self._epoch, self._slack = epoch, slack
        self._talks: dict[bytes, ObjectSender] = {}
        self._by_id: dict[int, ObjectSender] = {}
        self._last_id = 0
        self._owing = PeerLiveness(timing)
        self._shares = RoundRobin(timing.payload_bytes + OVERHEAD_BYTES)
        self.fragments_sent = self.fragments_resent = self.repairs_sent = self.orphans = 0
        self._peer_epoch = 0  # of the last REPORT
        self._cadence = SendWindow(timing)
        self._loss = self._cadence.loss
        framing_bytes = timing.wire_bytes(OVERHEAD_BYTES)
        lengths = FragmentSizer(link.frame_loss, link.bit_error_rate, framing_bytes, timing.frame_bytes)
        self._fitting = Fitting(timing, lengths, self._loss)
        self._acknowledged_bytes = 0
        self._active_s = 0.0
        self._active_from: float | None = None

    # -- the application's side ------------------------------------------------------------------------

    def offer(
        self,
        kind: int,
        payload: bytes,
        now: float,
        *,
        priority: int,
        deadline: float,
        fragment_bytes: int | None,
        heard: Mapping[int, DeliveryStats],
    ) -> bytes:
        """Put an object on its way, once; returns its digest. fragment_bytes: None for as many as the losses
        so far make best. heard: see Lengths.best. Raises ValueError if it has too many fragments."""
        name = digest(kind, payload)
        known = self._talks.get(name)
        if known is not None and known.object.withdrawn is None:
            return name
        if fragment_bytes is None or not 0 < fragment_bytes <= self._fitting.longest_bytes:
            fragment_bytes = self._fitting.first(len(payload), heard, now)
        outgoing = Outgoing(kind, payload, fragment_bytes, priority=priority, deadline=deadline, name=name)
        if known is not None:
            self._forget(known, now)
        if len(self._talks) >= _MAX_ID // 2:
            raise ValueError(f"{len(self._talks)} objects are on their way already")
        outgoing.object_id = self._free_id()
        talk = ObjectSender(outgoing, self._cadence, self._epoch, now)
        self._talks[name] = self._by_id[outgoing.object_id] = talk
        if self._active_from is None:
            self._active_from = now
        return name

    def fragment_bytes(self, digest: bytes) -> int:
        """Of an object on its way. Raises KeyError for another."""
        return self._talks[digest].object.fragment_bytes

    def cancel(self, digest: bytes, now: float, reason: Reason = Reason.WITHDRAWN) -> None:
        """Stop sending an object. The receiver is told until it answers; an unknown digest is no error."""
        talk = self._talks.get(digest)
        if talk is None or talk.object.withdrawn is not None:
            return
        if talk.is_unheard_of:
            self._forget(talk, now)
            return
        talk.object.withdrawn = reason
        talk.object.deadline = math.inf
        talk.ask_at, talk.asks = now, 0

    def objects(self) -> Iterator[Outgoing]:
        """Those on their way or waiting for it, withdrawn ones left out."""
        return (talk.object for talk in self._talks.values() if talk.object.withdrawn is None)

    def progress(self, now: float) -> Iterator[Progress]:
        """How far each object is, at the link's rate and measured loss. One of which nothing comes through
        takes as long again as it has already, and without end once it is stuck."""
        for talk in self._talks.values():
            outgoing = talk.object
            if outgoing.withdrawn is not None:
                continue
            held, size = outgoing.held.bit_count(), len(outgoing.payload)
            left_s = self._airtime_s(outgoing)
            if talk.fruitless or talk.is_stuck:
                left_s = math.inf if talk.is_stuck else max(left_s, now - talk.progress_at)
            yield Progress(outgoing.digest, outgoing.kind, False, size, outgoing.count, held, left_s)

    def goodput_bps(self, now: float) -> float:
        """Payload bits that the peer has said to hold, over the time in which some object was on its way."""
        active_s = self._active_s + (0.0 if self._active_from is None else now - self._active_from)
        return 8 * self._acknowledged_bytes / active_s if active_s > 0 else 0.0

    @property
    def loss(self) -> float:
        """Share of fragments that the latest few hundred fates in REPORTs showed as lost."""
        return self._loss.measured

    @property
    def burst(self) -> float:
        """How many times longer these losses last than if they were independent of one another."""
        return self._loss.burst

    @property
    def question_loss(self) -> float:
        """The share of frames that is to be taken as lost because questions had no answer."""
        return self._owing.loss

    # -- what may leave --------------------------------------------------------------------------------

    @property
    def held_back(self) -> bool:
        """Whether only what `control` gives may leave: the peer owes an answer."""
        return bool(self._talks) and (self._owing.silent or self._owing.handed_over)

    @property
    def silent(self) -> bool:
        """Whether the peer owes an answer and gives none."""
        return self._owing.silent

    def control_at(self) -> float:
        """When `control` has a frame next, inf for never as things stand."""
        if self.held_back:
            return math.inf if self._owing.spoke else self._owing.retry_at  # one question a turn
        return min((at for at, type_, _ in self._plan() if type_ not in BULK), default=math.inf)

    def control(self, now: float, seq: int) -> PendingFrame | None:
        """The OFFER, POLL or CANCEL that is due; it will be frame `seq`."""
        plan = [] if now < self.control_at() else self._plan()
        if plan and self.held_back:
            return plan[0][2].question()
        for at, type_, talk in plan:
            if at <= now and type_ not in BULK:
                return talk.frame(type_, now, seq)
        return None

    def has_bulk(self) -> bool:
        """Whether `bulk` has a frame."""
        return any(type_ in BULK for _, type_, _ in self._plan())

    def bulk(self, now: float, seq: int, left_s: float | None) -> PendingFrame | None:
        """The next DATA, else a REPAIR; it will be frame `seq`.

        Of the most urgent objects the one with least to go comes first, if it can be whole in the `left_s`
        seconds that the contact lasts. If it cannot, or nobody knows how long that is, they take turns.
        """
        plan = self._plan()
        data = [talk for _, type_, talk in plan if type_ is Type.DATA]
        if data:
            equals = [talk for talk in data if talk.object.priority == data[0].object.priority]
            fits = left_s is not None and self._airtime_s(equals[0].object) <= left_s
            talk = equals[0] if fits or len(equals) == 1 else self._whose_turn(equals)
            return talk.frame(Type.DATA, now, seq)
        for _, type_, talk in plan:
            if type_ is Type.REPAIR:
                return talk.frame(type_, now, seq)
        return None

    def sent(self, send: PendingFrame, seq: int, end: float) -> None:
        """A frame that `control` or `bulk` gave leaves as `seq`, its last bit at `end`."""
        if send.about is None:
            return
        talk = self._by_id[send.object_id]
        self._owing.spoke = self._timing.half_duplex
        resent = talk.object.resent
        talk.sent(send, seq, end)
        self.fragments_sent += send.type is Type.DATA
        self.fragments_resent += talk.object.resent - resent
        self.repairs_sent += send.type is Type.REPAIR
        if send.poll and not self._timing.half_duplex:
            self._owing.asked(end)

    @property
    def asked(self) -> int | None:
        """Half-duplex: fragments of the largest object at work if this turn wants an answer, else None."""
        return self._most_fragments if self._owing.spoke else None

    @property
    def asks_about(self) -> int:
        """The object id of the most urgent object that an answer is wanted about, 0 for none."""
        plan = self._plan() if self._owing.spoke else []
        return plan[0][2].object.object_id if plan else 0

    def handed_over(self, end: float) -> None:
        """Half-duplex: this end's turn is over at `end`. What it asked may be asked again in the next."""
        self._owing.hand_over(end)
        for talk in self._talks.values():
            if not talk.object.complete:
                talk.ask_at = min(talk.ask_at, end)

    def fell_still(self, now: float) -> None:
        """Half-duplex: this end is in no turn. One that a contact's end cut off never said OVER; what it
        asked may not be heard, and must not wait for ever to be asked again."""
        if self._owing.spoke:
            self.handed_over(now)

    def peer_cuts(self, fragment_bytes: int) -> None:
        """The peer offers an object in fragments of so many bytes."""
        self._fitting.peer_cuts(fragment_bytes)

    def peer_is_busy(self, busy: bool) -> None:
        """Whether the peer sends bulk as well."""
        self._cadence.peer_is_busy = busy

    # -- what was heard --------------------------------------------------------------------------------

    def heard(self) -> None:
        """Something authentic came from the peer: go on at once."""
        self._owing.heard()

    def on_report(
        self,
        report: Report,
        object_id: int,
        heard: tuple[int, int],
        fates: Mapping[int, DeliveryStats],
        now: float,
    ) -> list[Event]:
        """What the peer holds of an object; one that makes no sense only counts. fates: see Lengths.best."""
        talk = self._by_id.get(object_id)
        if talk is None:
            self.orphans += 1
            return []
        if report.unknown and talk.object.withdrawn is not None:
            if talk.was_cancelled(report):
                self._forget(talk, now)
            return []
        if report.unknown:
            talk.unknown(report)
            return []
        outgoing = talk.object
        before = outgoing.remaining_bytes
        verdict = outgoing.report(report, heard=heard, epoch=self._epoch, slack=self._slack)
        if verdict is None:
            self.orphans += 1
            return []
        same_run = (
            heard[0] == self._peer_epoch
        )  # what was lost on a peer that was off is not the link's fault
        self._peer_epoch = heard[0]
        if before > outgoing.remaining_bytes:
            self._acknowledged_bytes += before - outgoing.remaining_bytes
            talk.progress_at, talk.is_stuck = now, False
        if outgoing.withdrawn is not None:
            return []  # CANCEL goes again when it is due
        missed = talk.missed(report.seq)
        if not outgoing.complete:
            talk.asks = 0
        else:
            talk.ask_at = max(talk.ask_at, now + RETRY_S)  # its application is storing it
        if not same_run:
            if verdict.lost:
                self._fitting.doubt(talk)
            return []
        self._loss.weigh(verdict)
        return self._fit(talk, verdict, missed, fates, now)

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
        for name in late:
            self.cancel(name, now, Reason.EXPIRED)
        if self._talks:
            self._owing.tick(now, self._most_fragments)
        return [Expired(name) for name in late]

    def tick_at(self) -> float:
        """When `tick` next has something to do."""
        deadline = min((talk.object.deadline for talk in self._talks.values()), default=math.inf)
        return min(deadline, self._owing.silent_at(self._most_fragments)) if self._talks else math.inf

    # -- one rule each ---------------------------------------------------------------------------------

    def _fit(
        self,
        talk: ObjectSender,
        verdict: ReportOutcome,
        missed: int,
        fates: Mapping[int, DeliveryStats],
        now: float,
    ) -> list[Event]:
        """Whether an object is to be cut anew, and whether it is stuck."""
        fragment_bytes = self._fitting.weigh(talk, verdict, missed, fates, now)
        events: list[Event] = []
        barren = fragment_bytes is not None and talk.fruitless > 0
        late = talk.fruitless > 0 and now >= talk.progress_at + _STUCK_S
        if (barren or late) and not talk.is_stuck:
            talk.is_stuck = True
            lost = self._timing.wire_bytes(OVERHEAD_BYTES + talk.object.fragment_bytes)
            tried = 0 if fragment_bytes is None else self._timing.wire_bytes(OVERHEAD_BYTES + fragment_bytes)
            events.append(Stuck(talk.object.digest, lost, tried))
        return events if fragment_bytes is None else events + self._recut(talk, fragment_bytes, now)

    def _recut(self, talk: ObjectSender, fragment_bytes: int, now: float) -> list[Event]:
        del self._by_id[talk.object.object_id]
        outgoing = talk.object.recut(fragment_bytes, self._free_id())
        again = ObjectSender(outgoing, self._cadence, self._epoch, now, was_recut=True)
        again.progress_at, again.is_stuck = talk.progress_at, talk.is_stuck
        self._talks[outgoing.digest] = self._by_id[outgoing.object_id] = again
        self._loss.forget()
        return [Recut(outgoing.digest, fragment_bytes)]

    def _free_id(self) -> int:
        self._last_id = self._last_id % _MAX_ID + 1
        while self._last_id in self._by_id:
            self._last_id = self._last_id % _MAX_ID + 1
        return self._last_id

    def _plan(self) -> list[tuple[float, Type, ObjectSender]]:
        """For each object at work, the most urgent first, when which frame of it may leave."""
        talks = list(self._talks.values())
        if len(talks) > 1:
            whole = [talk for talk in talks if talk.object.complete]  # they only wait for DONE
            talks = heapq.nsmallest(_AT_WORK, (t for t in talks if not t.object.complete), key=_urgency)
            talks += whole
        return [(*talk.next(), talk) for talk in talks]

    @property
    def _most_fragments(self) -> int:
        """Of the largest object, 0 without any."""
        return max((talk.object.count for talk in self._talks.values()), default=0)

    def _airtime_s(self, outgoing: Outgoing) -> float:
        """What the rest of an object takes at the losses so far."""
        frames = outgoing.count - outgoing.held.bit_count()
        return frames * self._timing.fragment_s(outgoing.fragment_bytes) / max(1 - self.loss, 0.01)

    def _whose_turn(self, talks: list[ObjectSender]) -> ObjectSender:
        wants = {talk.object.object_id: OVERHEAD_BYTES + talk.data_bytes() for talk in talks}
        return self._by_id[self._shares.choose(wants)]

    def _forget(self, talk: ObjectSender, now: float) -> None:
        del self._talks[talk.object.digest]
        del self._by_id[talk.object.object_id]
        if not self._talks and self._active_from is not None:
            self._active_s += now - self._active_from
            self._active_from = None


def _urgency(talk: ObjectSender) -> tuple[int, int, int]:
    return talk.object.priority, talk.object.remaining_bytes, talk.object.object_id
