"""What this end owes the peer about each incoming object, and which objects give way where there is no room.

What a peer offers last is what it wants: an object that it no longer speaks of, or of which nothing comes,
would otherwise keep every later one out. One that is whole and waits for the application never gives way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onboard.wire.config import Limits
from onboard.wire.framing.frame import GROUP_ID
from onboard.wire.transfer.incoming import Incoming
from onboard.wire.transfer.states import INCOMING, IncomingEvent, IncomingState, follow

RECUTS, RECUT_S = 8, 5.0  # an object may be cut anew 8 times at once, and then every 5 s: there are 8 lengths


@dataclass(slots=True)
class Receipt:
    """The state of one incoming object, and what is to be said of it."""

    object_id: int = 0
    """The id by which the peer names the object; 0 where it is not offered in the peer's present epoch."""
    state: IncomingState = IncomingState.RESTING
    report_at: float = math.inf
    """When a REPORT is to leave; inf where none is owed."""
    reported_at: float = -math.inf
    """When the last bit of the last REPORT left."""
    gap_s: float = 0.0
    """The pause after that REPORT, before the next one that is asked for."""
    corrupt: int = 0
    """How many times the digest was wrong."""
    came_at: float = -math.inf
    """When its first OFFER of this run came, or its last new fragment."""
    recuts: float = 0.0
    """How many times it was cut anew of late: one less after every RECUT_S."""
    recut_at: float = -math.inf

    def meet(self, event: IncomingEvent) -> None:
        """Something that the object's state follows from has happened, see `states`."""
        self.state = follow(INCOMING, self.state, event)

    def bind(self, object_id: int) -> None:
        """The peer names the object by this id."""
        self.meet(IncomingEvent.BOUND)
        self.object_id = object_id

    def unbind(self) -> None:
        """The id means nothing any more, and nothing is owed until the object is offered again."""
        self.meet(IncomingEvent.UNBOUND)
        self.object_id, self.report_at = 0, math.inf

    def report_by(self, at: float) -> None:
        """A REPORT is owed, and may leave at `at`."""
        self.report_at = min(self.report_at, at)

    def reported(self, end: float, gap_s: float) -> None:
        """The REPORT that was owed leaves, its last bit at `end`."""
        self.report_at, self.reported_at, self.gap_s = math.inf, end, gap_s

    @property
    def owes_report(self) -> bool:
        """Whether a REPORT is to leave, at whatever time."""
        return self.report_at < math.inf

    @property
    def arrived(self) -> bool:
        """Whether the application has the object, and has not accepted it yet."""
        return self.state is IncomingState.ARRIVED

    @property
    def is_offered(self) -> bool:
        """Whether the peer itself offers the object, since its restart: a broadcast may be over."""
        return 0 < self.object_id < GROUP_ID

    def may_recut(self, now: float) -> bool:
        """Whether an OFFER is followed that cuts the object anew. Each time some of what came in is lost, and
        all of it is counted anew; no honest sender does it so often, and offers it again."""
        if self.recuts:
            self.recuts = max(0.0, self.recuts - (now - self.recut_at) / RECUT_S)
        self.recut_at = now
        if self.recuts > RECUTS - 1:
            return False
        self.recuts += 1
        return True


def giving_way(
    size: int, incoming: Mapping[bytes, Incoming], receipts: Mapping[bytes, Receipt], limits: Limits
) -> list[bytes] | None:
    """The objects that give way to one of `size` bytes, None if all that could would not be enough.

    First go those that the peer does not offer any more, then those of which nothing has come, and of each
    the one that has rested the longest; of equals the first in `receipts`.
    """
    count, total = len(incoming), sum(each.size for each in incoming.values())

    def is_room() -> bool:
        return count < limits.max_incoming and total + size <= limits.max_incoming_bytes

    going: list[bytes] = []
    for digest in sorted(
        (digest for digest, receipt in receipts.items() if not receipt.arrived),
        key=lambda name: (receipts[name].is_offered, incoming[name].have > 0, receipts[name].came_at),
    ):
        if is_room():
            break
        going.append(digest)
        count, total = count - 1, total - incoming[digest].size
    return going if is_room() else None
