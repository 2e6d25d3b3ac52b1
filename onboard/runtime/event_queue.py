"""Events of the links that wait to be handled: each peer has its turn, whatever one of them sends.

An object costs its peer a pause in proportion to the time that it took to handle, where the program asks for
one, so that a peer which sends object after object leaves most of the time to the others. Its later events
wait meanwhile, in their order. A link of which much waits is not heard until less does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from onboard.wire.events import Arrived, Event

MOST_WAITING = 256  # events of one peer before its link is heard no further


class EventQueue:
    """Events in the order in which each peer's came. clock: seconds, to see what an event took. object_pause:
    how long the next object of a peer waits, in multiples of what handling the one before it took."""

    def __init__(self, clock: Callable[[], float], object_pause: float = 0.0) -> None:
        self._clock, self._object_pause = clock, object_pause
        self._waiting: deque[tuple[int, Event]] = deque()
        self._not_before: dict[int, float] = {}  # by peer: its next object

    def add(self, peer: int, events: Iterable[Event]) -> None:
        """Puts a peer's events behind those that wait."""
        self._waiting.extend((peer, event) for event in events)

    def drop(self, peer: int) -> None:
        """Forgets a peer's events: its link has begun again, and what they speak of comes again."""
        self._waiting = deque(each for each in self._waiting if each[0] != peer)

    def is_full(self, peer: int) -> bool:
        """Whether so much of a peer waits that its link should not be heard."""
        if len(self._waiting) < MOST_WAITING:
            return False
        return sum(each[0] == peer for each in self._waiting) >= MOST_WAITING

    def handle(self, handler: Callable[[int, Event], None]) -> None:
        """Hands over all events whose turn has come. What `handler` raises is raised, and its event waits
        on."""
        later: deque[tuple[int, Event]] = deque()
        resting: set[int] = set()
        try:
            while self._waiting:
                peer, event = self._waiting[0]
                began = self._clock()
                is_object = isinstance(event, Arrived)
                if peer in resting or (is_object and began < self._not_before.get(peer, began)):
                    resting.add(peer)
                    later.append(self._waiting.popleft())
                    continue
                handler(peer, event)
                self._waiting.popleft()
                if is_object:
                    now = self._clock()
                    self._not_before[peer] = now + self._object_pause * (now - began)
        finally:
            later.extend(self._waiting)
            self._waiting = later

    def wakeup(self) -> float:
        """When the next object that rests may be handled; inf if none does."""
        return min(
            (self._not_before.get(peer, 0.0) for peer, event in self._waiting if isinstance(event, Arrived)),
            default=float("inf"),
        )
