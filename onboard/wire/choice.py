"""Which frame leaves next, and whose it is: the order among HELLO, messages, answers, questions and bulk.

MSG leaves first, then answers, then questions, then the objects' pieces, the most urgent first; a peer that
owes an answer is sent questions only. `air` and `access` decide whether anything may leave at all.
"""

from __future__ import annotations

import heapq
import math
from functools import partial
from itertools import count

from onboard.wire.framing.frame import PendingFrame, Type
from onboard.wire.medium.contact_gate import ContactGate
from onboard.wire.medium.medium_access import MediumAccess
from onboard.wire.security.seals import SecurityContext
from onboard.wire.transfer.inbox import Inbox
from onboard.wire.transfer.outbox import MakeFrame, Outbox
from onboard.wire.transfer.peer import Presence

_QUESTIONS = (Type.HELLO, Type.OFFER, Type.POLL)


class MessageQueue:
    """Messages that wait to leave: at most `limit` MSGs of at most `longest_bytes`, by priority (0 first) and
    then by age. When there are too many the oldest gives way."""

    def __init__(self, limit: int, longest_bytes: int) -> None:
        self._limit, self._longest_bytes = limit, longest_bytes
        self._order = count()
        self._heap: list[tuple[int, int, bytes]] = []  # priority, order, payload

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, payload: bytes, priority: int) -> None:
        """Take one more to be sent. Raises ValueError where it does not fit a frame."""
        if len(payload) > self._longest_bytes or not 0 <= priority <= 7:
            raise ValueError(
                f"MSG of {len(payload)} B, priority {priority}: at most {self._longest_bytes} B, 0..7"
            )
        heapq.heappush(self._heap, (priority, next(self._order), payload))
        if len(self._heap) > self._limit:
            self._heap.remove(min(self._heap, key=lambda message: message[1]))
            heapq.heapify(self._heap)

    def first(self) -> PendingFrame:
        """The frame of the one that leaves next. Raises IndexError where none waits."""
        priority, _, payload = self._heap[0]
        return PendingFrame(Type.MSG, payload, priority=priority)

    def sent(self) -> None:
        """What `first` gave has left."""
        heapq.heappop(self._heap)


class Choice:
    """The order of one session's frames. `answer`: on half-duplex, the last answer of this turn."""

    def __init__(
        self,
        seals: SecurityContext,
        presence: Presence,
        gate: ContactGate,
        air: MediumAccess,
        messages: MessageQueue,
        inbox: Inbox,
        outbox: Outbox,
    ) -> None:
        self._seals, self._presence, self._gate, self._air = seals, presence, gate, air
        self._messages, self._inbox, self._outbox = messages, inbox, outbox
        self.answer: PendingFrame | None = None
        self._asked = (Type.DATA, 0, 0)  # of the frame heard last: type, object, and what had left by then

    def next_frame(self, now: float, group_floor: tuple[int, int]) -> tuple[float, MakeFrame | None]:
        """When a frame may leave next, inf for never as things stand, and what makes it, if that is now.
        group_floor: see Inbox.due."""
        hello_at = self._presence.frame_at()
        if hello_at <= now:
            return hello_at, self._presence.frame
        if self._presence.alone:
            return hello_at, None
        answer_at = math.inf
        if not self._outbox.held_back:
            if self._messages:
                return -math.inf, self._messages.first  # at once: it waits for no more than the port holds
            answer_at = self._inbox.due_at()
            if answer_at <= now:
                return answer_at, partial(self._inbox.due, now, self._seals.opener.floor, group_floor)
        bulk_at, left_s = self._gate.bulk_at, self._air.left_s(now)
        at, make = self._outbox.next_frame(now, self._seals.next_seq, bulk_at, left_s)
        return min(hello_at, answer_at, at), make

    def closing(self) -> PendingFrame:
        """What a turn that closes most wants heard, once more: its answer, or its question."""
        return self.answer or self._seals.least(self._outbox.asks_about)

    def sent(self, send: PendingFrame, end: float) -> None:
        """What `next_frame` made leaves, its last bit at `end`."""
        self._presence.sent(send, end)
        if send.is_outgoing:
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
