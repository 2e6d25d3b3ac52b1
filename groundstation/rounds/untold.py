"""What the links brought and the mission has not dealt with: each board in its turn, none at another's cost.

An object may cost a hundred times what its bytes did: it is unpacked, checked and stored. So of each board
one is dealt with at a time, and the next one after a pause that leaves most of the time to the others. What
cannot be stored yet waits; a link of which much waits is not heard meanwhile.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

from groundstation.station import Station
from onboard.wire.events import Arrived, Event
from onboard.wire.session import Session

MOST_WAITING = 256  # events of a board
PAUSE = 4.0  # times what the object before took

Tell = Callable[[Station, Event, Session], None]


class Untold:
    """Events in the order in which each board's came. `clock`: seconds, to see what an event took."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: deque[tuple[Station, Event, Session]] = deque()
        self._not_before: dict[int, float] = {}  # by node: its next object

    def add(self, station: Station, events: Iterable[Event]) -> None:
        """They are told with the session that they came by, which may end before."""
        self._waiting.extend((station, event, station.session) for event in events)

    def hold_back(self, stations: Iterable[Station]) -> None:
        """Links of which much waits are not heard until less does."""
        waiting = Counter(station.node.id for station, _, _ in self._waiting)
        for station in stations:
            station.pump.hears = waiting[station.node.id] < MOST_WAITING

    def tell(self, tell: Tell) -> None:
        """All that may be told now. What `tell` raises is raised, and the event it was about waits on."""
        later: deque[tuple[Station, Event, Session]] = deque()
        resting: set[int] = set()
        try:
            while self._waiting:
                station, event, session = self._waiting[0]
                node, began = station.node.id, self._clock()
                is_object = isinstance(event, Arrived)
                if node in resting or (is_object and began < self._not_before.get(node, began)):
                    resting.add(node)
                    later.append(self._waiting.popleft())
                    continue
                tell(station, event, session)
                self._waiting.popleft()
                if is_object:
                    now = self._clock()
                    self._not_before[node] = now + PAUSE * (now - began)
        finally:
            later.extend(self._waiting)
            self._waiting = later

    def wakeup(self) -> float:
        """When the next object that rests may be told; inf if none does."""
        return min(
            (
                self._not_before.get(station.node.id, 0.0)
                for station, event, _ in self._waiting
                if isinstance(event, Arrived)
            ),
            default=float("inf"),
        )
