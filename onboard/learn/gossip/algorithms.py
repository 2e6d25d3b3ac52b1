"""How a node gossips: one protocol, and one table of what fulfils it.

An algorithm decides what travels to which neighbour and how what comes from them is mixed into the model. The
agent (`onboard.agents.gossip`) does the rest: it makes each message durable, offers it, and tells the
algorithm what became of it. To add one, fulfil `GossipAlgorithm` and give it a row of `ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from onboard.codec.layout import Floats
from onboard.learn.gossip.baselines import Choco, TopK
from onboard.learn.gossip.exchange import Gossip, GossipSetup, Message


class GossipAlgorithm(Protocol):
    """One node's side of its exchanges. A model is float32 (P,); exchanges with a neighbour are numbered."""

    exchanges: int
    """How many this end has completed in this life."""
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
        number. Raises BadExchange, with nothing changed, for what cannot be used; KeyError for no neighbour,
        here and below."""

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


Begin = Callable[[Mapping[int, int], Mapping[str, Floats]], GossipAlgorithm]
"""Makes an algorithm that goes on from the `numbers` and the `memory` of an earlier life, empty for none."""


@dataclass(frozen=True, slots=True)
class AlgorithmKind:
    """How to begin an algorithm, and what it asks of a run."""

    make: Callable[[GossipSetup, Mapping[int, int], Mapping[str, Floats]], GossipAlgorithm]
    """From the setup, and the `numbers` and the `memory` of an earlier life."""
    sends_all: bool = False
    """Whether the whole model travels, whatever share is asked for."""
    waits_for_all: bool = False
    """Whether an exchange is with all neighbours, so that one that stays away stops it."""


ALGORITHMS: dict[str, AlgorithmKind] = {
    "rd-psgd": AlgorithmKind(Gossip),
    "d-psgd": AlgorithmKind(Gossip, sends_all=True),
    "topk": AlgorithmKind(TopK, waits_for_all=True),
    "choco": AlgorithmKind(Choco, waits_for_all=True),
}
"""Every algorithm by the name that options know it by. docs/extending.md says how to add one."""
