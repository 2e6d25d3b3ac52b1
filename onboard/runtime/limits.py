"""What a session takes on: by its port, by its quotas, and by the memory that this end has.

Incoming objects are held in memory, and an OFFER may claim 4 GiB: one that is too large is refused before a
byte of it is held. Half-received objects are kept in the spool, which has the same limit as the memory, so
that a restarted agent never reads more.
"""

from __future__ import annotations

import math
from dataclasses import replace

from onboard.config import LinkEnd
from onboard.link import facts_of
from onboard.wire.config import Limits

OBJECT_SHARE = 16
"""A board takes objects of a 16th of its memory budget: it holds one up to five times for a moment, as it
comes, is packed once more to see whether it was asked before, and goes to the training."""
ALL_SHARE = 8  # and an 8th of the budget of all together, over all links
LEAST_BYTES = 2 * 2**20  # in any case: LeNet-5 in float32 has 1.7 MB
OBJECTS = 8  # at a time, on one link; honest ends have two on the way


def limits_for(port: str, bytes_per_contact: float = math.inf, bytes_per_day: float = math.inf) -> Limits:
    """Returns what a session allows for over the port at this URL: datagrams overtake one another and their
    ends move; bytes on a wire do neither, and a burst of them begins with delimiters. Raises BadUrl."""
    limits = facts_of(port).limits
    return replace(limits, bytes_per_contact=bytes_per_contact, bytes_per_day=bytes_per_day)


def board_limits(end: LinkEnd, budget_bytes: int, links: int = 1) -> Limits:
    """The limits of one of a board's `links` links, if its memory budget is `budget_bytes`."""
    object_bytes = max(LEAST_BYTES, budget_bytes // OBJECT_SHARE)
    return _with_objects(end, object_bytes, max(object_bytes, budget_bytes // ALL_SHARE // links))


def ground_limits(end: LinkEnd, model_bytes: int) -> Limits:
    """The ground's limits for the link with a board that trains a model of `model_bytes` in float32: no
    honest update is larger, except for its header."""
    object_bytes = max(LEAST_BYTES, 2 * model_bytes)
    return _with_objects(end, object_bytes, 2 * object_bytes)


def _with_objects(end: LinkEnd, object_bytes: int, all_bytes: int) -> Limits:
    limits = limits_for(end.port, end.bytes_per_contact, end.bytes_per_day)
    return replace(limits, max_object_bytes=object_bytes, max_incoming=OBJECTS, max_incoming_bytes=all_bytes)
