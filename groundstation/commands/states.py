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


TRANSITIONS: Mapping[CommandState, frozenset[CommandState]] = {
    CommandState.QUEUED: frozenset({CommandState.SENT, CommandState.EXPIRED}),
    # A result overtakes an acknowledgement that is lost.
    CommandState.SENT: frozenset(
        {CommandState.ACKNOWLEDGED, CommandState.DONE, CommandState.REFUSED, CommandState.EXPIRED}
    ),
    CommandState.ACKNOWLEDGED: frozenset({CommandState.DONE, CommandState.REFUSED, CommandState.EXPIRED}),
    CommandState.DONE: frozenset(),
    CommandState.REFUSED: frozenset(),
    # The board had it before it was withdrawn: what became of it is known, late.
    CommandState.EXPIRED: frozenset({CommandState.DONE, CommandState.REFUSED}),
}
