"""What a node that gossips keeps on its disk: its model at the last two checkpoints, and all exchanges since.

After a restart the model is the checkpoint with every exchange that the neighbours count, each once. An end
opens exchange k + 1 of an edge only when it has mixed exchange k, and makes what it sends durable before it
leaves. So where the log holds what was sent in k + 1, k was mixed, and `replay` mixes it again into the
checkpoint, which names its numbers. Whether the last one was mixed is not known, so it is open again: the
same message is offered, and the neighbour has it or takes it now. What was taken is durable before the
neighbour is told. Either way both ends mix it, once.

Steps of training since the checkpoint are lost. They were this node's own: an exchange adds to one model what
it takes from the other, so the sum of all models is as if these steps had never been.

A message's file has a checksum over its name and the message; one that does not match is logged and not used.
An exchange of which one half is gone is not mixed again, and what it moved is lost to the sum. If it is still
open, a neighbour's lost values are taken again if it still offers them, and own ones are sent anew.

A checkpoint is whole by its own checksum, or not used. The one before the last is kept, and the log reaches
back to it, for when the last cannot be read or holds a model that a neighbour has spoiled: only training
steps are lost. The file is an npz archive and 20 bytes that its readers ignore: a magic, and a BLAKE2s of all
before, keyed with the node's number. An earlier version's has only the archive's own checksums."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2s
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from onboard.codec.layout import Floats, Weights
from onboard.console.log import say
from onboard.learn.gossip.algorithms import GossipAlgorithm
from onboard.learn.gossip.exchange import LAST_NUMBER, Message
from onboard.mission.objects import GOSSIP
from onboard.storage.files import clear_the_way, read_file, replace_durably, sync_folder, write_durably
from onboard.storage.journal import JournalState
from onboard.wire.messages import digest

log = logging.getLogger(__name__)

Way = Literal["sent", "taken"]
Content = bytes | bytearray | memoryview

CHECKPOINT, BEFORE, MODEL = "gossip.npz", "gossip-before.npz", "model.npz"
_MEMORY = "memory-"  # before the names of what an algorithm remembers
_LOG_MAGIC, _CHECKPOINT_MAGIC, _CHECK_BYTES = b"SDX1", b"SDG1", 16
_SEAL_BYTES = len(_LOG_MAGIC) + _CHECK_BYTES
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22  # how an archive ends: the mark, and what follows it
_NAME = re.compile(r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})\.(sent|taken)")
_PUT_ASIDE = re.compile(r"\.bad[0-9]+$")  # by `onboard.storage.files`, which said so
_NAMED = 3  # odd files that the log names; it counts the others


class GossipState(JournalState, kw_only=True):
    was_checkpointed: bool = False


class ExchangeLog:
    """The messages, a file each: `PEER-NUMBER.sent` and `PEER-NUMBER.taken` in `folder`. Other files are
    named once and left alone. `keep` raises OSError (disk full); what was stored before stays readable."""

    def __init__(self, folder: Path) -> None:
        clear_the_way(folder, "folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._told = set[str]()  # names of damaged files
        odd = []
        self.new_bytes = 0  # since the checkpoint
        for entry in sorted(os.scandir(folder), key=lambda each: each.name):
            is_file = entry.is_file(follow_symlinks=False)
            if _NAME.fullmatch(entry.name) and is_file:
                self.new_bytes += entry.stat().st_size
            elif _NAME.fullmatch(entry.name):  # a link, a folder: the name is wanted
                with contextlib.suppress(OSError):
                    clear_the_way(Path(entry.path))
            elif _NAME.fullmatch(entry.name.removesuffix(".new")) and is_file:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()  # cut by a kill
            elif not _PUT_ASIDE.search(entry.name):
                odd.append(ascii(entry.name))
        if odd:
            names = ", ".join(odd[:_NAMED])
            say(log, "exchanges-odd", level=logging.WARNING, path=str(folder), files=len(odd), names=names)

    def keep(self, peer: int, number: int, way: Way, message: Message) -> None:
        """Returns once the message is on the disk, in place of another of the same exchange."""
        path = self.folder / f"{peer}-{number}.{way}"
        content = _seal(_LOG_MAGIC, path.name.encode(), message) + message
        try:
            replace_durably(path, content)
        except FileNotFoundError:  # somebody removed the folder
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_durably(path, content)
        self.new_bytes += len(content)

    def of(self, peer: int, first: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        """Yields each logged exchange with that neighbour from number `first` on, the oldest one first: the
        number, and what was sent and taken, empty where nothing is known (any more)."""
        found = self._found(peer)
        for number in sorted({number for number, _ in found if number >= first}):
            yield number, self._read(found.get((number, "sent"))), self._read(found.get((number, "taken")))

    def taken(self, peer: int) -> list[bytes]:
        """Returns digests of the objects that were taken from that neighbour, the oldest first."""
        return [digest(GOSSIP, taken) for _, _, taken in self.of(peer) if taken]

    def first(self, peer: int) -> int:
        """Returns the number of the oldest exchange with that neighbour that is logged; 0 for none."""
        return min((number for number, _ in self._found(peer)), default=0)

    def last_sent(self, peer: int) -> int:
        """Returns the number of the last exchange that was opened with that neighbour; -1 for none."""
        return max((number for number, way in self._found(peer) if way == "sent"), default=-1)

    def checkpointed(self, numbers: Mapping[int, int]) -> None:
        """Forgets all before these numbers, at which the oldest durable model stood, but for an edge's last
        exchange, whose digest the neighbour may still ask about."""
        for peer, until in numbers.items():
            self.forget(peer, until=until - 1)
        self.new_bytes = 0

    def forget(self, peer: int, first: int = 0, way: Way | None = None, *, until: float = math.inf) -> None:
        """Forgets what crossed one way, or both, from exchange `first` on, so that it is not mixed again."""
        for (number, of), path in self._found(peer).items():
            if first <= number < until and way in (None, of):
                path.unlink(missing_ok=True)

    def _found(self, peer: int) -> dict[tuple[int, str], Path]:
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                named = _NAME.fullmatch(entry.name)
                if named and int(named[1]) == peer and entry.is_file(follow_symlinks=False):
                    found[int(named[2]), named[3]] = Path(entry.path)
        return found

    def _read(self, path: Path | None) -> bytes:
        """Returns "" for a damaged file, which stays, as its name alone says how far the edge was."""
        if path is None:
            return b""
        try:
            content = read_file(path)
        except FileNotFoundError:
            return b""
        except OSError as error:
            why = error.strerror
        else:
            message = content[_SEAL_BYTES:]
            if content[:_SEAL_BYTES] == _seal(_LOG_MAGIC, path.name.encode(), message):
                return message
            why = f"damaged, or of another version: {len(content)} B that were not written so"
        if path.name not in self._told:
            self._told.add(path.name)
            say(log, "exchange-dropped", level=logging.WARNING, path=str(path), why=why)
        return b""


def replay(exchanges: ExchangeLog, gossip: GossipAlgorithm, peer: int, vector: Floats) -> int:
    """Mixes the log with one neighbour into `vector` (P,), from the checkpoint's numbers on; returns how many
    exchanges were mixed. Raises BadExchange, after mixing those before, for a log of another gossip."""
    first, last, before = gossip.numbers[peer], exchanges.last_sent(peer), gossip.exchanges
    for number, sent, taken in exchanges.of(peer, first):
        if number <= last:
            gossip.stand_at(peer, number)
        if sent:
            gossip.reopen(peer, sent, vector)
        if taken:
            gossip.take(peer, taken)
        if number < last:
            gossip.delivered(peer)
        gossip.mix(vector)
    return gossip.exchanges - before


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The model and its velocity, float32 (P,), after `batches`; `numbers` of the exchanges at which it
    stood, by neighbour; `memory` of the algorithm, float32 (P,) each."""

    vector: Floats
    velocity: Floats
    batches: int
    numbers: dict[int, int]
    memory: Mapping[str, Floats] = field(default_factory=dict)


class Checkpoints:
    """Checkpoints of `node` in `folder`, of models of `size`. `was_lost` says that the last `load` found one
    that it could not use, or none where one had been."""

    def __init__(self, folder: Path, node: int, size: int) -> None:
        self._newest, self._before = folder / CHECKPOINT, folder / BEFORE
        self._key, self._size = node.to_bytes(4, "big"), size
        self._numbers: dict[int, int] = {}  # of the newest that can be used
        self.was_lost = self._is_bad = False  # bad: the newest: it must not take the place of the one before

    def load(self, was_kept: bool) -> Checkpoint | None:
        """Returns the newest usable checkpoint, and logs each other; `was_kept` says that there was one."""
        self.was_lost = False
        newest = self._read(self._newest, was_kept)
        self._is_bad = newest is None
        found = newest or self._read(self._before, False)
        self._numbers = {} if found is None else found.numbers
        return found

    def load_before(self) -> Checkpoint | None:
        """Drops the newest, and returns the one before it."""
        self._newest.unlink(missing_ok=True)
        return self.load(was_kept=False)

    def keep(self, reached: Checkpoint) -> dict[int, int]:
        """Returns, once the checkpoint is on the disk, the numbers of the one before it, to which the log
        must reach back. Raises OSError; what was there before can still be read then."""
        archive = io.BytesIO()
        memory = {_MEMORY + name: values for name, values in reached.memory.items()}
        np.savez(
            archive, vector=reached.vector, velocity=reached.velocity, batches=reached.batches,
            peers=list(reached.numbers), numbers=list(reached.numbers.values()), **memory,  # type: ignore[arg-type]
        )  # fmt: skip
        archive.seek(0, io.SEEK_END)
        archive.write(_seal(_CHECKPOINT_MAGIC, self._key, archive.getbuffer()))
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
        """Stores the model alone for whoever uses it; it is not read here. Raises OSError."""
        archive = io.BytesIO()
        np.savez(archive, **weights)  # type: ignore[arg-type]
        replace_durably(self._newest.with_name(MODEL), archive.getbuffer())

    def _set_back(self) -> None:
        """Makes the newest the one before, too, so that a reader of the folder always finds one."""
        spare = self._before.with_name(BEFORE + ".new")
        spare.unlink(missing_ok=True)
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
        archive, seal = memoryview(content)[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
        if seal.startswith(_CHECKPOINT_MAGIC):
            if seal != _seal(_CHECKPOINT_MAGIC, self._key, archive):
                size = f"{len(content)} B that were not written so"
                raise ValueError(f"damaged, or of another node: {size}")
        elif content[-_ZIP_END_BYTES:][: len(_ZIP_END)] != _ZIP_END:
            raise ValueError(f"damaged: {len(content)} B that are no checkpoint")
        with np.load(io.BytesIO(content), allow_pickle=False) as state:
            peers, numbers = state["peers"].tolist(), state["numbers"].tolist()
            vector, velocity = self._model(state["vector"]), self._model(state["velocity"])
            remembered = [name for name in state.files if name.startswith(_MEMORY)]
            memory = {name.removeprefix(_MEMORY): self._model(state[name]) for name in remembered}
            at = dict(zip(peers, numbers, strict=True))
            found = Checkpoint(vector, velocity, int(state["batches"]), at, memory)
        if found.batches < 0 or not all(0 <= number <= LAST_NUMBER + 1 for number in numbers):
            raise ValueError(f"{found.batches} batches and exchanges {numbers} cannot be")
        return found

    def _model(self, values: npt.NDArray[np.generic]) -> Floats:
        if values.dtype != np.float32 or values.shape != (self._size,):
            form = f"{values.dtype} {values.shape}"
            raise ValueError(f"of another model: {form}, this one has {self._size}")
        if not np.isfinite(values).all():
            raise ValueError("its values are not finite")
        model: Floats = values.astype(np.float32, copy=False)
        return model


def _seal(magic: bytes, key: bytes, content: Content) -> bytes:
    return magic + blake2s(content, digest_size=_CHECK_BYTES, key=key).digest()
