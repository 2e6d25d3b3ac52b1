"""What a node that gossips keeps in its journal, and what it may be doing."""

from __future__ import annotations

from enum import IntEnum

from onboard.storage.journal import JournalState


class GossipPhase(IntEnum):
    """What a node is doing."""

    TRAINING = 0
    EXCHANGING = 1  # waits for the exchanges that it has just opened
    LINGERING = 2  # all epochs are done: answers its neighbours
    OVER = 3
    FAILED = 4  # a step could not be run: it opens no exchange any more
    HOLDING = 5  # trains nothing: answers its neighbours


class GossipState(JournalState, kw_only=True):
    """What the agent keeps in its journal."""

    was_checkpointed: bool = False
