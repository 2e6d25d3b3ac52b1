"""How large an object of a peer may be: what comes in is held in memory, and an OFFER may say 4 GiB.

One that is too large is refused before a byte of it is held. What half came in lies in the spool, which holds
as much as the memory, so that an agent that starts again never reads more.
"""

from __future__ import annotations

from dataclasses import replace

from onboard.wire.config import Limits

OBJECT_SHARE = 16
"""A board takes objects of a 16th of its memory budget: it holds one up to five times for a moment, as it
comes, is packed once more to see whether it was asked before, and goes to the training."""
ALL_SHARE = 8  # and an 8th of the budget of all together, over all links
LEAST_BYTES = 2 * 2**20  # in any case: LeNet-5 in float32 has 1.7 MB
OBJECTS = 8  # at a time, on one link; honest ends have two on the way


def within(limits: Limits, budget_bytes: int, links: int = 1) -> Limits:
    """What one of `links` links of a board takes on, whose memory budget is `budget_bytes`."""
    object_bytes = max(LEAST_BYTES, budget_bytes // OBJECT_SHARE)
    all_bytes = max(object_bytes, budget_bytes // ALL_SHARE // links)
    return replace(limits, max_object_bytes=object_bytes, max_incoming=OBJECTS, max_incoming_bytes=all_bytes)


def for_updates(limits: Limits, model_bytes: int) -> Limits:
    """What the link with a board takes on that trains a model of `model_bytes` in float32: no honest update
    has more, but for its header."""
    object_bytes = max(LEAST_BYTES, 2 * model_bytes)
    return replace(
        limits, max_object_bytes=object_bytes, max_incoming=OBJECTS, max_incoming_bytes=2 * object_bytes
    )
