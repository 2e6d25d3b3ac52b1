"""What each type of frame is for: answers are the outbox's, questions and pieces of objects the inbox's."""

from __future__ import annotations

from onboard.wire.events import Event, GroupAnswer, Message
from onboard.wire.framing.frame import GROUP_ID, OVERHEAD_BYTES, Frame, Type
from onboard.wire.hearing import ReceiveStats
from onboard.wire.medium.timing import Timing
from onboard.wire.messages import BadMessage, Cancel, Done, Offer
from onboard.wire.security.seal import Sealer
from onboard.wire.transfer.inbox import Inbox
from onboard.wire.transfer.outbox import Outbox
from onboard.wire.transfer.report import Report


def dispatch(
    frame: Frame,
    now: float,
    sealer: Sealer,
    timing: Timing,
    hearing: ReceiveStats,
    inbox: Inbox,
    outbox: Outbox,
) -> list[Event]:
    """What an authentic frame brings. Raises BadMessage for a payload that makes no sense."""
    if frame.type is Type.DATA or frame.type is Type.REPAIR:
        hearing.bulk(now)
        inbox.loss = hearing.loss
        outbox.peer_is_busy(True)
        return inbox.on_data(frame, now)
    outbox.peer_is_busy(hearing.is_busy(now))
    if frame.object_id >= GROUP_ID and frame.type in (Type.REPORT, Type.DONE, Type.CANCEL):
        left_s = frame.fragment * timing.back_airtime_s(OVERHEAD_BYTES + len(frame.payload))
        return [GroupAnswer(frame, left_s)]
    if frame.type is Type.REPORT:
        report = Report.decode(frame.payload)
        if frame.object_id and not (report.epoch == sealer.epoch and report.seq > sealer.seq):
            return outbox.on_report(report, frame.object_id, hearing.order(frame), hearing.fates, now)
        return []
    if frame.type is Type.OFFER:
        offer = Offer.decode(frame.payload)
        if offer.size > offer.fragment_bytes:  # of one fragment the length is chance
            outbox.peer_cuts(offer.fragment_bytes)
        return inbox.on_offer(offer, frame.object_id, now)
    if frame.type is Type.POLL:
        return inbox.on_poll(frame, now)
    if frame.type is Type.DONE:
        return outbox.on_done(Done.decode(frame.payload), now)
    if frame.type is Type.CANCEL:
        cancel = Cancel.decode(frame.payload)
        if cancel.by_sender:
            return inbox.on_cancel(cancel, frame.object_id)
        return outbox.on_cancel(cancel, frame.object_id, now)
    if frame.type is Type.MSG:
        return [Message(frame.payload)]
    raise BadMessage(f"{frame.type.name} under a key of traffic: no peer does that")
