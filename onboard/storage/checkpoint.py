"""A training's checkpoint on the disk: it can tell whether it is intact and to which training it belongs.

The state of a training names neither its round nor its node. Restored into another training, it would
continue with the wrong weights, and a flipped bit in a weight would be trained upon. So a checksum over the
training's name and the state follows the state, and a checkpoint that does not match is treated as if it had
never been written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from hashlib import blake2s
from typing import TypeVar

import msgspec

from onboard.console.log import say
from onboard.storage.journal import Journal

log = logging.getLogger(__name__)

S = TypeVar("S", bound=msgspec.Struct)

CHECKPOINT = "training.npz"
_SEAL = struct.Struct(">16s16s4s")  # the training's name, BLAKE2s-128 of state and name, magic
_MAGIC = b"SDT1"


class BadCheckpoint(ValueError):  # noqa: N818 - "bad" says error already
    """A checkpoint is damaged, or of another training; the text says which in one line."""


def training_name(question: bytes, node: int) -> bytes:
    """16 B that identify the training of `node` on the model with the digest `question`."""
    return blake2s(question, digest_size=16, salt=node.to_bytes(4, "big")).digest()


def sealed(name: bytes, state: bytes) -> bytes:
    """The file's content: `state` of the training called `name`, which a reader of the state's own format
    accepts."""
    return state + _SEAL.pack(name, _check(state, name), _MAGIC)


def opened(name: bytes, content: bytes) -> bytes:
    """Checks a file's content and returns the state in it. Raises BadCheckpoint."""
    if len(content) < _SEAL.size:
        raise BadCheckpoint(f"damaged: {len(content)} B")
    state = content[: -_SEAL.size]
    of, check, magic = _SEAL.unpack(content[-_SEAL.size :])
    if magic != _MAGIC or check != _check(state, of):
        raise BadCheckpoint(f"damaged, or of another version: {len(content)} B that are not what was written")
    if of != name:
        raise BadCheckpoint("of another round or node")
    return state


def _check(state: bytes, name: bytes) -> bytes:
    return blake2s(state + name, digest_size=16).digest()


def fetch_checkpoint(journal: Journal[S], name: bytes) -> bytes | None:
    """The state of the training called `name`, if the journal's folder has it intact; else None, and a log
    line if there was anything: that costs the checkpoint, not the training."""
    try:
        content = journal.fetch(CHECKPOINT)
        return None if content is None else opened(name, content)
    except (OSError, BadCheckpoint, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        path = os.fspath(journal.folder / CHECKPOINT)
        say(log, "checkpoint-dropped", level=logging.WARNING, path=path, why=why or type(error).__name__)
        with contextlib.suppress(OSError):
            journal.drop(CHECKPOINT)
        return None


def keep_checkpoint(journal: Journal[S], name: bytes, state: bytes) -> None:
    """Stores the state of the training called `name`. Raises OSError."""
    journal.keep(CHECKPOINT, sealed(name, state))
