"""The average of a round's answers, in which the others decide what one answer may count for.

Every answer is looked at, then all are weighed (`learn.federated.clipping`), then each is added, and each is
compared with the average. Where one has to count for less, all are added once more. No answer is held between
these passes, so that a round of hundreds takes the memory of one; the caller keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

from onboard.codec.alq import Doubles
from onboard.codec.layout import Floats
from onboard.codec.model import Model
from onboard.learn.federated.clipping import FEW, Claim, Outlier, Part, Share, norm, odd_one, shares
from onboard.mission.objects import UPDATE, Update
from onboard.mission.server import Server


class RoundAverage:
    """The average of round `number`, which sent `packed`.

    Use: `look` at all, `weigh`, `add` all, `compare` all; if somebody is the `odd_one`, `add` all again;
    `packed`.
    """

    def __init__(self, server: Server, number: int, packed: bytes) -> None:
        self._server, self._number, self._sent = server, number, packed
        self._claims: dict[int, Claim] = {}
        self._earlier: list[float] = []
        self._shares: dict[int, Share] = {}
        self._parts: dict[int, Part] = {}
        self._mean: tuple[dict[str, Doubles], float] | None = None  # what was moved on average, its length
        self._odd: Outlier | None = None
        self._average = server.no_updates()

    @cached_property
    def _base(self) -> dict[str, Floats] | None:
        """What the answers moved from. Raises BadPack."""
        return self._server.base(self._sent)

    def look(self, update: Update, model: Model) -> None:
        """Takes the first look at one node's answer."""
        self._claims[update.node] = self._server.claim(update, model, self._base)

    @property
    def wants_earlier(self) -> bool:
        """Whether the answers are too few to be judged by one another alone."""
        return len(self._claims) < FEW and len(self._claims) + len(self._earlier) < FEW

    def look_back(self, update: Update, model: Model, packed: bytes) -> None:
        """Takes a look at an answer of an earlier round, which sent `packed`."""
        self._earlier.append(self._server.claim(update, model, self._server.base(packed)).norm)

    def weigh(self) -> list[Outlier]:
        """Weighs all answers that were looked at; returns who asked to count for far more than the others."""
        self._shares, outliers = shares(self._claims, self._server.bounds, self._earlier)
        return outliers

    def add(self, update: Update, model: Model) -> None:
        """Adds one node's answer, in the second pass."""
        share = self._shares[update.node]
        if self._odd is not None and update.node == self._odd.node:
            share = Share(share.factor, math.ceil(share.samples * self._odd.keeps))
        if share.samples:
            self._server.accumulate(self._average, update, model, self._number, self._base, share)

    def compare(self, update: Update, model: Model) -> None:
        """Compares one node's answer with the average, once all were added."""
        if self._mean is None:
            mean = self._server.move(self._average.mean(), self._base)
            self._mean = mean, norm(mean)
        share, claim = self._shares[update.node], self._claims[update.node]
        move = self._server.move(model.reconstruct(), self._base)
        product = sum(float((values * self._mean[0][name]).sum()) for name, values in move.items())
        weight = share.samples * self._server.age_weight(update, self._number)
        self._parts[update.node] = Part(weight, share.factor * claim.norm, share.factor * product)

    def odd_one(self) -> Outlier | None:
        """Names who counts for less or for nothing, if somebody does, once all were compared. The average is
        then empty again, and all are to be added once more."""
        if not self._server.bounds.leave_out or self._mean is None:
            return None
        if (outlier := odd_one(self._parts, self._mean[1])) is not None:
            self._odd, self._average = outlier, self._server.no_updates()
        return outlier

    def packed(self) -> bytes:
        """Packs the round's model for the way down. Raises ValueError without an answer."""
        return self._server.quantize_average(self._average, self._sent)


def averaged(server: Server, number: int, packed: bytes, payloads: Mapping[int, bytes]) -> bytes:
    """The average, packed, of these nodes' updates in round `number`, which sent `packed`; all are at hand.

    Raises BadUpdate, and ValueError without one.
    """
    average = RoundAverage(server, number, packed)
    answers = sorted(payloads.items())
    for node, payload in answers:
        average.look(*server.open(UPDATE, payload, node, number))
    average.weigh()
    for take in (average.add, average.compare):
        for node, payload in answers:
            take(*server.open(UPDATE, payload, node, number))
    if average.odd_one() is not None:
        for node, payload in answers:
            average.add(*server.open(UPDATE, payload, node, number))
    return average.packed()
