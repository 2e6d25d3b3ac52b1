"""A training's checkpoint as it lies on the disk: it says of which training it is, and whether it is whole.

The state of a training names neither its round nor its node. Read back into another one it would go on with
that one's weights, and a bit that has flipped in a weight would be learned from. So a checksum over both, the
training's name and the state, stands behind it, and what does not fit is as if it had never been written.
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
    """It is damaged, or of another training; one line says which."""


def training_name(question: bytes, node: int) -> bytes:
    """16 B that stand for the training of `node` on the model with the digest `question`."""
    return blake2s(question, digest_size=16, salt=node.to_bytes(4, "big")).digest()


def sealed(name: bytes, state: bytes) -> bytes:
    """The file's content: `state` of the training called `name`, which readers of its own form still read."""
    return state + _SEAL.pack(name, _check(state, name), _MAGIC)


def opened(name: bytes, content: bytes) -> bytes:
    """The state in a file's content. Raises BadCheckpoint."""
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
    """The state of the training called `name`, if it is in the journal's folder and whole. Else None, and a
    line of log if there was anything: it costs the checkpoint, not the training."""
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
