"""Which half-received objects give way to one that is offered now, where there is no room for all.

What a peer offers last is what it wants: an object that it speaks of no more, or of which nothing comes,
would else keep every later one out. One that is whole and waits for the application never gives way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onboard.wire.config import Limits
from onboard.wire.framing.frame import GROUP_ID
from onboard.wire.transfer.incoming import Incoming

RECUTS, RECUT_S = 8, 5.0  # of an object at once, and then one each 5 s: each other length is tried once


@dataclass(slots=True)
class Receipt:
    """What is to be said of one incoming object, and how it comes along."""

    object_id: int = 0  # 0: not offered in the peer's present epoch
    report_at: float = math.inf
    reported_at: float = -math.inf  # end of the last REPORT
    gap_s: float = 0.0  # after that one
    arrived: bool = False
    corrupt: int = 0
    came_at: float = -math.inf  # its first OFFER in this run, or its last new fragment
    recuts: float = 0.0  # of late: one less after RECUT_S
    recut_at: float = -math.inf

    @property
    def is_offered(self) -> bool:
        """By the peer itself and since its restart: not left over, nor of a broadcast that may be over."""
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
