"""How a node gossips: one protocol, what RD-PSGD is compared with, and one table of all of it.

An algorithm decides what travels to which neighbour and how what comes from them is mixed into the model. The
agent (`onboard.agents.gossip`) does the rest: it makes each message durable, offers it, and tells the
algorithm what became of it. To add one, fulfil `GossipAlgorithm` and give it a row of `ALGORITHMS`.

`TopK` and `Choco` are for the comparison and are not flown: an exchange is with all neighbours, and one that
stays away stops it. Both send the K coordinates of largest magnitude with an explicit index, the smaller of
gaps and bitmap, the same to every neighbour, after the exchange's number (4 bytes, little-endian). A
checkpoint has what they remember besides the model (`memory`). An exchange that was opened after it is opened
again as it was only if the model had taken no step between the two.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onboard.codec import explicit
from onboard.codec.explicit import IndexForm
from onboard.codec.layout import Floats
from onboard.codec.mask import ALL, Indices
from onboard.codec.sparse import BadExchange
from onboard.codec.values import Form
from onboard.learn.gossip.exchange import Gossip, GossipSetup, ImplausibleExchange, Message, Over

_NUMBER = struct.Struct("<I")
Largest = tuple[Indices, Floats]  # coordinates (K,), rising, and their values


class GossipAlgorithm(Protocol):
    """One node's side of its exchanges. A model is float32 (P,); exchanges with a neighbour are numbered."""

    exchanges: int  # completed by this end in this life
    clipped: dict[int, float]
    """In the last mix: the share that was taken of a neighbour's values, where that is not all of them."""

    @property
    def numbers(self) -> dict[int, int]:
        """The number of the exchange that is open or opens next, by neighbour; durable with the model."""

    @property
    def memory(self) -> dict[str, Floats]:
        """What is durable with the model besides `numbers`, by name; the arrays are the algorithm's own."""

    @property
    def waits_for(self) -> frozenset[int]:
        """Neighbours with whom an exchange is open and not complete."""

    @property
    def complete(self) -> tuple[int, ...]:
        """Neighbours with whom `mix` has something to do."""

    @property
    def asked(self) -> frozenset[int]:
        """Neighbours that have opened an exchange which this end has not."""

    @property
    def suspects(self) -> list[int]:
        """Neighbours that may have spoiled the model since the last checkpoint."""

    def start(self, vector: Floats) -> None:
        """Begins a life: all that an earlier one left was told by `reopen`, `take` and `delivered`."""

    def open(self, vector: Floats, peers: Collection[int] | None = None) -> dict[int, Message]:
        """Opens an exchange with every neighbour (of `peers`) that has none open. Returns the messages by
        neighbour, which are durable before they leave. Raises ValueError for a model that cannot be sent."""

    def message(self, peer: int) -> Message:
        """What was sent in the open exchange; empty if none is open."""

    def take(self, peer: int, message: Message) -> int:
        """Takes a neighbour's message, which is durable before it is acknowledged; returns the exchange's
        number. Raises BadExchange, with nothing changed, and KeyError for no neighbour, here and below."""

    def delivered(self, peer: int) -> None:
        """The neighbour has what was sent in the open exchange, durably."""

    def refused(self, peer: int) -> None:
        """The neighbour does not want what was sent in the open exchange."""

    def try_again(self, peer: int) -> None:
        """A neighbour that refused what was sent may be sent something again."""

    def leave(self, peer: int) -> None:
        """What the neighbour sent in the exchanges that are open is not mixed."""

    def mix(self, vector: Floats) -> tuple[int, ...]:
        """Mixes `vector` in place with all neighbours whose exchange is complete; returns which."""

    def checkpointed(self) -> None:
        """Model, numbers and memory are durable."""

    def stand_at(self, peer: int, number: int) -> None:
        """After a restart: the exchanges before `number` are over, though what crossed may be lost."""

    def reopen(self, peer: int, message: Message, vector: Floats) -> None:
        """After a restart: the exchange with that message is open, with the model as it is now. Raises
        BadExchange."""


class _InStep:
    """An exchange is complete when all neighbours have answered and have what this node sent."""

    def __init__(self, setup: GossipSetup, numbers: Mapping[int, int], memory: Mapping[str, Floats]) -> None:
        self._weights, self._size, self._rate = setup.weights, len(setup.start), setup.rate
        self._count = max(1, round(setup.share / ALL * self._size))
        self._number = max(numbers.values(), default=0)
        self._message: Message = b""  # of the open exchange
        self._sent: Largest = (np.zeros(0, np.int32), np.zeros(0, np.float32))
        self._there = set[int]()  # neighbours that have it
        self._received: dict[int, dict[int, Largest]] = {peer: {} for peer in setup.weights}  # by number
        self.exchanges = 0
        self.clipped: dict[int, float] = {}  # nothing ever is
        self.suspects: list[int] = []

    @property
    def numbers(self) -> dict[int, int]:
        return dict.fromkeys(self._weights, self._number)

    @property
    def waits_for(self) -> frozenset[int]:
        return frozenset(self._weights) - self._answered if self._message else frozenset()

    @property
    def complete(self) -> tuple[int, ...]:
        return tuple(self._weights) if self._message and not self.waits_for else ()

    @property
    def asked(self) -> frozenset[int]:
        return frozenset()  # all nodes come to their end after the same exchange

    def message(self, peer: int) -> Message:
        return self._message

    def take(self, peer: int, message: Message) -> int:
        if len(message) < _NUMBER.size:
            raise BadExchange(f"{len(message)} bytes are no exchange")
        (number,) = _NUMBER.unpack_from(message)
        if number < self._number:
            raise Over(f"exchange {number} with node {peer} is over, at {self._number}")
        if number > self._number + 1:
            raise ImplausibleExchange(f"exchange {number} with node {peer}, which is at {self._number}")
        self._received[peer][number] = explicit.decode(memoryview(message)[_NUMBER.size :], self._size)
        return int(number)

    def delivered(self, peer: int) -> None:
        self._there.add(peer)

    def leave(self, peer: int) -> None:
        self._received[peer].pop(self._number, None)

    def _nothing(self, *told: object) -> None:
        """An earlier life's knowledge is in `memory` and in the log, nobody is ever suspected, and without
        a neighbour there is no exchange."""

    start = checkpointed = refused = try_again = _nothing

    def stand_at(self, peer: int, number: int) -> None:
        if number > self._number:
            self._begin(number)

    def _open(self, largest: Largest) -> dict[int, Message]:
        forms = (explicit.encode(*largest, self._size, form, Form.FP32) for form in IndexForm)
        self._sent, self._message = largest, _NUMBER.pack(self._number) + min(forms, key=len)
        return dict.fromkeys(self._weights, self._message)

    def _reopened(self, message: Message) -> Largest:
        (number,) = _NUMBER.unpack_from(message)
        self.stand_at(0, number)
        self._sent, self._message = explicit.decode(memoryview(message)[_NUMBER.size :], self._size), message
        return self._sent

    def _largest(self, vector: Floats) -> Largest:
        chosen = np.argpartition(np.abs(vector), self._size - self._count)[self._size - self._count :]
        index = np.sort(chosen).astype(np.int32)
        return index, vector[index]

    @property
    def _answered(self) -> set[int]:
        return {
            peer
            for peer, received in self._received.items()
            if self._number in received and (peer in self._there or self._number + 1 in received)
        }

    def _answers(self) -> dict[int, Largest]:
        """Closes the exchange once the last answer is there; none before."""
        if not self.complete:
            return {}
        answers = {peer: received[self._number] for peer, received in self._received.items()}
        self.exchanges += len(answers)
        self._begin(self._number + 1)
        return answers

    def _begin(self, number: int) -> None:
        self._number, self._message = number, b""
        self._there.clear()
        for received in self._received.values():
            for over in [each for each in received if each < number]:
                del received[over]


class TopK(_InStep):
    """DeepSqueeze (Tang et al., "DeepSqueeze: decentralization meets error-compensated compression", 2019,
    Algorithm 1): the largest of x + e travel, what does not is kept in e, and x mixes what travelled."""

    def __init__(self, setup: GossipSetup, numbers: Mapping[int, int], memory: Mapping[str, Floats]) -> None:
        super().__init__(setup, numbers, memory)
        self._error = memory.get("error", np.zeros(self._size, np.float32))

    @property
    def memory(self) -> dict[str, Floats]:
        return {"error": self._error}

    def open(self, vector: Floats, peers: Collection[int] | None = None) -> dict[int, Message]:
        if self._message:
            return {}
        self._error += vector
        largest = self._largest(self._error)
        self._error[largest[0]] = 0
        return self._open(largest)

    def reopen(self, peer: int, message: Message, vector: Floats) -> None:
        if not self._message:
            self._error += vector
            self._error[self._reopened(message)[0]] = 0

    def mix(self, vector: Floats) -> tuple[int, ...]:
        own_index, own_values = self._sent
        answers = self._answers()
        for peer, (index, values) in answers.items():
            weight = np.float32(self._rate * self._weights[peer])
            vector[index] += weight * values
            vector[own_index] -= weight * own_values
        return tuple(answers)


class Choco(_InStep):
    """CHOCO-SGD (Koloskova, Stich and Jaggi, ICML 2019, Algorithm 2): the largest of x - x^ travel, every
    node adds them to its copy of x^, and x mixes the copies."""

    def __init__(self, setup: GossipSetup, numbers: Mapping[int, int], memory: Mapping[str, Floats]) -> None:
        super().__init__(setup, numbers, memory)
        self._own = memory.get("own", setup.start.copy())
        self._copies = {peer: memory.get(f"copy-{peer}", setup.start.copy()) for peer in setup.weights}

    @property
    def memory(self) -> dict[str, Floats]:
        return {"own": self._own} | {f"copy-{peer}": copy for peer, copy in self._copies.items()}

    def open(self, vector: Floats, peers: Collection[int] | None = None) -> dict[int, Message]:
        if self._message:
            return {}
        index, values = self._largest(vector - self._own)
        self._own[index] += values
        return self._open((index, values))

    def reopen(self, peer: int, message: Message, vector: Floats) -> None:
        if not self._message:
            index, values = self._reopened(message)
            self._own[index] += values

    def mix(self, vector: Floats) -> tuple[int, ...]:
        answers = self._answers()
        for peer, (index, values) in answers.items():
            copy = self._copies[peer]
            copy[index] += values
            vector += np.float32(self._rate * self._weights[peer]) * (copy - self._own)
        return tuple(answers)


Begin = Callable[[Mapping[int, int], Mapping[str, Floats]], GossipAlgorithm]
"""Makes an algorithm that goes on from the `numbers` and the `memory` of an earlier life, empty for none."""


@dataclass(frozen=True, slots=True)
class AlgorithmKind:
    """How to begin an algorithm, and what it asks of a run."""

    make: Callable[[GossipSetup, Mapping[int, int], Mapping[str, Floats]], GossipAlgorithm]
    """From the setup, and the `numbers` and the `memory` of an earlier life."""
    sends_all: bool = False  # whether the whole model travels, whatever share is asked for
    waits_for_all: bool = False  # whether an exchange is with all neighbours: one that stays away stops it


ALGORITHMS: dict[str, AlgorithmKind] = {
    "rd-psgd": AlgorithmKind(Gossip),
    "d-psgd": AlgorithmKind(Gossip, sends_all=True),
    "topk": AlgorithmKind(TopK, waits_for_all=True),
    "choco": AlgorithmKind(Choco, waits_for_all=True),
}
"""Every algorithm by the name that options know it by. docs/extending.md says how to add one."""
