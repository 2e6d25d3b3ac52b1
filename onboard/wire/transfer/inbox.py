"""The receiving side of a session: what it holds of each object, what it answers, and when.

It answers REPORT (when polled, and now and then while DATA comes in), DONE, CANCEL, and REPORT "unknown" so
that the peer offers the object again. An answer always follows a frame from the peer; about a broadcast, a
POLL."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from onboard.wire.config import Limits
from onboard.wire.events import Arrived, Corrupt, Event, Evicted, Expired, Progress, Refused, Withdrawn
from onboard.wire.framing.frame import GROUP_ID, OVERHEAD_BYTES, Frame, PendingFrame, Type
from onboard.wire.medium.medium_access import Timing
from onboard.wire.messages import PREFIX_BYTES, BadMessage, Cancel, Done, Offer, Reason, Report
from onboard.wire.transfer.incoming import Incoming, Partial
from onboard.wire.transfer.peer import ReceiveStats
from onboard.wire.transfer.states import IncomingEvent

_IDS = 1024  # object ids of the peer that are remembered; a forgotten one is "unknown"
_MAX_REPLIES = 64
_MAX_CORRUPT = 2  # the second wrong digest is the offer's fault, not the spool's
_EARLY_FRAMES = 256  # one turn or more
_EARLY_BYTES = 512 * 1024  # of their payloads, where frames are long
_ACCEPT_S = 0.05  # the application's time to accept before a REPORT says "whole, not yet stored"


class Early:
    """The latest fragments of objects whose OFFER was lost or is late, in order of arrival."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._bytes = 0

    def keep(self, frame: Frame) -> None:
        """Keep a frame until its object is offered; the oldest are dropped."""
        self._frames.append(frame)
        self._bytes += len(frame.payload)
        while len(self._frames) > _EARLY_FRAMES or self._bytes > _EARLY_BYTES:
            self._bytes -= len(self._frames.popleft().payload)

    def take(self, object_ids: range) -> list[Frame]:
        """Return the frames of these ids and drop them here."""
        taken = [frame for frame in self._frames if frame.object_id in object_ids]
        if taken:
            self._frames = deque(frame for frame in self._frames if frame.object_id not in object_ids)
            self._bytes -= sum(len(frame.payload) for frame in taken)
        return taken


class Inbox:
    """All incoming objects of a session, by digest. `done`: the accepted digests, oldest first."""

    def __init__(self, timing: Timing, hearing: ReceiveStats, limits: Limits, done: Iterable[bytes]) -> None:
        self._timing, self._hearing, self._limits = timing, hearing, limits
        self._most_bytes = min(limits.max_object_bytes, limits.max_incoming_bytes)  # of one object
        self.incoming: dict[bytes, Incoming] = {}
        self._digests: OrderedDict[int, bytes] = OrderedDict()  # the peer's object ids, in its present epoch
        self._done: OrderedDict[bytes, None] = OrderedDict.fromkeys(done)
        self.done: Collection[bytes] = self._done.keys()
        self._settled: set[int] = set()  # the peer's object ids of what was accepted and forgotten
        self._refused: OrderedDict[int, Cancel] = OrderedDict()  # by the peer's object id
        self._replies: OrderedDict[tuple[Type, int], PendingFrame] = OrderedDict()
        self._early = Early()
        self._unknown_at = -math.inf  # when the next "unknown" may leave
        self.fragments = self.received_bytes = self.duplicates = self.orphans = self.malformed = 0
        self.corrupt = 0

    # -- the application's side ------------------------------------------------------------------------

    def resume(self, partial: Partial, now: float) -> None:
        """Resume a half-received object. Raises ValueError where the partial contradicts itself. Its sender
        may be gone, so it expires after the time that its last OFFER left it, counted from now."""
        if partial.digest in self._done:
            return
        incoming = self.incoming[partial.digest] = Incoming.of(partial)
        incoming.end_by(partial.deadline_s, now)

    def accept(self, digest: bytes) -> None:
        """Note that the application has the object durably. It may be gone by then, or on its way anew."""
        if (incoming := self.incoming.get(digest)) is None or not incoming.arrived:
            return
        self._drop(digest)
        self._remember(digest)
        if incoming.object_id:
            self._reply_done(digest, incoming.object_id, asked=incoming.report_at < math.inf)

    def refuse(self, digest: bytes, reason: int) -> None:
        if (incoming := self.incoming.get(digest)) is None:
            return
        self._drop(digest)
        if incoming.object_id:
            self._reply_cancel(Cancel(digest, reason), incoming.object_id)

    def forget(self, digests: Iterable[bytes]) -> None:
        """Take these accepted objects anew when they are offered anew, as their effect is lost. An OFFER
        under an old id is still answered with DONE; else one lost DONE would cost the whole object again."""
        gone = {digest for digest in digests if self._done.pop(digest, self) is None}
        self._settled |= {each for each, name in self._digests.items() if name in gone}

    # -- what may leave --------------------------------------------------------------------------------

    def due_at(self) -> float:
        if self._replies:
            return -math.inf
        return min((incoming.report_at for incoming in self.incoming.values()), default=math.inf)

    def due(self, now: float, floor: tuple[int, int], group_floor: tuple[int, int]) -> PendingFrame:
        """Return the due answer. `floor`, `group_floor`: epoch and seq of the highest frame and broadcast."""
        for send in self._replies.values():
            if send.type is not Type.REPORT:
                return send
            heard = group_floor if send.object_id >= GROUP_ID else floor
            return replace(send, payload=Report(*heard, unknown=True).encode(self._timing.payload_bytes))
        for digest, incoming in self.incoming.items():
            if incoming.report_at <= now:
                heard = group_floor if incoming.object_id >= GROUP_ID else floor
                prefix, sums = digest[:PREFIX_BYTES], incoming.equations
                report = Report(*heard, prefix=prefix, held=incoming.held, equations=sums)
                payload = report.encode(self._timing.payload_bytes)
                return PendingFrame(Type.REPORT, payload, incoming.object_id)
        raise AssertionError(f"no answer is due at {now}")

    def sent(self, send: PendingFrame, end: float) -> None:
        """Note that the answer from `due` leaves, its last bit at `end`."""
        if self._replies.pop((send.type, send.object_id), None) is not None:
            return
        gap_s = self._timing.report_gap_s(OVERHEAD_BYTES + len(send.payload))
        self.incoming[self._digests[send.object_id]].reported(end, gap_s)

    # -- what was heard --------------------------------------------------------------------------------

    def peer_restarted(self, *, of_broadcasts: bool = False) -> None:
        """Drop the peer's object ids: in its new epoch, or that of its broadcasts, they are reused."""
        ids = range(GROUP_ID, 2 * GROUP_ID) if of_broadcasts else range(GROUP_ID)
        self._early.take(ids)
        self._settled.difference_update(ids)
        for object_id in [each for each in self._digests if each in ids]:
            del self._digests[object_id]
        for object_id in [each for each in self._refused if each in ids]:
            del self._refused[object_id]
        for reply in [each for each in self._replies if each[1] in ids]:
            del self._replies[reply]
        for incoming in self.incoming.values():
            if incoming.object_id in ids:
                incoming.unbind()

    def handle(self, frame: Frame, now: float) -> list[Event]:
        """Take in a frame about an object of the peer's. Raises BadMessage for others, or senseless ones."""
        kind, object_id = frame.type, frame.object_id
        if kind is Type.DATA or kind is Type.REPAIR:
            return self._on_data(frame, now)
        if kind is Type.OFFER:
            return self._on_offer(Offer.decode(frame.payload), object_id, now)
        if kind is Type.POLL:
            return self._on_poll(object_id, now)
        if kind is Type.CANCEL:
            return self._on_cancel(Cancel.decode(frame.payload), object_id)
        raise BadMessage(f"{kind.name} about object {object_id}: no peer does that")

    def _on_offer(self, offer: Offer, object_id: int, now: float) -> list[Event]:
        if object_id < GROUP_ID and offer.size > offer.fragment_bytes:  # a single fragment's length is chance
            self._hearing.fragment_bytes = offer.fragment_bytes
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
                return [Refused(offer.digest, reason, offer.size, self._most_bytes)]
            incoming = Incoming(offer.digest, offer.kind, offer.size, offer.fragment_bytes)
            self.incoming[offer.digest] = incoming
            incoming.came_at = now
        elif (incoming.size, incoming.kind) != (offer.size, offer.kind):
            self.malformed += 1
            return []
        elif incoming.fragment_bytes != offer.fragment_bytes:
            is_known = object_id < GROUP_ID and self._digests.get(object_id) == offer.digest
            if is_known or not incoming.may_recut(now):
                self.malformed += 1  # under the same id its fragments would be of two lengths
                return []
            incoming.refragment(offer.fragment_bytes)
        self._bind(object_id, offer.digest)
        incoming.bind(object_id)
        incoming.report_by(now)
        incoming.end_by(offer.deadline_s, now)
        for frame in self._early.take(range(object_id, object_id + 1)):
            events += self._on_data(frame, now)
        if self.incoming.get(offer.digest) is not incoming:  # these completed it, and its digest was wrong
            return events
        return events + self._check(incoming, now)

    def _on_data(self, frame: Frame, now: float) -> list[Event]:
        digest = self._digests.get(frame.object_id)
        incoming = None if digest is None else self.incoming.get(digest)
        if incoming is None and frame.object_id >= GROUP_ID:
            self.orphans += digest is None
            return []
        if incoming is None:
            if digest is None:
                self._early.keep(frame)
            return self._on_poll(frame.object_id, now) if frame.poll or digest is None else []
        if frame.object_id < GROUP_ID:
            incoming.bind(frame.object_id)  # even if it is broadcast as well
        have = incoming.have
        try:
            if frame.type is Type.REPAIR:
                generation, reserved = divmod(frame.fragment, 256)
                if reserved:
                    raise BadMessage(f"repair with fragment field {frame.fragment:#06x}")
                new = incoming.repair((frame.epoch, frame.seq), generation, frame.payload)
            else:
                new = incoming.store(frame.fragment, frame.payload)
        except BadMessage:
            self.malformed += 1
            return []
        self.fragments += incoming.have - have
        self.duplicates += not new
        often_s = self._timing.report_interval_s(incoming.count, self._hearing.loss)
        pause_s = incoming.gap_s if frame.poll else often_s
        incoming.report_by(now, -math.inf if self._timing.half_duplex else pause_s)
        if not new:
            return []
        incoming.came_at = now
        self.received_bytes += len(frame.payload)
        return self._check(incoming, now)

    def _on_poll(self, object_id: int, now: float) -> list[Event]:
        if object_id == 0:
            return []
        digest = self._digests.get(object_id)
        if digest is not None and (incoming := self.incoming.get(digest)) is not None:
            incoming.bind(object_id)
            incoming.report_by(now, incoming.gap_s, asked=True)
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

    def _on_cancel(self, cancel: Cancel, object_id: int) -> list[Event]:
        """Drop an object that the peer withdraws; the answer is REPORT "unknown"."""
        self._unbind(object_id)
        self._reply(PendingFrame(Type.REPORT, object_id=object_id))
        if cancel.digest not in self.incoming:
            return []
        self._drop(cancel.digest)
        return [Withdrawn(cancel.digest, cancel.reason)]

    def tick(self, now: float) -> list[Event]:
        late = [digest for digest, incoming in self.incoming.items() if incoming.deadline <= now]
        for digest in late:
            self._drop(digest)
        return [Expired(digest) for digest in late]

    def tick_at(self) -> float:
        return min((incoming.deadline for incoming in self.incoming.values()), default=math.inf)

    def progress(self) -> Iterator[Progress]:
        """Estimate each object's time to the end from the peer's rate and the share of frames lost."""
        for incoming in self.incoming.values():
            frame_s = self._timing.back_airtime_s(OVERHEAD_BYTES + incoming.fragment_bytes)
            left_s = (incoming.count - incoming.have) * frame_s / max(1 - self._hearing.loss, 0.01)
            name, kind, size, count = incoming.digest, incoming.kind, incoming.size, incoming.count
            yield Progress(name, kind, True, size, count, incoming.have, left_s)

    # -- one rule each ---------------------------------------------------------------------------------

    def _check(self, incoming: Incoming, now: float) -> list[Event]:
        if not incoming.complete or incoming.arrived:  # not accepted yet: the REPORT says so
            return []
        payload = incoming.verified()
        if payload is not None:
            incoming.meet(IncomingEvent.VERIFIED)
            if incoming.object_id < GROUP_ID or incoming.report_at < math.inf:
                incoming.report_at = now + _ACCEPT_S
            return [Arrived(incoming.digest, incoming.kind, payload)]
        self.corrupt += 1
        incoming.corrupt += 1
        incoming.meet(IncomingEvent.CORRUPT)
        incoming.report_by(now)
        incoming.clear()
        if incoming.corrupt < _MAX_CORRUPT and incoming.count:
            return [Corrupt(incoming.digest)]
        self.refuse(incoming.digest, Reason.BAD_OFFER)
        return [Corrupt(incoming.digest), Refused(incoming.digest, Reason.BAD_OFFER)]

    def _objection(self, offer: Offer, events: list[Event]) -> Reason | None:
        """Return why a new object is refused, or None. Objects that make room for it are added to `events`.

        What a peer offers last is what it wants. First to go are objects that it does not offer any more (a
        broadcast may be over), then those of which nothing has come; among equals, what rested longest."""
        if offer.fragment_bytes > self._timing.payload_bytes:
            return Reason.BAD_OFFER
        if offer.size > self._most_bytes:
            return Reason.TOO_LARGE
        count, total = len(self.incoming), sum(each.size for each in self.incoming.values())
        rivals = sorted(
            (each for each in self.incoming.values() if not each.arrived),
            key=lambda each: (0 < each.object_id < GROUP_ID, each.have > 0, each.came_at),
        )
        going = 0
        while count >= self._limits.max_incoming or total + offer.size > self._limits.max_incoming_bytes:
            if going == len(rivals):
                return Reason.TOO_MANY
            count, total, going = count - 1, total - rivals[going].size, going + 1
        for rival in rivals[:going]:
            self._drop(rival.digest)
            events.append(Evicted(rival.digest))
        return None

    def _unbind(self, object_id: int) -> None:
        incoming = self.incoming.get(self._digests.pop(object_id, b""))
        if incoming is not None and incoming.object_id == object_id:
            incoming.unbind()

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

    def _remember(self, digest: bytes) -> None:
        self._done[digest] = None
        self._done.move_to_end(digest)
        while len(self._done) > self._limits.remembered:
            self._done.popitem(last=False)

    def _drop(self, digest: bytes) -> None:
        self.incoming.pop(digest).meet(IncomingEvent.END)
