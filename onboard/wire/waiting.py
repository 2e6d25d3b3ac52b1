"""Messages that wait to leave, the most urgent first; when there are too many the oldest gives way."""

from __future__ import annotations

import heapq
from itertools import count

from onboard.wire.framing.frame import Type
from onboard.wire.transfer.send import PendingFrame


class MessageQueue:
    """At most `limit` MSGs of at most `longest_bytes`, by priority (0 first) and then by age."""

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

    def first(self) -> PendingFrame | None:
        """The frame of the one that leaves next."""
        if not self._heap:
            return None
        priority, _, payload = self._heap[0]
        return PendingFrame(Type.MSG, payload, priority=priority)

    def sent(self) -> None:
        """What `first` gave has left."""
        heapq.heappop(self._heap)
