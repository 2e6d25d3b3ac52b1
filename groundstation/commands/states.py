"""A command's life as the ground knows it: which states there are, and which may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class CommandState(Enum):
    """Where a command is; the value is what the store and the user see."""

    QUEUED = "queued"  # durable here, and no byte of it has left
    SENT = "sent"  # it may have left, and the board has not said that it holds it
    ACKNOWLEDGED = "acknowledged"  # durable on the board
    DONE = "done"  # the board ran it, and its result is here
    REFUSED = "refused"  # the board did not run it, and said why
    EXPIRED = "expired"  # its time passed first; where it was sent, it may have been run all the same

    @property
    def is_final(self) -> bool:
        """Whether nobody works on it any more."""
        return self in (CommandState.DONE, CommandState.REFUSED, CommandState.EXPIRED)


_TOLD = frozenset({CommandState.DONE, CommandState.REFUSED})  # by the board's result, which is the truth
TRANSITIONS: Mapping[CommandState, frozenset[CommandState]] = {
    # A result comes before the command is sent where the database is an older copy,
    CommandState.QUEUED: _TOLD | {CommandState.SENT, CommandState.EXPIRED},
    # before the acknowledgement where that is lost,
    CommandState.SENT: _TOLD | {CommandState.ACKNOWLEDGED, CommandState.EXPIRED},
    CommandState.ACKNOWLEDGED: _TOLD | {CommandState.EXPIRED},
    CommandState.DONE: frozenset(),
    CommandState.REFUSED: frozenset(),
    # and late where the board had the command before it was withdrawn.
    CommandState.EXPIRED: _TOLD,
}
