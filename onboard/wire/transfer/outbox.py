"""The sending side of a session: which frame leaves next, and when to poll the receiver.

An object ends by DONE, CANCEL or its deadline. No more than a window of it is in flight, so that a receiver
that dies takes little with it. Questions (POLL, or the POLL flag on DATA) keep the REPORTs coming. A peer
that does not answer is sent a question now and then, and nothing else."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from hw_profiles import Link
from onboard.wire.events import Cancelled, Delivered, Event, Expired, Progress, Recut, Stuck
from onboard.wire.framing.frame import GROUP_ID, OVERHEAD_BYTES, PendingFrame, Type
from onboard.wire.medium.medium_access import RETRY_S, Timing
from onboard.wire.messages import Cancel, Done, Reason, Report, digest
from onboard.wire.transfer.length import FragmentSizer
from onboard.wire.transfer.outgoing import Outgoing, ReportOutcome
from onboard.wire.transfer.peer import LossEstimator, PeerLiveness, ReceiveStats
from onboard.wire.transfer.sender import BULK, ObjectSender
from onboard.wire.transfer.states import OutgoingEvent

_STUCK_S = 30.0  # without progress of an object, while the peer answers
_AT_WORK = 4  # objects that are sent at a time; the others are not offered yet
_MAX_ID = GROUP_ID - 1

MakeFrame = Callable[[], PendingFrame]


class PlannedFrame(NamedTuple):
    """The next frame of one object. `at`: when it may leave, -inf for at once."""

    at: float
    type: Type
    sender: ObjectSender


class RoundRobin:
    """Shares the link by bytes among objects of equal priority.

    Deficit round robin (M. Shreedhar, G. Varghese, Efficient Fair Queuing Using Deficit Round Robin, SIGCOMM
    1995): each in turn gets a quantum, the longest frame's bytes, and sends while its credit lasts."""

    def __init__(self, quantum_bytes: int) -> None:
        self._quantum_bytes = quantum_bytes
        self._credit_bytes: dict[int, int] = {}  # by name, in the order of turns

    def choose(self, wants_bytes: Mapping[int, int]) -> int:
        """Return whose frame leaves now. `wants_bytes`: the next frame's bytes by name, each at most a
        quantum. A name that is absent loses its credit. Raises ValueError if `wants_bytes` is empty."""
        if not wants_bytes:
            raise ValueError("nobody has a frame to send")
        names = [name for name in (*self._credit_bytes, *wants_bytes) if name in wants_bytes]
        credit = {name: self._credit_bytes.get(name, self._quantum_bytes) for name in names}
        self._credit_bytes = credit
        while True:
            name = next(iter(credit))
            if credit[name] >= wants_bytes[name]:
                credit[name] -= wants_bytes[name]
                return name
            credit[name] = credit.pop(name) + self._quantum_bytes  # to the end, with its next quantum


class Outbox:
    """All outgoing objects of a session, by digest. `loss`: that of their fragments."""

    def __init__(
        self,
        timing: Timing,
        link: Link,
        hearing: ReceiveStats,
        liveness: PeerLiveness,
        *,
        epoch: int,
        slack: int,
    ) -> None:
        self._timing, self._hearing, self._liveness = timing, hearing, liveness
        self._epoch, self._slack = epoch, slack
        self._senders: dict[bytes, ObjectSender] = {}
        self._by_id: dict[int, ObjectSender] = {}
        self._planned: tuple[tuple[float, float], list[PlannedFrame]] | None = None
        self._last_id = 0
        self._shares = RoundRobin(timing.payload_bytes + OVERHEAD_BYTES)
        self.fragments_sent = self.fragments_resent = self.repairs_sent = self.orphans = 0
        self._peer_epoch = 0  # of the last REPORT
        self.loss = LossEstimator()
        self._sizer = FragmentSizer(timing, link, hearing, self.loss)
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
    ) -> bytes:
        """Queue an object, once; returns its digest. Raises ValueError if it has too many fragments.
        `fragment_bytes`: None for the length that the losses so far make best."""
        name = digest(kind, payload)
        known = self._senders.get(name)
        if known is not None and known.object.withdrawn is None:
            return name
        if fragment_bytes is None or not 0 < fragment_bytes <= self._sizer.longest_bytes:
            fragment_bytes = self._sizer.first(len(payload), now)
        outgoing = Outgoing(kind, payload, fragment_bytes, priority=priority, deadline=deadline, name=name)
        if known is not None:
            self._forget(known, now)
        if len(self._senders) >= _MAX_ID // 2:
            raise ValueError(f"{len(self._senders)} objects are on their way already")
        outgoing.object_id = self._free_id()
        self._send(outgoing, now)
        if self._active_from is None:
            self._active_from = now
        return name

    def fragment_bytes(self, digest: bytes) -> int:
        return self._senders[digest].object.fragment_bytes

    def cancel(self, digest: bytes, now: float, reason: Reason = Reason.WITHDRAWN) -> None:
        """Withdraw an object. CANCEL leaves until the receiver answers; an unknown digest is no error."""
        sender = self._senders.get(digest)
        if sender is None or sender.object.withdrawn is not None:
            return
        if sender.is_unheard_of:
            self._forget(sender, now)
            return
        self._planned = None
        sender.object.withdraw(reason)
        sender.ask_at, sender.asks = now, 0

    def objects(self) -> Iterator[Outgoing]:
        """Yield the objects that are queued or being sent, without withdrawn ones."""
        return (sender.object for sender in self._senders.values() if sender.object.withdrawn is None)

    def progress(self, now: float) -> Iterator[Progress]:
        """Estimate each object's time to the end from the link's rate and measured loss. An object of which
        nothing comes through is given as long again as it has waited, and inf once it is stuck."""
        for sender in self._senders.values():
            outgoing = sender.object
            if outgoing.withdrawn is not None:
                continue
            held, size = outgoing.acknowledged.bit_count(), len(outgoing.payload)
            left_s = self._airtime_s(outgoing)
            if sender.fruitless or sender.is_stuck:
                left_s = math.inf if sender.is_stuck else max(left_s, now - sender.progress_at)
            yield Progress(outgoing.digest, outgoing.kind, False, size, outgoing.count, held, left_s)

    def goodput_bps(self, now: float) -> float:
        """Return the payload bit/s that the peer reported held, over the time with any object to send."""
        active_s = self._active_s + (0.0 if self._active_from is None else now - self._active_from)
        return 8 * self._acknowledged_bytes / active_s if active_s > 0 else 0.0

    # -- what may leave --------------------------------------------------------------------------------

    @property
    def held_back(self) -> bool:
        """Whether nothing but questions may leave, as the peer owes an answer."""
        return bool(self._senders) and (self._liveness.silent or self._liveness.answer_due)

    def next_frame(
        self, now: float, seq: int, bulk_at: float, left_s: float
    ) -> tuple[float, MakeFrame | None]:
        """Return when a frame may leave next, inf for never as things stand, and its maker if that is now.

        It will be frame `seq`: an OFFER, POLL or CANCEL that is due, else bulk (DATA or REPAIR) from
        `bulk_at` on. Of the most urgent objects the one with least to go is first if the `left_s` seconds of
        contact suffice for it; if not, or without a plan (inf), they take turns."""
        plan = self._plan()
        if self.held_back:
            at = math.inf if self._liveness.spoke else self._liveness.retry_at  # one question a turn
            return at, plan[0].sender.question if at <= now else None
        when = math.inf
        for each in plan:
            at = bulk_at if each.type in BULK else each.at
            if at <= now and each.type not in BULK:
                return at, partial(each.sender.frame, each.type, now, seq)
            when = min(when, at)
        if when > now:
            return when, None
        return when, partial(self._bulk, plan, now, seq, left_s)

    def sent(self, send: PendingFrame, seq: int, end: float) -> None:
        """Note that a frame from `next_frame` leaves as `seq`, its last bit at `end`."""
        self._planned = None
        sender = self._by_id[send.object_id]
        self._liveness.spoke = self._timing.half_duplex
        resent = sender.object.resent
        sender.sent(send, seq, end)
        self.fragments_sent += send.type is Type.DATA
        self.fragments_resent += sender.object.resent - resent
        self.repairs_sent += send.type is Type.REPAIR
        if send.poll and not self._timing.half_duplex:
            self._liveness.asked(end)

    @property
    def asked(self) -> int | None:
        """On half-duplex, the fragments of the largest object if this turn asked anything, else None."""
        return self._most_fragments if self._liveness.spoke else None

    @property
    def asks_about(self) -> int:
        """The id of the most urgent object if this turn asked anything, else 0."""
        plan = self._plan() if self._liveness.spoke else []
        return plan[0].sender.object.object_id if plan else 0

    def handed_over(self, end: float) -> None:
        """Note the end of this end's half-duplex turn: its questions may be asked again in the next."""
        self._planned = None
        self._liveness.hand_over(end)
        for sender in self._senders.values():
            if not sender.object.complete:
                sender.ask_at = min(sender.ask_at, end)

    def fell_still(self, now: float) -> None:
        """Note that a half-duplex end is in no turn. One that a contact's end cut off never said OVER: its
        questions may be lost, and must not wait for ever."""
        if self._liveness.spoke:
            self.handed_over(now)

    # -- what was heard --------------------------------------------------------------------------------

    def on_report(self, report: Report, object_id: int, heard: tuple[int, int], now: float) -> list[Event]:
        """Take in a REPORT; one that makes no sense only counts. `heard`: as ReceiveStats.order gives it."""
        sender = self._by_id.get(object_id)
        if sender is None:
            self.orphans += 1
            return []
        self._planned = None
        if report.unknown and sender.object.withdrawn is not None:
            if sender.was_cancelled(report):
                self._forget(sender, now)
            return []
        if report.unknown:
            sender.unknown(report)
            return []
        outgoing = sender.object
        before = outgoing.remaining_bytes
        verdict = outgoing.report(report, heard=heard, epoch=self._epoch, slack=self._slack)
        if verdict is None:
            self.orphans += 1
            return []
        same_run, self._peer_epoch = heard[0] == self._peer_epoch, heard[0]
        if before > outgoing.remaining_bytes:
            self._acknowledged_bytes += before - outgoing.remaining_bytes
            sender.progress_at, sender.is_stuck = now, False
        if outgoing.withdrawn is not None:
            return []  # CANCEL goes again when it is due
        missed = sender.missed(report.seq)
        if not outgoing.complete:
            sender.asks = 0
        else:
            sender.ask_at = max(sender.ask_at, now + RETRY_S)  # its application is storing it
        if not same_run:  # losses while the peer was off are not the link's
            if verdict.lost:
                self._sizer.doubt(sender)
            return []
        self.loss.weigh(verdict.lost, verdict.bursts, verdict.settled)
        return self._fit(sender, verdict, missed, now)

    def on_done(self, done: Done, now: float) -> list[Event]:
        sender = self._senders.get(done.digest)
        if sender is None:
            self.orphans += 1
            return []
        self._acknowledged_bytes += sender.object.remaining_bytes
        self._forget(sender, now)
        return [] if sender.object.withdrawn is not None else [Delivered(done.digest)]

    def on_cancel(self, cancel: Cancel, object_id: int, now: float) -> list[Event]:
        sender = self._senders.get(cancel.digest)
        if sender is None or sender.object.object_id != object_id:
            self.orphans += 1
            return []
        self._forget(sender, now)
        return [] if sender.object.withdrawn is not None else [Cancelled(cancel.digest, cancel.reason)]

    def tick(self, now: float) -> list[Event]:
        """End the objects whose deadline has passed, and note when the peer has become silent."""
        late = [sender.object.digest for sender in self._senders.values() if sender.object.deadline <= now]
        for name in late:
            self.cancel(name, now, Reason.EXPIRED)
        if self._senders:
            self._liveness.tick(now, self._most_fragments)
        return [Expired(name) for name in late]

    def tick_at(self) -> float:
        deadline = min((sender.object.deadline for sender in self._senders.values()), default=math.inf)
        return min(deadline, self._liveness.silent_at(self._most_fragments)) if self._senders else math.inf

    # -- one rule each ---------------------------------------------------------------------------------

    def _fit(self, sender: ObjectSender, verdict: ReportOutcome, missed: int, now: float) -> list[Event]:
        """Refragment the object if a better length is known, and tell once when it is stuck."""
        fragment_bytes = self._sizer.weigh(sender, verdict, missed, now)
        events: list[Event] = []
        barren = fragment_bytes is not None and sender.fruitless > 0
        late = sender.fruitless > 0 and now >= sender.progress_at + _STUCK_S
        if (barren or late) and not sender.is_stuck:
            sender.is_stuck = True
            lost = self._timing.wire_bytes(OVERHEAD_BYTES + sender.object.fragment_bytes)
            tried = 0 if fragment_bytes is None else self._timing.wire_bytes(OVERHEAD_BYTES + fragment_bytes)
            events.append(Stuck(sender.object.digest, lost, tried))
        return events if fragment_bytes is None else events + self._recut(sender, fragment_bytes)

    def _recut(self, sender: ObjectSender, fragment_bytes: int) -> list[Event]:
        del self._by_id[sender.object.object_id]
        sender.object.meet(OutgoingEvent.END)
        outgoing = sender.object.recut(fragment_bytes, self._free_id())
        again = self._send(outgoing, sender.progress_at, was_recut=True)
        again.is_stuck = sender.is_stuck
        self.loss.forget()
        return [Recut(outgoing.digest, fragment_bytes)]

    def _send(self, outgoing: Outgoing, now: float, *, was_recut: bool = False) -> ObjectSender:
        sender = ObjectSender(
            outgoing, self._timing, self._hearing, self.loss, epoch=self._epoch, now=now, was_recut=was_recut
        )
        self._senders[outgoing.digest] = self._by_id[outgoing.object_id] = sender
        self._planned = None
        return sender

    def _free_id(self) -> int:
        while True:
            self._last_id = self._last_id % _MAX_ID + 1
            if self._last_id not in self._by_id:
                return self._last_id

    def _plan(self) -> list[PlannedFrame]:
        """Return the next frames, the most urgent first; kept until something here or the rate changes."""
        rate = self._timing.frame_s, self._timing.back_frame_s
        if self._planned is None or self._planned[0] != rate:
            self._planned = rate, self._plan_anew()
        return self._planned[1]

    def _plan_anew(self) -> list[PlannedFrame]:
        senders = list(self._senders.values())
        if len(senders) > 1:
            whole = [sender for sender in senders if sender.object.complete]  # they only wait for DONE
            senders = heapq.nsmallest(_AT_WORK, (t for t in senders if not t.object.complete), key=_urgency)
            senders += whole
        return [PlannedFrame(*sender.next(), sender) for sender in senders]

    def _bulk(self, plan: list[PlannedFrame], now: float, seq: int, left_s: float) -> PendingFrame:
        data = [each.sender for each in plan if each.type is Type.DATA]
        if not data:
            repair = next(each.sender for each in plan if each.type is Type.REPAIR)
            return repair.frame(Type.REPAIR, now, seq)
        equals = [sender for sender in data if sender.object.priority == data[0].object.priority]
        fits = self._airtime_s(equals[0].object) <= left_s < math.inf
        if fits or len(equals) == 1:
            return equals[0].frame(Type.DATA, now, seq)
        wants = {sender.object.object_id: OVERHEAD_BYTES + sender.data_bytes() for sender in equals}
        return self._by_id[self._shares.choose(wants)].frame(Type.DATA, now, seq)

    @property
    def _most_fragments(self) -> int:
        return max((sender.object.count for sender in self._senders.values()), default=0)

    def _airtime_s(self, outgoing: Outgoing) -> float:
        """Return the airtime of the rest of an object at the losses so far."""
        fragment_s = self._timing.fragment_s(outgoing.fragment_bytes)
        return outgoing.missing * fragment_s / max(1 - self.loss.measured, 0.01)

    def _forget(self, sender: ObjectSender, now: float) -> None:
        self._planned = None
        sender.object.meet(OutgoingEvent.END)
        del self._senders[sender.object.digest]
        del self._by_id[sender.object.object_id]
        if not self._senders and self._active_from is not None:
            self._active_s += now - self._active_from
            self._active_from = None


def _urgency(sender: ObjectSender) -> tuple[int, int, int]:
    return sender.object.priority, sender.object.remaining_bytes, sender.object.object_id
