"""One object to many listeners on a shared downlink, each fragment sent once for all of them; both its ends.

The sender, pure as Session is: the object goes out once, in order, under the group's key; then each listener
is asked in turn (POLL, its number in the fragment field) and answers on its own session; then repairs serve
whatever holes there are, since a sum of fragments stands in for a different one at every listener; and so on
until all have said DONE, or the deadline passes. How many repairs is decided by the listener that lacks most,
with the losses that it was seen to have. Nobody is waited for before the object has gone out once, and who
never answered gets no repairs: it is asked, ever less often, until the end.

A listener answers when it is asked, not before: the answers of many would meet on the air. Broadcast objects
have ids from GROUP_ID on, so an answer says whether it is about one. What is heard here is authentic to the
group only: whoever holds its key could have made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from onboard.wire.config import Identity, Medium
from onboard.wire.events import Cancelled, Delivered, Event, Expired, GroupAnswer
from onboard.wire.framing.frame import BROADCAST, GROUP_ID, OVERHEAD_BYTES, Frame, PendingFrame, Type
from onboard.wire.medium.medium_access import GUARD_S, RETRY_S, Pacer, Timing
from onboard.wire.messages import PREFIX_BYTES, BadMessage, Cancel, Done, Offer, Reason, Report
from onboard.wire.security.seal import Opener, Sealer
from onboard.wire.transfer.inbox import Inbox
from onboard.wire.transfer.outgoing import Outgoing, deadline_of
from onboard.wire.transfer.peer import LossEstimator

_EPSILON_S = 1e-6  # as in Session
_OFFER_AGAIN = 32  # fragments; at first sooner, because who missed it takes none of them
_QUICK_ASKS = 6  # of one listener, before it is asked ever less often
_SLOWER = 1.5
_MAX_RETRY_S = 8.0
_PRIORITY = 4
_WITHDRAWALS = 3  # CANCELs, which nobody answers


@dataclass(slots=True)
class _ReceiverState:
    """What is known of one listener."""

    object: Outgoing
    ask_at: float  # when to ask again; inf: when nothing is left to send that it needs
    loss: LossEstimator = field(default_factory=LossEstimator)
    epoch: int = 0  # of its last REPORT
    asks: int = 0  # since it last answered
    reported: bool = False  # since the object has gone out once: before that, what it lacks is a guess

    @property
    def deficit(self) -> tuple[float, int]:
        """What Outgoing.deficit says; no deficit as long as nothing is known."""
        if not self.reported:
            return -math.inf, 0
        return self.object.deficit(self.loss.expected, self.loss.burst)


class Broadcast:
    """One object's way to `listeners`, node numbers of sessions that were given the group's key.

    sealer: seals with the group's key, from this node to BROADCAST, in this node's epoch; there is one for
    all broadcasts of an epoch, since no seq is used twice. The medium's contacts do not hold it back.
    deadline_s: it is given up after so many seconds; None for never. Raises ValueError for an object of too
    many fragments, a value out of range or a sealer to one node.

    `waiting`: the listeners that have neither the object durably nor refused it, by their numbers, with what
    is known of each. `orphans`: answers of nobody who listens, or about another object; `malformed`: answers
    that make no sense. `bytes_sent` are on the wire.
    """

    def __init__(
        self,
        kind: int,
        payload: bytes,
        listeners: Iterable[int],
        *,
        sealer: Sealer,
        medium: Medium,
        now: float,
        deadline_s: float | None = None,
    ) -> None:
        if sealer.destination != BROADCAST:
            raise ValueError(f"a broadcast's sealer is to {BROADCAST}, not to node {sealer.destination}")
        self._deadline = deadline_of(kind, _PRIORITY, deadline_s, now)
        self._timing = Timing(medium, primary=True)
        self._wire_bytes = medium.wire_bytes
        self._pacer = Pacer(self._timing, now)
        self._sealer, fragment_bytes = sealer, self._timing.payload_bytes
        self._object = Outgoing(kind, payload, fragment_bytes, priority=_PRIORITY, deadline=self._deadline)
        self.digest = self._object.digest
        ask_at = math.inf if self._timing.half_duplex else now  # they can answer while the object goes out
        self.waiting = {
            node: _ReceiverState(Outgoing(kind, payload, fragment_bytes, name=self.digest), ask_at)
            for node in listeners
        }
        self.object_id = group_id(self.digest)
        self._next = 0  # the first fragment that has not gone out yet
        self._last = 0  # seq of the one before it
        self._offer_in = 0  # fragments until the next OFFER
        self._offer_gap = 4
        self._withdrawals, self._reason = 0, Reason.WITHDRAWN  # CANCELs to be sent
        self._quiet_until = now  # half-duplex: who was asked speaks
        self._ask_from = now  # so that two answers do not meet on their way back
        self.frames_sent = self.bytes_sent = self.fragments_sent = self.repairs_sent = 0
        self.orphans = self.malformed = 0

    # -- the application's side ------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether nothing will be sent any more."""
        return not self.waiting and not self._withdrawals

    @property
    def airtime_s(self) -> float:
        """The time for which the transmitter was on, keying included."""
        return self._pacer.airtime_s

    def cancel(self, now: float) -> None:
        """Stop; listeners that still wait are told."""
        self._end(Reason.WITHDRAWN)

    def handle(self, node: int, answer: GroupAnswer, now: float) -> list[Event]:
        """What the session with `node` was answered. Gives Delivered or Cancelled once for each listener."""
        frame = answer.frame
        receiver = self.waiting.get(node)
        if receiver is None or frame.object_id != self.object_id:
            self.orphans += 1
            return []
        if self._timing.half_duplex:
            self._quiet_until = self._ask_from = now + (answer.left_s + GUARD_S if answer.left_s else 0.0)
        try:
            if frame.type is Type.REPORT:
                self._on_report(receiver, Report.decode(frame.payload), (frame.epoch, frame.seq), now)
                return []
            if frame.type is Type.DONE:
                event: Delivered | Cancelled = Delivered(Done.decode(frame.payload).digest)
            else:
                cancel = Cancel.decode(frame.payload)
                event = Cancelled(cancel.digest, cancel.reason)
        except BadMessage:
            self.malformed += 1
            return []
        if event.digest != self.digest:
            self.orphans += 1
            return []
        del self.waiting[node]
        return [event]

    # -- the wire's side -------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Event]:
        """Gives Expired once, when the deadline passes with listeners still waiting."""
        if now < self._deadline or not self.waiting:
            return []
        self._end(Reason.EXPIRED)
        return [Expired(self.digest)]

    def transmit(self, now: float) -> bytes | None:
        """The next frame, if one may leave now. Call until it gives None."""
        if self._gate(now) > now + _EPSILON_S:
            return None
        now += _EPSILON_S
        send = self._choose(now)
        if send is None:
            return None
        length = OVERHEAD_BYTES + len(send.payload)
        keyed = self._timing.half_duplex and (not self.frames_sent or now > self._pacer.end + GUARD_S)
        end = self._pacer.sent(length, now, keyed=keyed)
        self.frames_sent += 1
        self.bytes_sent += self._wire_bytes(length)
        asks = send.type is Type.POLL
        raw = self._sealer.seal(
            send.type,
            send.payload,
            object_id=self.object_id,
            fragment=send.fragment,
            priority=_PRIORITY,
            poll=asks,
            over=asks and self._timing.half_duplex,
        )
        self._note_sent(send, end)
        return raw

    def wakeup(self, now: float) -> float:
        """The earliest time at which `transmit` or `tick` may have something to do, if no answer comes."""
        ready = self._ready_at()
        leaves = math.inf if ready == math.inf else self._gate(max(now, ready))
        return max(now, min(leaves, self._deadline if self.waiting else math.inf))

    # -- one rule each ---------------------------------------------------------------------------------

    def _gate(self, now: float) -> float:
        return max(now, self._pacer.opens_at, self._quiet_until)

    def _choose(self, now: float) -> PendingFrame | None:
        """OFFER, then whom to ask, then the object; on half-duplex an answer would only interrupt that."""
        if self._withdrawals:
            return PendingFrame(Type.CANCEL, Cancel(self.digest, self._reason).encode())
        if not self.waiting:
            return None
        if self._offer_in == 0:
            return PendingFrame(Type.OFFER, self._object.offer(now))
        bulk = self._bulk()
        node = self._next_poll_target(now, idle=bulk is None)
        if bulk is None or (node is not None and not self._timing.half_duplex):
            return None if node is None else PendingFrame(Type.POLL, fragment=node)
        type_, number = bulk
        if type_ is Type.DATA:
            return PendingFrame(type_, self._object.fragment(number), fragment=number)
        transmission = self._sealer.epoch, self._sealer.seq + 1
        return PendingFrame(type_, self._object.repair(number, transmission), fragment=number << 8)

    def _ready_at(self) -> float:
        """When `_choose` next has a frame."""
        if self._withdrawals or (self.waiting and (self._offer_in == 0 or self._bulk() is not None)):
            return -math.inf
        return min((max(at, self._ask_from) for at, _, _ in self._asks(idle=True)), default=math.inf)

    def _bulk(self) -> tuple[Type, int] | None:
        """DATA and a fragment, or REPAIR and a generation: the next fragment of the first pass that anybody
        may lack, and then what serves the listener that lacks most."""
        while self._next < self._object.count:
            if not all(receiver.object.acknowledged >> self._next & 1 for receiver in self.waiting.values()):
                return Type.DATA, self._next
            self._next += 1
        needs = [(receiver.deficit, receiver.object.to_send) for receiver in self.waiting.values()]
        (lacks, generation), _ = max(needs, key=lambda need: need[0])
        if lacks <= 0:
            return None
        holes = 0
        for (each, _), missing in needs:
            holes |= missing if each > 0 else 0
        holes &= self._object.generation(generation)
        if holes and holes.bit_count() <= lacks:  # so few for all that each of them is as good as a sum
            return Type.DATA, (holes & -holes).bit_length() - 1
        return Type.REPAIR, generation

    def _next_poll_target(self, now: float, *, idle: bool) -> int | None:
        """The listener to ask now."""
        if now < self._ask_from:
            return None
        at, _, node = min(self._asks(idle=idle))
        return node if at <= now else None

    def _asks(self, *, idle: bool) -> list[tuple[float, int, int]]:
        """When to ask whom: time, questions so far, node. idle: nothing is left to send that one needs."""
        return [
            (-math.inf if idle and receiver.ask_at == math.inf else receiver.ask_at, receiver.asks, node)
            for node, receiver in self.waiting.items()
        ]

    def _note_sent(self, send: PendingFrame, end: float) -> None:
        seq = self._sealer.seq
        if send.type is Type.CANCEL:
            self._withdrawals -= 1
        elif send.type is Type.OFFER:
            self._offer_in = self._offer_gap
            self._offer_gap = min(2 * self._offer_gap, _OFFER_AGAIN)
        elif send.type is Type.POLL:
            self._note_asked(self.waiting[send.fragment], end)
        else:
            self._offer_in -= 1
            self.fragments_sent += send.type is Type.DATA
            self.repairs_sent += send.type is Type.REPAIR
            for receiver in self.waiting.values():
                if send.type is Type.REPAIR:
                    receiver.object.repair_sent(send.fragment >> 8, seq)
                elif not receiver.object.acknowledged >> send.fragment & 1:
                    receiver.object.sent(send.fragment, seq)
            if send.type is Type.DATA and send.fragment == self._next:
                self._next += 1
                self._last = seq

    def _note_asked(self, receiver: _ReceiverState, end: float) -> None:
        timing, count = self._timing, self._object.count
        receiver.asks += 1
        if timing.half_duplex:
            self._quiet_until = self._ask_from = end + timing.answer_slot_s(count)
            patience_s = timing.answer_slot_s(count)
        else:
            self._ask_from = end + timing.back_airtime_s(timing.report_frame_bytes(count)) + GUARD_S
            # Where much is lost several questions follow each other in the time of one answer.
            answer_s = timing.answer_s(count, busy=False)
            patience_s = max(2 * answer_s / receiver.loss.questions, 8 * timing.airtime_s(OVERHEAD_BYTES))
        slower = min(max(0, receiver.asks - _QUICK_ASKS), 32)
        receiver.ask_at = end + min(patience_s * _SLOWER**slower, max(patience_s, _MAX_RETRY_S))

    def _on_report(
        self, receiver: _ReceiverState, report: Report, heard: tuple[int, int], now: float
    ) -> None:
        if report.epoch == self._sealer.epoch and report.seq > self._sealer.seq:
            self.malformed += 1
            return
        unknown = report.unknown
        if unknown:  # it missed every OFFER: all that has gone out is lost on it
            report = Report(self._sealer.epoch, report.seq, self.digest[:PREFIX_BYTES])
            self._offer_in = 0
        verdict = receiver.object.report(report, heard=heard, epoch=self._sealer.epoch)
        if verdict is None:
            self.orphans += 1
            return
        if not unknown and receiver.epoch in (0, heard[0]):  # what it missed while it was off says nothing
            receiver.loss.weigh(verdict.lost, verdict.bursts, verdict.settled)
        receiver.epoch = heard[0]
        receiver.reported = self._next == self._object.count and report.seq >= self._last
        if receiver.object.complete:  # its application is storing it
            receiver.ask_at = now + RETRY_S * 2.0 ** min(receiver.asks, 4)
        else:
            receiver.asks, receiver.ask_at = 0, math.inf

    def _end(self, reason: Reason) -> None:
        if self.waiting and self.frames_sent:
            self._withdrawals, self._reason = _WITHDRAWALS, reason
        self.waiting.clear()


def group_id(digest: bytes) -> int:
    """The object id of a broadcast: the same whenever, and by whomever, the object is sent again."""
    return GROUP_ID | int.from_bytes(digest[:2], "big")


class BroadcastListener:
    """Takes the broadcasts of the peer. floor: the highest (epoch, seq) of them, as last persisted."""

    def __init__(self, identity: Identity, key: bytes, inbox: Inbox, floor: tuple[int, int]) -> None:
        self.opener = Opener(key, source=identity.peer, destination=BROADCAST, floor=floor)
        self._inbox, self._node, self._epoch = inbox, identity.node, floor[0]

    def handle(self, raw: bytes, now: float) -> tuple[list[Event], bool] | None:
        """Take one frame: what it brings, and whether this node has the turn now, being asked; None, and one
        counter more, for what is not the group's, whole and new."""
        frame = self.opener.open(raw)
        if frame is None:
            return None
        if frame.epoch > self._epoch:
            self._epoch = frame.epoch
            self._inbox.peer_restarted(of_broadcasts=True)
        asked = frame.type is Type.POLL and frame.fragment == self._node
        events: list[Event] = []
        try:
            events = self._dispatch(frame, asked, now)
        except BadMessage:
            self._inbox.malformed += 1
        return events, asked and frame.over

    def _dispatch(self, frame: Frame, asked: bool, now: float) -> list[Event]:
        if frame.object_id < GROUP_ID:
            raise BadMessage(f"broadcast of object id {frame.object_id}")
        if frame.type is Type.OFFER:
            return self._inbox.on_offer(Offer.decode(frame.payload), frame.object_id, now)
        if frame.type is Type.DATA or frame.type is Type.REPAIR:
            return self._inbox.on_data(frame, now)
        if frame.type is Type.POLL:
            return self._inbox.on_poll(frame.object_id, now) if asked else []
        if frame.type is Type.CANCEL:
            return self._inbox.on_cancel(Cancel.decode(frame.payload), frame.object_id)
        raise BadMessage(f"broadcast of a {frame.type.name}")
