"""The objects that one end receives: what it holds, what it answers, and when.

The answers are REPORT (when asked for, and now and then while DATA comes in), DONE once the application has
the object, CANCEL for an object that it will not take, and a REPORT that says "unknown" so that the peer
offers the object again. An answer always follows a frame of the peer's, and about a broadcast it always
follows a question. A frame that makes no sense changes nothing but a counter.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from onboard.wire.config import Limits
from onboard.wire.events import (
    Arrived,
    Corrupt,
    Event,
    Evicted,
    Expired,
    Progress,
    Refused,
    Withdrawn,
)
from onboard.wire.framing.frame import GROUP_ID, OVERHEAD_BYTES, Frame, PendingFrame, Type
from onboard.wire.medium.medium_access import Timing
from onboard.wire.messages import Cancel, Done, Offer, Reason
from onboard.wire.transfer.incoming import BadFragment, Incoming, Partial
from onboard.wire.transfer.receipt import Receipt, giving_way
from onboard.wire.transfer.report import PREFIX_BYTES, Report
from onboard.wire.transfer.states import IncomingEvent

_IDS = 1024  # object ids of the peer's that are remembered; one that was forgotten is "unknown"
_MAX_REPLIES = 64
_MAX_CORRUPT = 2  # the second wrong digest is the offer's fault, not the spool's
_EARLY_FRAMES = 256  # one turn or more
_EARLY_BYTES = 512 * 1024  # of their payloads, where frames are long
_ACCEPT_S = 0.05  # the application has this long to accept before a REPORT says "whole, not yet stored"


class Early:
    """The last pieces of objects that were not offered yet, or not since this end's restart, in the order in
    which they came: OFFERs are lost, or late."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._bytes = 0

    def keep(self, frame: Frame) -> None:
        """Keep a frame until its object is offered; the oldest give way."""
        self._frames.append(frame)
        self._bytes += len(frame.payload)
        while len(self._frames) > _EARLY_FRAMES or self._bytes > _EARLY_BYTES:
            self._bytes -= len(self._frames.popleft().payload)

    def take(self, object_id: int) -> list[Frame]:
        """Give the frames of an object that is offered now, and keep them no longer."""
        return self._remove(range(object_id, object_id + 1))

    def forget(self, object_ids: range) -> None:
        """These ids mean other objects from now on."""
        self._remove(object_ids)

    def _remove(self, object_ids: range) -> list[Frame]:
        taken = [frame for frame in self._frames if frame.object_id in object_ids]
        if taken:
            self._frames = deque(frame for frame in self._frames if frame.object_id not in object_ids)
            self._bytes -= sum(len(frame.payload) for frame in taken)
        return taken


class Inbox:
    """All incoming objects of a session, by digest in `incoming`."""

    def __init__(self, timing: Timing, limits: Limits, done: Iterable[bytes]) -> None:
        self._timing, self._limits = timing, limits
        self.incoming: dict[bytes, Incoming] = {}
        self._receipts: dict[bytes, Receipt] = {}
        self._digests: OrderedDict[int, bytes] = OrderedDict()  # the peer's object ids, in its present epoch
        self._done: OrderedDict[bytes, None] = OrderedDict.fromkeys(done)
        self._settled: set[int] = set()  # the peer's object ids of what was accepted and forgotten
        self._refused: OrderedDict[int, Cancel] = OrderedDict()  # by the peer's object id
        self._replies: OrderedDict[tuple[Type, int], PendingFrame] = OrderedDict()
        self._early = Early()
        self._unknown_at = -math.inf  # when the next "unknown" may leave
        self.fragments = self.received_bytes = self.duplicates = self.orphans = self.malformed = 0
        self.corrupt = 0
        self.loss = 0.0  # share of the peer's frames, as last measured

    # -- the application's side ------------------------------------------------------------------------

    def resume(self, partial: Partial, now: float) -> None:
        """Go on with a half-received object. Raises ValueError where the partial contradicts itself.

        Its sender may be gone or have given it up meanwhile, and says nothing of it then: it ends after the
        time that its last OFFER left it, counted from now, as nobody knows how long this end was off.
        """
        if partial.digest in self._done:
            return
        incoming = self.incoming[partial.digest] = Incoming.of(partial)
        incoming.end_by(partial.deadline_s, now)
        self._receipts[partial.digest] = Receipt()

    def accept(self, digest: bytes) -> None:
        """The application has the object durably. It may be gone by then, or on its way anew."""
        if (receipt := self._receipts.get(digest)) is None or not receipt.arrived:
            return
        self._drop(digest)
        self._remember(digest)
        if receipt.object_id:
            self._reply_done(digest, receipt.object_id, asked=receipt.owes_report)

    def refuse(self, digest: bytes, reason: int) -> None:
        """The application does not want the object. It may be gone by then."""
        if (receipt := self._receipts.get(digest)) is None:
            return
        self._drop(digest)
        if receipt.object_id:
            self._reply_cancel(Cancel(digest, reason), receipt.object_id)

    def forget(self, digests: Iterable[bytes]) -> None:
        """What accepted objects did is lost: offered anew they are taken anew. That they were accepted stays
        true for the offers that they came by, or one lost DONE would bring all of an object again."""
        gone = {digest for digest in digests if self._done.pop(digest, self) is None}
        self._settled |= {each for each, name in self._digests.items() if name in gone}

    @property
    def done(self) -> Collection[bytes]:
        """Digests of accepted objects, oldest first."""
        return self._done.keys()

    # -- what may leave --------------------------------------------------------------------------------

    def due_at(self) -> float:
        """When the next answer is due; inf for never."""
        if self._replies:
            return -math.inf
        return min((receipt.report_at for receipt in self._receipts.values()), default=math.inf)

    def due(self, now: float, floor: tuple[int, int], group_floor: tuple[int, int]) -> PendingFrame:
        """The answer that is due, as `due_at` said. floor, group_floor: epoch and seq of the highest frame
        that was heard, and of the highest broadcast."""
        for send in self._replies.values():
            if send.type is Type.REPORT:
                heard = group_floor if send.object_id >= GROUP_ID else floor
                return replace(send, payload=Report(*heard, unknown=True).encode(self._timing.payload_bytes))
            return send
        for digest, receipt in self._receipts.items():
            if receipt.report_at <= now:
                incoming = self.incoming[digest]
                report = Report(
                    *(group_floor if receipt.object_id >= GROUP_ID else floor),
                    prefix=digest[:PREFIX_BYTES],
                    held=incoming.held,
                    equations=incoming.equations,
                )
                return PendingFrame(Type.REPORT, report.encode(self._timing.payload_bytes), receipt.object_id)
        raise AssertionError(f"no answer is due at {now}")

    def sent(self, send: PendingFrame, end: float) -> None:
        """The answer that `due` gave leaves, its last bit at `end`."""
        if self._replies.pop((send.type, send.object_id), None) is not None:
            return
        receipt = self._receipts[self._digests[send.object_id]]
        receipt.reported(end, self._timing.report_gap_s(OVERHEAD_BYTES + len(send.payload)))

    # -- what was heard --------------------------------------------------------------------------------

    def peer_restarted(self) -> None:
        """The peer has a new epoch: its object ids mean other objects now."""
        self._forget_ids(range(GROUP_ID))

    def broadcaster_restarted(self) -> None:
        """As `peer_restarted`, where the peer's broadcasts have a new epoch."""
        self._forget_ids(range(GROUP_ID, 2 * GROUP_ID))

    def on_offer(self, offer: Offer, object_id: int, now: float) -> list[Event]:
        """The peer has an object for this end."""
        if object_id == 0:
            self.malformed += 1
            return []
        if self._digests.get(object_id) != offer.digest:
            self._settled.discard(object_id)
        if offer.digest in self._done or object_id in self._settled:
            self._bind(object_id, offer.digest)
            if offer.digest in self._done:
                self._remember(offer.digest)
            self._reply_done(offer.digest, object_id)
            return []
        refused = self._refused.get(object_id)
        if refused is not None and refused.digest == offer.digest:
            self._reply_cancel(refused, object_id)
            return []
        events: list[Event] = []
        incoming = self.incoming.get(offer.digest)
        if incoming is None:
            reason = self._objection(offer, events)
            if reason is not None:
                self._reply_cancel(Cancel(offer.digest, reason), object_id)
                return [Refused(offer.digest, reason, offer.size, self._limits.object_bytes)]
            incoming = Incoming(offer.digest, offer.kind, offer.size, offer.fragment_bytes)
            self.incoming[offer.digest] = incoming
            self._receipts[offer.digest] = Receipt(came_at=now)
        elif (incoming.size, incoming.kind) != (offer.size, offer.kind):
            self.malformed += 1
            return []
        elif incoming.fragment_bytes != offer.fragment_bytes:
            is_known = object_id < GROUP_ID and self._digests.get(object_id) == offer.digest
            if is_known or not self._receipts[offer.digest].may_recut(now):
                self.malformed += 1  # under the same id its fragments would be of two lengths
                return []
            incoming.refragment(offer.fragment_bytes)
        self._bind(object_id, offer.digest)
        receipt = self._receipts[offer.digest]
        receipt.bind(object_id)
        self._report(receipt, now)
        incoming.end_by(offer.deadline_s, now)
        for frame in self._early.take(object_id):
            events += self.on_data(frame, now)
        if self._receipts.get(offer.digest) is not receipt:  # they made it whole, and it was wrong
            return events
        return events + self._check(incoming, receipt, now)

    def on_data(self, frame: Frame, now: float) -> list[Event]:
        """A fragment came, or a sum of some fragments."""
        digest = self._digests.get(frame.object_id)
        incoming = None if digest is None else self.incoming.get(digest)
        if incoming is None and frame.object_id >= GROUP_ID:
            self.orphans += digest is None
            return []
        if incoming is None:
            if digest is None:
                self._early.keep(frame)
            return self._on_question(frame.object_id, now) if frame.poll or digest is None else []
        receipt = self._receipts[incoming.digest]
        if frame.object_id < GROUP_ID:
            receipt.bind(frame.object_id)  # even if it is broadcast as well
        have = incoming.have
        try:
            if frame.type is Type.REPAIR:
                generation, reserved = divmod(frame.fragment, 256)
                if reserved:
                    raise BadFragment(f"repair with fragment field {frame.fragment:#06x}")
                new = incoming.repair((frame.epoch, frame.seq), generation, frame.payload)
            else:
                new = incoming.store(frame.fragment, frame.payload)
        except BadFragment:
            self.malformed += 1
            return []
        self.fragments += incoming.have - have
        receipt.came_at = now if new else receipt.came_at
        self.duplicates += not new
        self.received_bytes += len(frame.payload) if new else 0
        wait_s = receipt.gap_s if frame.poll else self._timing.report_interval_s(incoming.count, self.loss)
        at = now if self._timing.half_duplex else max(now, receipt.reported_at + wait_s)
        self._report(receipt, at)
        return self._check(incoming, receipt, now) if new else []

    def on_poll(self, frame: Frame, now: float) -> list[Event]:
        """The peer asks how far an object is."""
        return self._on_question(frame.object_id, now)

    def on_cancel(self, cancel: Cancel, object_id: int) -> list[Event]:
        """The peer withdraws an object; it is told that the object is not known here any more."""
        receipt = self._receipts.get(cancel.digest)
        self._unbind(object_id)
        self._reply(PendingFrame(Type.REPORT, object_id=object_id))
        if receipt is None:
            return []
        self._drop(cancel.digest)
        return [Withdrawn(cancel.digest, cancel.reason)]

    def tick(self, now: float) -> list[Event]:
        """Give up the objects whose deadline has passed."""
        late = [digest for digest, incoming in self.incoming.items() if incoming.deadline <= now]
        for digest in late:
            self._drop(digest)
        return [Expired(digest) for digest in late]

    def tick_at(self) -> float:
        """When `tick` next has something to do."""
        return min((incoming.deadline for incoming in self.incoming.values()), default=math.inf)

    def progress(self, loss: float) -> Iterator[Progress]:
        """How far each object is, with its time to the end at the peer's rate and the share of frames
        lost."""
        for incoming in self.incoming.values():
            frame_s = self._timing.back_airtime_s(OVERHEAD_BYTES + incoming.fragment_bytes)
            left_s = (incoming.count - incoming.have) * frame_s / max(1 - loss, 0.01)
            yield Progress(
                incoming.digest, incoming.kind, True, incoming.size, incoming.count, incoming.have, left_s
            )

    # -- one rule each ---------------------------------------------------------------------------------

    def _check(self, incoming: Incoming, receipt: Receipt, now: float) -> list[Event]:
        """Deliver an object that has become whole, once."""
        if not incoming.complete:
            return []
        if receipt.arrived:  # and is not accepted yet: the REPORT says so
            return []
        payload = incoming.verified()
        if payload is not None:
            receipt.meet(IncomingEvent.VERIFIED)
            if receipt.object_id < GROUP_ID or receipt.owes_report:
                receipt.report_at = now + _ACCEPT_S
            return [Arrived(incoming.digest, incoming.kind, payload)]
        self.corrupt += 1
        receipt.corrupt += 1
        receipt.meet(IncomingEvent.CORRUPT)
        self._report(receipt, now)
        incoming.clear()
        if receipt.corrupt < _MAX_CORRUPT and incoming.count:
            return [Corrupt(incoming.digest)]
        self.refuse(incoming.digest, Reason.BAD_OFFER)
        return [Corrupt(incoming.digest), Refused(incoming.digest, Reason.BAD_OFFER)]

    def _objection(self, offer: Offer, events: list[Event]) -> Reason | None:
        """Why a new object is not taken, None if it is. May make room, which is then among `events`."""
        if offer.fragment_bytes > self._timing.payload_bytes:
            return Reason.BAD_OFFER
        if offer.size > self._limits.object_bytes:
            return Reason.TOO_LARGE
        going = giving_way(offer.size, self.incoming, self._receipts, self._limits)
        for digest in going or ():
            self._drop(digest)
            events.append(Evicted(digest))
        return Reason.TOO_MANY if going is None else None

    def _on_question(self, object_id: int, now: float) -> list[Event]:
        if object_id == 0:
            return []
        digest = self._digests.get(object_id)
        if digest is not None and (receipt := self._receipts.get(digest)) is not None:
            receipt.bind(object_id)
            receipt.report_by(max(now, receipt.reported_at + receipt.gap_s))
        elif digest is not None and (digest in self._done or object_id in self._settled):
            self._reply_done(digest, object_id, asked=True)
        elif object_id in self._refused:
            self._reply_cancel(self._refused[object_id], object_id, asked=True)
        else:
            self.orphans += 1
            if now >= self._unknown_at:
                self._unknown_at = now + self._timing.answer_s(0, busy=False)
                self._reply(PendingFrame(Type.REPORT, object_id=object_id), asked=True)
        return []

    def _unbind(self, object_id: int) -> None:
        """The peer's object id names nothing (more); what it named is not reported on until offered again."""
        receipt = self._receipts.get(self._digests.pop(object_id, b""))
        if receipt is not None and receipt.object_id == object_id:
            receipt.unbind()

    def _bind(self, object_id: int, digest: bytes) -> None:
        if self._digests.get(object_id) != digest:
            self._unbind(object_id)
            # Cut anew: what still comes under an id before this one counts in fragments of another length.
            for each in [id_ for id_, name in self._digests.items() if name == digest and id_ < GROUP_ID]:
                del self._digests[each]
        self._digests[object_id] = digest
        self._digests.move_to_end(object_id)
        self._refused.pop(object_id, None)
        self._replies.pop((Type.REPORT, object_id), None)  # it is not unknown any more
        for old in list(self._digests)[: len(self._digests) - _IDS]:
            if self._digests[old] not in self.incoming:
                del self._digests[old]

    def _report(self, receipt: Receipt, at: float) -> None:
        """A REPORT may leave at `at`, unless it has to be asked for."""
        if receipt.object_id < GROUP_ID:
            receipt.report_by(at)

    def _reply(self, send: PendingFrame, *, asked: bool = False) -> None:
        if send.object_id >= GROUP_ID and not asked:
            return
        if len(self._replies) < _MAX_REPLIES:  # else the peer asks again
            self._replies[send.type, send.object_id] = send

    def _reply_done(self, digest: bytes, object_id: int, *, asked: bool = False) -> None:
        self._reply(PendingFrame(Type.DONE, Done(digest).encode(), object_id), asked=asked)

    def _reply_cancel(self, cancel: Cancel, object_id: int, *, asked: bool = False) -> None:
        self._refused[object_id] = cancel
        if len(self._refused) > self._limits.remembered:
            self._refused.popitem(last=False)
        self._reply(PendingFrame(Type.CANCEL, cancel.encode(), object_id), asked=asked)

    def _forget_ids(self, ids: range) -> None:
        """The peer's object ids in `ids` mean nothing any more."""
        self._early.forget(ids)
        self._settled.difference_update(ids)
        for object_id in [each for each in self._digests if each in ids]:
            del self._digests[object_id]
        for object_id in [each for each in self._refused if each in ids]:
            del self._refused[object_id]
        for reply in [each for each in self._replies if each[1] in ids]:
            del self._replies[reply]
        for receipt in self._receipts.values():
            if receipt.object_id in ids:
                receipt.unbind()

    def _remember(self, digest: bytes) -> None:
        self._done[digest] = None
        self._done.move_to_end(digest)
        while len(self._done) > self._limits.remembered:
            self._done.popitem(last=False)

    def _drop(self, digest: bytes) -> None:
        del self.incoming[digest]
        self._receipts.pop(digest).meet(IncomingEvent.END)
