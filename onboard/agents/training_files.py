"""What a board keeps of its trainings beside the journal: the checkpoint of the one in hand, and what the
last update had no bits for. Losing one costs itself and nothing more."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from hashlib import blake2s

from onboard.agents.federated_state import CHECKPOINT, RESIDUALS, FederatedState, KeptResidual
from onboard.console.log import say
from onboard.mission.objects import Task
from onboard.storage.journal import Journal

log = logging.getLogger(__name__)

_SEAL = struct.Struct(">16s16s4s")  # what the content is of, BLAKE2s-128 of content and that, magic
_MAGIC = b"SDT1"


def training_name(question: bytes, node: int) -> bytes:
    """Returns 16 B that identify the training of `node` on the model with the digest `question`."""
    return blake2s(question, digest_size=16, salt=node.to_bytes(4, "big")).digest()


class TrainingFiles:
    """The files of `node` in the folder of its journal, of which `known` is the state."""

    def __init__(self, journal: Journal[FederatedState], known: FederatedState, node: int) -> None:
        self._journal, self._known, self._node = journal, known, node

    def keep_checkpoint(self, name: bytes, state: bytes | memoryview) -> None:
        """Raises OSError."""
        self._journal.keep(CHECKPOINT, state, seal(name, state))

    def checkpoint(self, name: bytes) -> bytes | None:
        """Returns the state of the training called `name`, if it is intact. A damaged file is logged and
        dropped."""
        try:
            content = self._journal.fetch(CHECKPOINT)
            return None if content is None else opened(name, content)
        except (OSError, ValueError, MemoryError) as error:
            say(log, "checkpoint-dropped", level=logging.WARNING, **self._dropped(CHECKPOINT, error))
            return None

    def keep_residual(self, task: Task, residual: memoryview | None) -> None:
        """Keeps what the update of this task had no bits for, beside the residual of before, which counts
        until the journal is saved. A full disk costs the residual, not the update."""
        before, self._known.residual = self._known.residual, None
        if residual is None:
            return
        name = next(name for name in RESIDUALS if before is None or name != before.name)
        try:
            self._journal.keep(name, residual, seal(self._residual_name(task), residual))
            self._known.residual = KeptResidual(name, task.round)
        except OSError as error:
            say(log, "residual-dropped", level=logging.WARNING, **self._dropped(name, error))

    def residual(self, task: Task) -> bytes | None:
        """Returns what an earlier round of the mission left, if it is intact and the task has error feedback.
        That of the same round is not used: who asks a round again may have lost its update."""
        kept = self._known.residual
        if kept is None or kept.round >= task.round or not (task.training and task.training.error_feedback):
            return None
        try:
            content = self._journal.fetch(kept.name)
            return None if content is None else opened(self._residual_name(task), content)
        except (OSError, ValueError, MemoryError) as error:
            say(log, "residual-dropped", level=logging.WARNING, **self._dropped(kept.name, error))
            return None

    def drop_unused(self) -> None:
        """Removes the checkpoint, and the residual that the journal does not name."""
        kept = self._known.residual
        unused = (name for name in RESIDUALS if kept is None or name != kept.name)
        self._journal.drop(CHECKPOINT, *unused)

    def _residual_name(self, task: Task) -> bytes:
        salt = self._node.to_bytes(4, "big")
        return blake2s(task.mission + task.graph, digest_size=16, salt=salt, person=b"residual").digest()

    def _dropped(self, file: str, error: Exception) -> dict[str, str]:
        """Removes a file; returns its path and what was wrong with it."""
        with contextlib.suppress(OSError):
            self._journal.drop(file)
        why = error.strerror if isinstance(error, OSError) else str(error)
        return {"path": os.fspath(self._journal.folder / file), "why": why or type(error).__name__}


def seal(name: bytes, content: bytes | memoryview) -> bytes:
    """Returns what follows the content: its name and a checksum, as no other training may go on from it, nor
    with a flipped bit. Readers of the content's own format accept it."""
    checksum = blake2s(content, digest_size=16)
    checksum.update(name)
    return _SEAL.pack(name, checksum.digest(), _MAGIC)


def opened(name: bytes, sealed: bytes) -> bytes:
    """Returns what was sealed under `name`. Raises ValueError."""
    whole = memoryview(sealed)
    content, end = whole[: -_SEAL.size], whole[-_SEAL.size :]
    of = bytes(end[: len(name)])
    if len(end) < _SEAL.size or end != seal(of, content):
        raise ValueError(f"damaged, or of another version: {len(sealed)} B that are not what was written")
    if of != name:
        raise ValueError("of another round or node")
    return bytes(content)
