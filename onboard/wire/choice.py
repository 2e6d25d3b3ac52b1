"""Which frame leaves next, and whose it is: the order among HELLO, messages, answers, questions and bulk.

MSG leaves first, then answers, then questions, then the objects' pieces, the most urgent first; to a peer
that owes an answer go questions only. Whether anything may leave at all is `air`'s and `access`'s.
"""

from __future__ import annotations

import math

from onboard.wire.framing.frame import Type
from onboard.wire.medium.access import ContactGate
from onboard.wire.presence import Presence
from onboard.wire.security.seals import SecurityContext
from onboard.wire.transfer.inbox import Inbox
from onboard.wire.transfer.outbox import Outbox
from onboard.wire.transfer.send import PendingFrame
from onboard.wire.waiting import MessageQueue

_QUESTIONS = (Type.HELLO, Type.OFFER, Type.POLL)


class Choice:
    """Of one session, whose parts these are. `answer`: half-duplex: the last one of this turn."""

    def __init__(
        self,
        seals: SecurityContext,
        presence: Presence,
        access: ContactGate,
        messages: MessageQueue,
        inbox: Inbox,
        outbox: Outbox,
    ) -> None:
        self._seals, self._presence, self._access = seals, presence, access
        self._messages, self._inbox, self._outbox = messages, inbox, outbox
        self.answer: PendingFrame | None = None
        self._asked = (Type.DATA, 0, 0)  # of the frame heard last: type, object, and what had left by then

    def next(self, now: float, group_floor: tuple[int, int]) -> PendingFrame | None:
        """The frame that leaves now; group_floor: see Inbox.due."""
        send = self._presence.frame(now)
        if send is not None or self._presence.alone:
            return send
        seq = self._seals.next_seq
        if self._outbox.held_back:
            return self._outbox.control(now, seq)
        send = self._messages.first()  # at once: it waits for no more than what the port holds
        send = send or self._inbox.due(now, self._seals.opener.floor, group_floor)
        send = send or self._outbox.control(now, seq)
        if send is None and now >= self._access.bulk_at:
            send = self._outbox.bulk(now, seq, self._access.left_s(now))
        return send

    def closing(self) -> PendingFrame:
        """What a turn that closes most wants heard, once more: its answer, or its question."""
        return self.answer or self._seals.least(self._outbox.asks_about)

    def ready_at(self) -> float:
        """When `next` has a frame."""
        first_at = self._presence.frame_at()
        if self._presence.alone or first_at == -math.inf:
            return first_at
        if self._outbox.held_back:
            return min(first_at, self._outbox.control_at())
        if self._messages:
            return -math.inf
        bulk_at = self._access.bulk_at if self._outbox.has_bulk() else math.inf
        return min(first_at, bulk_at, self._inbox.due_at(), self._outbox.control_at())

    def sent(self, send: PendingFrame, end: float) -> None:
        """What `next` gave leaves, its last bit at `end`."""
        self._presence.sent(send, end)
        if send.about is not None:
            self._outbox.sent(send, self._seals.next_seq, end)
        elif send.type is Type.MSG:
            self._messages.sent()
        elif send.object_id:
            self.answer = send
            self._inbox.sent(send, end)

    def asks_again(self, kind: Type, object_id: int) -> bool:
        """Whether the peer, with the frame just heard, asks what it asked last, although something left
        meanwhile."""
        question = kind, object_id
        asked, self._asked = self._asked, (*question, self._seals.frames_sent)
        return kind in _QUESTIONS and asked[:2] == question and asked[2] < self._seals.frames_sent
