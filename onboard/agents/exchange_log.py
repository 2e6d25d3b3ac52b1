"""What a node sent and took since its last checkpoint is on the disk, and so is what it mixed.

After a restart the model is the checkpoint with every exchange that the neighbours count, each once. Why: an
end opens exchange k + 1 of an edge only when it has mixed exchange k, and makes what it sends durable before
it leaves. So where the log holds what was sent in k + 1, k was mixed; `replay` mixes it again, the same
values into a model that lacks them, as the checkpoint names the numbers at which it was made. The last
exchange was mixed or was not. If it was, that is gone with the memory, and it is open again: its message is
offered again, the same to the bit, and the neighbour has it and says so, or takes it now. What was taken is
durable before the neighbour is told, so one that has mixed finds this end with its values. Either way both
ends mix it, once.

Steps of training since the checkpoint are lost. They were this node's own: an exchange adds to one model what
it takes from the other, and the sum of all models is as if these steps had never been.

A file has a checksum over its name and its message. Where it does not hold, the file is not used, and a line
of log says so. An exchange of which one half is gone is not mixed again, and what it moved is lost to the
sum; but that it took place is known from the one after it, and both ends go on from there. In an exchange
that is open, values of the neighbour that are gone are taken again if it still offers them, and own ones are
sent anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path
from typing import Literal

from onboard.codec.layout import Floats
from onboard.console.log import say
from onboard.learn.gossip.algorithms import GossipAlgorithm
from onboard.learn.gossip.exchange import Message
from onboard.mission.objects import GOSSIP
from onboard.storage.files import clear_the_way, read_file, replace_durably
from onboard.wire.messages import digest

log = logging.getLogger(__name__)

Way = Literal["sent", "taken"]

_NAME = re.compile(r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})\.(sent|taken)")
_PUT_ASIDE = re.compile(r"\.bad[0-9]+$")  # by `onboard.storage.files`, which said so
_MAGIC, _CHECK_BYTES = b"SDX1", 16
_HEADER_BYTES = len(_MAGIC) + _CHECK_BYTES
_NAMED = 3  # odd files that the log names; it counts the others


@dataclass(frozen=True, slots=True)
class Logged:
    """What is known of one exchange; empty where nothing is, or nothing any more."""

    number: int
    sent: bytes
    taken: bytes


class ExchangeLog:
    """The messages, a file each: `PEER-NUMBER.sent` and `PEER-NUMBER.taken` in `folder`. What else is there
    was not written by this program: it is named once, and left alone.

    Raises OSError from `keep` (disk full, read-only); what was stored before stays readable.
    """

    def __init__(self, folder: Path) -> None:
        clear_the_way(folder, "folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._told = set[str]()  # names of damaged files
        odd = []
        self.new_bytes = 0  # since the checkpoint
        for entry in sorted(os.scandir(folder), key=lambda each: each.name):
            whole, dot_new, rest = entry.name.partition(".new")
            if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                self.new_bytes += entry.stat().st_size
            elif _NAME.fullmatch(entry.name):  # a link, a folder: the name is wanted
                with contextlib.suppress(OSError):
                    clear_the_way(Path(entry.path))
            elif dot_new and not rest and _NAME.fullmatch(whole) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()  # cut by a kill
            elif not _PUT_ASIDE.search(entry.name):
                odd.append(ascii(entry.name))
        if odd:
            names = ", ".join(odd[:_NAMED])
            say(log, "exchanges-odd", level=logging.WARNING, path=str(folder), files=len(odd), names=names)

    def keep(self, peer: int, number: int, way: Way, message: Message) -> None:
        """Returns once the message is on the disk, in place of another of the same exchange."""
        path = self._path(peer, number, way)
        content = _sealed(path.name, message)
        try:
            replace_durably(path, content)
        except FileNotFoundError:  # somebody removed the folder
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_durably(path, content)
        self.new_bytes += len(content)

    def of(self, peer: int, first: int = 0) -> Iterator[Logged]:
        """What is logged with that neighbour from exchange `first` on, the oldest one first."""
        found = self._found(peer)
        for number in sorted({number for number, _ in found if number >= first}):
            sent, taken = (self._read(found.get((number, way))) for way in ("sent", "taken"))
            yield Logged(number, sent, taken)

    def taken(self, peer: int) -> list[bytes]:
        """Digests of the objects that were taken from that neighbour, the oldest first: nothing but this log
        says so."""
        return [digest(GOSSIP, logged.taken) for logged in self.of(peer) if logged.taken]

    def first(self, peer: int) -> int:
        """The number of the oldest exchange with that neighbour that is logged; 0 for none."""
        return min((number for number, _ in self._found(peer)), default=0)

    def last_sent(self, peer: int) -> int:
        """The number of the last exchange that was opened with that neighbour, though what was sent in it may
        be damaged; -1 for none."""
        return max((number for number, way in self._found(peer) if way == "sent"), default=-1)

    def checkpointed(self, numbers: Mapping[int, int]) -> None:
        """A model is durable, and the oldest one that is left is as it was at these numbers: forgets all
        before, but for the last exchange of an edge, whose digest the neighbour may still ask about."""
        for peer, until in numbers.items():
            for (number, _), path in self._found(peer).items():
                if number < until - 1:
                    path.unlink(missing_ok=True)
        self.new_bytes = 0

    def forget(self, peer: int, first: int = 0, way: Way | None = None) -> None:
        """The exchanges from `first` on do not take place, or what crossed in them in one way is lost."""
        for (number, of), path in self._found(peer).items():
            if number >= first and way in (None, of):
                path.unlink(missing_ok=True)

    def forget_taken(self, peer: int, numbers: range) -> None:
        """What the neighbour sent in these exchanges is not mixed again."""
        for (number, way), path in self._found(peer).items():
            if number in numbers and way == "taken":
                path.unlink(missing_ok=True)

    def _path(self, peer: int, number: int, way: str) -> Path:
        return self.folder / f"{peer}-{number}.{way}"

    def _found(self, peer: int) -> dict[tuple[int, str], Path]:
        """The files of one neighbour, by number and way."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                named = _NAME.fullmatch(entry.name)
                if named and int(named[1]) == peer and entry.is_file(follow_symlinks=False):
                    found[int(named[2]), named[3]] = Path(entry.path)
        return found

    def _read(self, path: Path | None) -> bytes:
        """The message in a file; empty if there is none, or it is damaged. Such a file stays until it is
        replaced or forgotten, as its name alone says how far the edge was."""
        if path is None:
            return b""
        try:
            content = read_file(path)
        except FileNotFoundError:
            return b""
        except OSError as error:
            why = error.strerror
        else:
            message = memoryview(content)[_HEADER_BYTES:]
            if content[:_HEADER_BYTES] == _head(path.name, message):
                return bytes(message)
            why = f"damaged, or of another version: {len(content)} B that were not written so"
        if path.name not in self._told:
            self._told.add(path.name)
            say(log, "exchange-dropped", level=logging.WARNING, path=str(path), why=why)
        return b""


def _sealed(name: str, message: Message) -> bytes:
    return _head(name, message) + message


def _head(name: str, message: Message) -> bytes:
    """What stands before the message in the file of that name."""
    return _MAGIC + blake2s(message, digest_size=_CHECK_BYTES, key=name.encode()).digest()


def replay(log: ExchangeLog, gossip: GossipAlgorithm, peer: int, vector: Floats) -> int:
    """Brings `gossip`, at the numbers of the checkpoint, and `vector`, its model, float32 (P,), to where the
    log with one neighbour ends; returns how many exchanges were mixed.

    Raises BadExchange for a log of another gossip: the values before it are mixed then.
    """
    first, last, before = gossip.numbers[peer], log.last_sent(peer), gossip.exchanges
    for each in log.of(peer, first):
        if each.number <= last:
            gossip.stand_at(peer, each.number)
        if each.sent:
            gossip.reopen(peer, each.sent, vector)
        if each.taken:
            gossip.take(peer, each.taken)
        if each.number < last:
            gossip.delivered(peer)
        gossip.mix(vector)
    return gossip.exchanges - before
