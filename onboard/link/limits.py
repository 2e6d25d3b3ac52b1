"""What a session has to allow for depends on the port that carries it, and on this end's quotas."""

from __future__ import annotations

import math

from onboard.link import framing_of
from onboard.wire.events import Limits
from onboard.wire.medium.timing import LEAD_BYTES
from onboard.wire.presence import QUIET_S

REORDER_SLACK = 3  # TCP's duplicate threshold (RFC 5681, section 3.2)


def limits_for(port: str, bytes_per_contact: float = math.inf, bytes_per_day: float = math.inf) -> Limits:
    """Returns what a session allows for over the port at this URL: datagrams overtake one another and their
    ends move; bytes on a wire do neither, and a burst of them begins with delimiters. Raises BadUrl."""
    is_udp = framing_of(port)[0] == "datagram"
    return Limits(
        bytes_per_contact=bytes_per_contact,
        bytes_per_day=bytes_per_day,
        lead_bytes=0 if is_udp else LEAD_BYTES,
        quiet_s=QUIET_S if is_udp else math.inf,
        reorder_slack=REORDER_SLACK if is_udp else 0,
    )
