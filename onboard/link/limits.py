"""What a session has to allow for depends on the port that carries it, and on this end's quotas."""

from __future__ import annotations

import math

from onboard.link import facts_of
from onboard.wire.config import Limits


def limits_for(port: str, bytes_per_contact: float = math.inf, bytes_per_day: float = math.inf) -> Limits:
    """Returns what a session allows for over the port at this URL: datagrams overtake one another and their
    ends move; bytes on a wire do neither, and a burst of them begins with delimiters. Raises BadUrl."""
    facts = facts_of(port)
    return Limits(
        bytes_per_contact=bytes_per_contact,
        bytes_per_day=bytes_per_day,
        lead_bytes=facts.lead_bytes,
        quiet_s=facts.quiet_s,
        reorder_slack=facts.reorder_slack,
    )
