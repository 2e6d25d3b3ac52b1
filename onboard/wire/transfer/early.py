"""Pieces of objects that were not offered yet, or not since this end's restart: OFFERs are lost, or late."""

from __future__ import annotations

from collections import deque

from onboard.wire.framing.frame import Frame

_FRAMES = 256  # one turn or more
_BYTES = 512 * 1024  # of their payloads, where frames are long


class Early:
    """The last of them, in the order in which they came."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._bytes = 0

    def keep(self, frame: Frame) -> None:
        """Until its object is offered; the oldest give way."""
        self._frames.append(frame)
        self._bytes += len(frame.payload)
        while len(self._frames) > _FRAMES or self._bytes > _BYTES:
            self._bytes -= len(self._frames.popleft().payload)

    def take(self, object_id: int) -> list[Frame]:
        """Those of an object that is offered now; they are kept no longer."""
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
