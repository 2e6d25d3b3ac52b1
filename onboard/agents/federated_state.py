"""What a board knows after a power cut, and which of the files beside it are still what it knows of.

The journal is the one authority: a file counts as far as the journal names its digest, and an object counts
as taken as far as the board can still act on it. Nothing else (a list of finished objects, a file that is
there) stands for an effect.
"""

from __future__ import annotations

import logging

from onboard.agents.command_log import CommandLog
from onboard.console.log import say
from onboard.mission.health import State
from onboard.storage.boot_counter import JournalState
from onboard.storage.checkpoint import CHECKPOINT
from onboard.storage.journal import Journal
from onboard.wire import messages
from onboard.wire.security.seal import NO_SALT

log = logging.getLogger(__name__)

MODEL, UPDATE, DEPLOYED = "model.bin", "update.bin", "deployed.bin"
KEPT = (MODEL, UPDATE, CHECKPOINT, DEPLOYED)


class FederatedState(JournalState, kw_only=True):
    """What the agent keeps in its journal."""

    mission: bytes = b""
    phase: State = State.IDLE
    round: int = 0
    asking: int = 0  # of this round, the last
    model: bytes = b""  # digest of the object in model.bin
    asked_under: bytes = NO_SALT  # the salt in force when the round was asked
    question: bytes = b""  # and of the same as it was asked first: an asking that differs in it is new work
    update: bytes = b""  # digest of the object in update.bin
    deployed: bytes = b""  # digest of the object in deployed.bin
    fragment_bytes: int = 0  # and how the update is cut for the link
    train_s: float = 0.0  # spent on this round's training up to the last checkpoint
    cpu_s: float = 0.0
    energy_j: float = 0.0
    commands: CommandLog = CommandLog()

    @property
    def taken(self) -> tuple[bytes, ...]:
        """Digests of the objects that the board can still act on; any other that comes again is new."""
        return tuple(digest for digest in (self.model, self.deployed) if digest)


def kept_object(journal: Journal[FederatedState], name: str, kind: int, digest: bytes) -> bytes | None:
    """The object in the file `name` if it is the one with that digest; None, and a line of log, if it is not:
    gone, cut by a power cut, or on a card that cannot be read."""
    try:
        content = journal.fetch(name)
    except (OSError, MemoryError) as error:
        content, why = None, str(error) or type(error).__name__
    else:
        why = "gone" if content is None else f"damaged: {len(content)} B that are not what was written"
    if content is not None and messages.digest(kind, content) == digest:
        return content
    say(log, "unreadable", level=logging.ERROR, path=str(journal.folder / name), why=why)
    return None
