"""What a node that gossips keeps in its journal, and what it may be doing."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from onboard.storage.boot_counter import Counted
from onboard.wire.events import QuotaUsage
from onboard.wire.security.seal import NO_SALT


class GossipPhase(IntEnum):
    """What a node is doing."""

    TRAINING = 0
    EXCHANGING = 1  # waits for the exchanges that it has just opened
    LINGERING = 2  # all epochs are done: answers its neighbours
    OVER = 3
    FAILED = 4  # a step could not be run: it opens no exchange any more
    HOLDING = 5  # trains nothing: answers its neighbours


class LinkState(msgspec.Struct, kw_only=True):
    """What is kept of the link with one neighbour: its keys' salt, the floor of their frames under it, and
    what was spent of this end's allowances."""

    salt: bytes = NO_SALT
    floor: tuple[int, int] = (0, 0)
    spent: QuotaUsage = QuotaUsage()


class GossipState(Counted, kw_only=True):
    """What the agent keeps in its journal."""

    ties: dict[int, LinkState] = msgspec.field(default_factory=dict)
    was_checkpointed: bool = False
