"""A node's model as it was at its last two checkpoints, each whole by its own checksum, or not used at all.

The one before the last is kept for the day on which the last cannot be read, or holds a model that a
neighbour has spoiled: the log of exchanges reaches back to it, so that a node that falls back mixes again
what it had mixed since, and loses no more than steps of training.

The file is an npz archive with 20 bytes after it: a magic, and a BLAKE2s of all before, keyed with the node's
number. Readers of archives pass over them. An archive without them is of a version that wrote none, and has
the archive's own checksums.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2s
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onboard.codec.layout import Floats, Weights
from onboard.console.log import say
from onboard.learn.gossip.exchange import LAST_NUMBER
from onboard.storage.files import clear_the_way, read_file, replace_durably, sync_folder, write_durably

log = logging.getLogger(__name__)

CHECKPOINT, BEFORE, MODEL = "gossip.npz", "gossip-before.npz", "model.npz"
_MEMORY = "memory-"  # before the names of what an algorithm remembers
_MAGIC, _CHECK_BYTES = b"SDG1", 16
_TRAILER_BYTES = len(_MAGIC) + _CHECK_BYTES
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22  # how an archive ends: the mark, and what follows it


class BadGossipCheckpoint(ValueError):  # noqa: N818 - "bad" says error already
    """It is damaged, or of another node or model; one line says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The model and its velocity, float32 (P,), after so many batches; `numbers`: of the exchanges at which
    it stood, by neighbour; `memory`: what else the algorithm remembered, float32 (P,) each."""

    vector: Floats
    velocity: Floats
    batches: int
    numbers: dict[int, int]
    memory: Mapping[str, Floats] = field(default_factory=dict)


class Checkpoints:
    """Those of `node`, whose models have `size` coordinates, in `folder`. `was_lost`: whether the last `load`
    found one that it could not use, or none where one had been."""

    def __init__(self, folder: Path, node: int, size: int) -> None:
        self._newest, self._before = folder / CHECKPOINT, folder / BEFORE
        self._node, self._size = node, size
        self._numbers: dict[int, int] = {}  # of the newest that can be used
        self.was_lost = self._is_bad = False  # bad: the newest: it must not take the place of the one before

    def load(self, was_kept: bool) -> Checkpoint | None:
        """The newest one that can be used, with a line of log for each that cannot. was_kept: whether there
        ever was one."""
        self.was_lost = False
        newest = self._read(self._newest, was_kept)
        self._is_bad = newest is None
        found = newest or self._read(self._before, False)
        self._numbers = {} if found is None else found.numbers
        return found

    def load_before(self) -> Checkpoint | None:
        """The one before the newest, which is dropped."""
        self._newest.unlink(missing_ok=True)
        return self.load(was_kept=False)

    @property
    def is_there(self) -> bool:
        """Whether there is one that can be used."""
        return bool(self._numbers)

    def keep(self, reached: Checkpoint) -> dict[int, int]:
        """Returns, once the checkpoint is on the disk, the numbers of the one before it, if there is one:
        the log must reach back to these. Raises OSError; what was there before can still be read then."""
        archive = io.BytesIO()
        memory = {_MEMORY + name: values for name, values in reached.memory.items()}
        np.savez(
            archive, vector=reached.vector, velocity=reached.velocity, batches=reached.batches,
            peers=list(reached.numbers), numbers=list(reached.numbers.values()), **memory,  # type: ignore[arg-type]
        )  # fmt: skip
        archive.seek(0, io.SEEK_END)
        archive.write(_MAGIC + self._check(archive.getbuffer()))
        clear_the_way(self._newest)
        clear_the_way(self._before)
        new = self._newest.with_name(CHECKPOINT + ".new")
        try:
            write_durably(new, archive.getbuffer())
            if not self._is_bad:
                self._set_back()
            new.replace(self._newest)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        sync_folder(self._newest.parent)
        before, self._numbers, self._is_bad = self._numbers, reached.numbers, False
        return before

    def keep_model(self, weights: Weights) -> None:
        """Stores the model alone, for whoever uses it; it is not read here. Raises OSError."""
        archive = io.BytesIO()
        np.savez(archive, **weights)  # type: ignore[arg-type]
        replace_durably(self._newest.with_name(MODEL), archive.getbuffer())

    def _set_back(self) -> None:
        """The newest is the one before, too, so that who reads the folder always finds one."""
        spare = self._before.with_name(BEFORE + ".new")
        with contextlib.suppress(FileNotFoundError):
            spare.unlink()
        try:
            os.link(self._newest, spare)
            spare.replace(self._before)
        except FileNotFoundError:
            pass
        except OSError:  # a card's file system knows no links
            self._newest.replace(self._before)

    def _read(self, path: Path, is_expected: bool) -> Checkpoint | None:
        try:
            return self._parsed(read_file(path))
        except Exception as error:  # damaged: numpy and zipfile raise a dozen kinds, and a card its own
            if isinstance(error, FileNotFoundError) and not is_expected:
                return None
            self.was_lost = True
            why = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
            say(log, "checkpoint-dropped", level=logging.WARNING, path=str(path), why=why)
            if not isinstance(error, (MemoryError, OSError)):
                with contextlib.suppress(OSError):
                    path.unlink()
            return None

    def _parsed(self, content: bytes) -> Checkpoint:
        sealed, check = content[-_TRAILER_BYTES:-_CHECK_BYTES], content[-_CHECK_BYTES:]
        if sealed == _MAGIC:
            if check != self._check(memoryview(content)[:-_TRAILER_BYTES]):
                raise BadGossipCheckpoint(
                    f"damaged, or of another node: {len(content)} B that were not written so"
                )
        elif content[-_ZIP_END_BYTES:][: len(_ZIP_END)] != _ZIP_END:
            raise BadGossipCheckpoint(f"damaged: {len(content)} B that are no checkpoint")
        with np.load(io.BytesIO(content), allow_pickle=False) as state:
            peers, numbers = state["peers"].tolist(), state["numbers"].tolist()
            found = Checkpoint(
                self._model(state["vector"]),
                self._model(state["velocity"]),
                int(state["batches"]),
                dict(zip(peers, numbers, strict=True)),
                {
                    name.removeprefix(_MEMORY): self._model(state[name])
                    for name in state.files
                    if name.startswith(_MEMORY)
                },
            )
        if found.batches < 0 or not all(0 <= number <= LAST_NUMBER + 1 for number in numbers):
            raise BadGossipCheckpoint(f"{found.batches} batches and exchanges {numbers} cannot be")
        return found

    def _model(self, values: npt.NDArray[np.generic]) -> Floats:
        if values.dtype != np.float32 or values.shape != (self._size,):
            raise BadGossipCheckpoint(
                f"of another model: {values.dtype} {values.shape}, this one has {self._size}"
            )
        if not np.isfinite(values).all():
            raise BadGossipCheckpoint("its values are not finite")
        model: Floats = values.astype(np.float32, copy=False)
        return model

    def _check(self, archive: bytes | memoryview) -> bytes:
        return blake2s(archive, digest_size=_CHECK_BYTES, key=self._node.to_bytes(4, "big")).digest()
