"""An edge between two nodes by its profile: when it carries anything, and what a message takes on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hw_profiles import Link
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import OVERHEAD_BYTES


def contacts_around(cut: tuple[float, float] | None) -> Sequence[tuple[float, float]]:
    """(rise, set) in seconds of an edge that carries nothing from one time until another."""
    whole = ((0.0, math.inf),) if cut is None else ((0.0, cut[0]), (cut[1], math.inf))
    return [(rise_s, set_s) for rise_s, set_s in whole if rise_s < set_s]


def framed_bytes(message_bytes: int, link: Link) -> int:
    """What a message takes on the wire in frames of the link's MTU, once: header, tag and COBS."""
    payload_bytes = link.mtu_bytes - OVERHEAD_BYTES
    whole, rest = divmod(message_bytes, payload_bytes)
    last = cobs.wire_bytes(rest + OVERHEAD_BYTES) if rest else 0
    return whole * cobs.wire_bytes(link.mtu_bytes) + last
