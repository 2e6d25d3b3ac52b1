"""A round's answers become its average, looked at twice: what each may count for is the others' to say.

First every answer is looked at, then all are weighed (`learn.clipping`), then each is added. Nothing of an
answer is held between the looks, so that a round of hundreds takes the memory of one; whoever carries the
server keeps the answers.
"""

from __future__ import annotations

from collections.abc import Mapping

from onboard.codec.alq import Model
from onboard.learn.clipping import FEW, Claim, Outlier, Share, shares
from onboard.learn.federated import PartialAverage
from onboard.server import Server
from onboard.wire.messages import UPDATE, Update


class RoundAverage:
    """The average of round `number`, which sent `packed`.

    Use: `look` at all, `weigh`, `add` all, `packed`.
    """

    def __init__(self, server: Server, number: int, packed: bytes) -> None:
        self._server, self._number, self._sent = server, number, packed
        self._claims: dict[int, Claim] = {}
        self._earlier: list[float] = []
        self._shares: dict[int, Share] = {}
        self._average = PartialAverage(server.layout)

    def look(self, update: Update, model: Model) -> None:
        """The first look at one node's answer."""
        self._claims[update.node] = self._server.claim(update, model, self._sent)

    @property
    def wants_earlier(self) -> bool:
        """Whether the answers are too few to be judged by one another alone."""
        return len(self._claims) < FEW and len(self._claims) + len(self._earlier) < FEW

    def look_back(self, update: Update, model: Model, packed: bytes) -> None:
        """A look at an answer of an earlier round, which sent `packed`."""
        self._earlier.append(self._server.claim(update, model, packed).norm)

    def weigh(self) -> list[Outlier]:
        """All have been looked at; returns who asked to count for far more than the others."""
        self._shares, outliers = shares(self._claims, self._server.bounds, self._earlier)
        return outliers

    def add(self, update: Update, model: Model) -> None:
        """The second look at one node's answer."""
        share = self._shares[update.node]
        self._server.fold(self._average, update, model, self._number, self._sent, share)

    def packed(self) -> bytes:
        """The round's model, packed for the way down. Raises ValueError without an answer."""
        return self._server.condense(self._average, self._sent)


def averaged(server: Server, number: int, packed: bytes, payloads: Mapping[int, bytes]) -> bytes:
    """What the updates of these nodes come to in round `number`, which sent `packed`, where all are at hand.

    Raises BadUpdate, and ValueError without one.
    """
    average = RoundAverage(server, number, packed)
    answers = sorted(payloads.items())
    for node, payload in answers:
        average.look(*server.open(UPDATE, payload, node, number))
    average.weigh()
    for node, payload in answers:
        average.add(*server.open(UPDATE, payload, node, number))
    return average.packed()
