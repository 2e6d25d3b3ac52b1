"""One object to many listeners on a shared downlink, each fragment sent once for all of them; both its ends.

docs/wire.md, "Broadcast", has the rules. Repairs are sent because one sum of fragments fills a different hole
at every listener. The neediest listener, at the losses it was seen to have, decides their number; one that
never answered gets none. A listener answers only when polled, else many answers would collide. Whoever holds
the group's key can forge broadcasts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from onboard.wire.config import Identity, Medium
from onboard.wire.events import Cancelled, Delivered, Event, Expired, GroupAnswer
from onboard.wire.framing.frame import BROADCAST, GROUP_ID, OVERHEAD_BYTES, PendingFrame, Type
from onboard.wire.medium.medium_access import GUARD_S, RETRY_S, Pacer, Timing
from onboard.wire.messages import PREFIX_BYTES, BadMessage, Cancel, Done, Reason, Report
from onboard.wire.security.seal import Opener, Sealer
from onboard.wire.transfer.inbox import Inbox
from onboard.wire.transfer.outgoing import Outgoing, deadline_of
from onboard.wire.transfer.peer import LossEstimator

_EPSILON_S = 1e-6  # as in Session
_OFFER_AGAIN = 32  # fragments; sooner at first, as a listener that missed it takes none
_QUICK_ASKS = 6  # to one listener, before it is polled ever less often
_SLOWER = 1.5
_MAX_RETRY_S = 8.0
_PRIORITY = 4
_WITHDRAWALS = 3  # CANCELs, which nobody answers


@dataclass(slots=True)
class _ReceiverState:
    """What the sender knows of one listener."""

    object: Outgoing
    ask_at: float  # when to poll again; inf: when nothing is left to send that it needs
    loss: LossEstimator = field(default_factory=LossEstimator)
    epoch: int = 0  # of its last REPORT
    asks: int = 0  # since it last answered
    reported: bool = False  # since the first pass ended: before, its deficit is a guess

    @property
    def deficit(self) -> tuple[float, int]:
        """As `Outgoing.deficit`; none as long as nothing is known."""
        if not self.reported:
            return -math.inf, 0
        return self.object.deficit(self.loss.expected, self.loss.burst)


class Broadcast:
    """Sends one object to `listeners`, the node numbers of sessions that hold the group's key. It has no I/O.

    `sealer`: of the group's key, from this node to BROADCAST; all broadcasts of an epoch share one. Contacts
    do not hold it back. `deadline_s`: None for never. Raises ValueError for too many fragments, a value out
    of range or a sealer to one node.

    `waiting`: the state of each listener that has neither refused the object nor stored it durably, by
    number. `orphans`: answers from others, or about another object; `malformed`: senseless ones."""

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
        ask_at = math.inf if self._timing.half_duplex else now  # full duplex: poll at once
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
        self._quiet_until = now  # half-duplex: the polled listener speaks
        self._ask_from = now  # so that two answers do not collide
        self.frames_sent = self.bytes_sent = self.fragments_sent = self.repairs_sent = 0
        self.orphans = self.malformed = 0

    # -- the application's side ------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return not self.waiting and not self._withdrawals

    @property
    def airtime_s(self) -> float:
        return self._pacer.airtime_s

    def cancel(self, now: float) -> None:
        """Stop, and tell the listeners that still wait."""
        self._end(Reason.WITHDRAWN)

    def handle(self, node: int, answer: GroupAnswer, now: float) -> list[Event]:
        """Take in the answer of `node`. Returns Delivered or Cancelled once for each listener."""
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
        """Return Expired once, when the deadline passes with listeners still waiting."""
        if now < self._deadline or not self.waiting:
            return []
        self._end(Reason.EXPIRED)
        return [Expired(self.digest)]

    def transmit(self, now: float) -> bytes | None:
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
        if self._withdrawals or (self.waiting and (self._offer_in == 0 or self._bulk() is not None)):
            ready = -math.inf
        else:
            ready = min((max(at, self._ask_from) for at, _, _ in self._asks(idle=True)), default=math.inf)
        leaves = math.inf if ready == math.inf else self._gate(max(now, ready))
        return max(now, min(leaves, self._deadline if self.waiting else math.inf))

    # -- one rule each ---------------------------------------------------------------------------------

    def _gate(self, now: float) -> float:
        return max(now, self._pacer.opens_at, self._quiet_until)

    def _choose(self, now: float) -> PendingFrame | None:
        """OFFER is first, then POLL, then bulk; on half-duplex POLL is last, as an answer would interrupt."""
        if self._withdrawals:
            return PendingFrame(Type.CANCEL, Cancel(self.digest, self._reason).encode())
        if not self.waiting:
            return None
        if self._offer_in == 0:
            return PendingFrame(Type.OFFER, self._object.offer(now))
        bulk = self._bulk()
        at, _, node = min(self._asks(idle=bulk is None))
        may_poll = max(at, self._ask_from) <= now
        if bulk is None or (may_poll and not self._timing.half_duplex):
            return PendingFrame(Type.POLL, fragment=node) if may_poll else None
        type_, number = bulk
        if type_ is Type.DATA:
            return PendingFrame(type_, self._object.fragment(number), fragment=number)
        transmission = self._sealer.epoch, self._sealer.seq + 1
        return PendingFrame(type_, self._object.repair(number, transmission), fragment=number << 8)

    def _bulk(self) -> tuple[Type, int] | None:
        """Return the next DATA fragment of the first pass, or DATA or REPAIR for the neediest listener."""
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
        if holes and holes.bit_count() <= lacks:  # so few in all that each is as good as a sum
            return Type.DATA, (holes & -holes).bit_length() - 1
        return Type.REPAIR, generation

    def _asks(self, *, idle: bool) -> list[tuple[float, int, int]]:
        """Return (time, questions so far, node) of each next poll. `idle`: there is no bulk to send."""
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
        if unknown:  # it missed every OFFER, and so all that was sent
            report = Report(self._sealer.epoch, report.seq, self.digest[:PREFIX_BYTES])
            self._offer_in = 0
        verdict = receiver.object.report(report, heard=heard, epoch=self._sealer.epoch)
        if verdict is None:
            self.orphans += 1
            return
        if not unknown and receiver.epoch in (0, heard[0]):  # losses while it was off say nothing
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
    """Return the object id of a broadcast: the same whenever, and by whomever, the object is sent again."""
    return GROUP_ID | int.from_bytes(digest[:2], "big")


class BroadcastListener:
    """Takes the broadcasts of the peer. `floor`: their highest persisted (epoch, seq)."""

    def __init__(self, identity: Identity, key: bytes, inbox: Inbox, floor: tuple[int, int]) -> None:
        self.opener = Opener(key, source=identity.peer, destination=BROADCAST, floor=floor)
        self._inbox, self._node, self._epoch = inbox, identity.node, floor[0]

    def handle(self, raw: bytes, now: float) -> tuple[list[Event], bool] | None:
        """Take in a frame: its events, and whether it polls this node and hands it the turn. None, and a
        count, for what is not the group's, whole and new."""
        frame = self.opener.open(raw)
        if frame is None:
            return None
        if frame.epoch > self._epoch:
            self._epoch = frame.epoch
            self._inbox.peer_restarted(of_broadcasts=True)
        asked = frame.type is Type.POLL and frame.fragment == self._node
        events: list[Event] = []
        try:
            if frame.object_id < GROUP_ID:
                raise BadMessage(f"broadcast of object id {frame.object_id}")
            if asked or frame.type is not Type.POLL:
                events = self._inbox.handle(frame, now)
        except BadMessage:
            self._inbox.malformed += 1
        return events, asked and frame.over
