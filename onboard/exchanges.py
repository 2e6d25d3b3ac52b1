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
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onboard.codec import sparse
from onboard.codec.layout import Floats
from onboard.journal import replace_durably
from onboard.learn.gossip import Gossip, Message

Way = Literal["sent", "taken"]


@dataclass(frozen=True, slots=True)
class Logged:
    """What is known of one exchange; empty where nothing is."""

    number: int
    sent: bytes
    taken: bytes


class ExchangeLog:
    """The messages, a file each: `PEER-NUMBER.sent` and `PEER-NUMBER.taken` in `folder`.

    Raises OSError from `keep` (disk full, read-only); what was stored before stays readable.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for cut in folder.glob("*.new"):
            cut.unlink()
        self.new_bytes = sum(path.stat().st_size for path in folder.iterdir())  # since the checkpoint

    def keep(self, peer: int, way: Way, message: Message) -> None:
        """Returns once the message is on the disk, in place of another of the same exchange."""
        replace_durably(self._path(peer, sparse.parse(message).round, way), message)
        self.new_bytes += len(message)

    def of(self, peer: int) -> Iterator[Logged]:
        """All that is logged with that neighbour, the oldest exchange first."""
        numbers = {self._number(path) for path in self.folder.glob(f"{peer}-*")}
        for number in sorted(numbers):
            sent, taken = (self._read(peer, number, way) for way in ("sent", "taken"))
            yield Logged(number, sent, taken)

    def checkpointed(self, numbers: Mapping[int, int]) -> None:
        """The model is durable as it is at these numbers: forgets all before, but for the last exchange of an
        edge, whose digest the neighbour may still ask about."""
        for peer, number in numbers.items():
            for path in self.folder.glob(f"{peer}-*"):
                if self._number(path) < number - 1:
                    path.unlink()
        self.new_bytes = 0

    def forget(self, peer: int, first: int = 0) -> None:
        """The exchanges from `first` on do not take place."""
        for path in self.folder.glob(f"{peer}-*"):
            if self._number(path) >= first:
                path.unlink()

    def _path(self, peer: int, number: int, way: str) -> Path:
        return self.folder / f"{peer}-{number}.{way}"

    @staticmethod
    def _number(path: Path) -> int:
        return int(path.stem.partition("-")[2])

    def _read(self, peer: int, number: int, way: str) -> bytes:
        try:
            return self._path(peer, number, way).read_bytes()
        except FileNotFoundError:
            return b""


def replay(log: ExchangeLog, gossip: Gossip, peer: int, vector: Floats) -> int:
    """Brings `gossip`, at the numbers of the checkpoint, and `vector`, its model, float32 (P,), to where the
    log with one neighbour ends; returns how many exchanges were mixed.

    Raises BadExchange for a log of another gossip: the values before it are mixed then.
    """
    first = gossip.numbers[peer]
    logged = [each for each in log.of(peer) if each.number >= first]
    last = max((each.number for each in logged if each.sent), default=first)
    before = gossip.exchanges
    for each in logged:
        if each.sent:
            gossip.reopen(peer, each.sent)
        if each.taken:
            gossip.take(peer, each.taken)
        if each.number < last:
            gossip.delivered(peer)
        gossip.mix(vector)
    return gossip.exchanges - before
