"""A mission's server: what it asks of the boards, which updates it takes, and what their average becomes.

It has no link, no clock and no disk; these belong to its caller: the ground daemon, the simulated fleet, or a
satellite, as SpaceDML's server is one. `learn.federated.rounds.Round` decides when a round ends.

What travels down is the model's difference from the first weights, which both ends draw from the mission's
seed, so that a board needs nothing else to begin. What travels up is what a board's round has moved, or the
whole model in the same way (`TrainingMethod.sends_whole`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onboard.codec.layout import Floats, Weights
from onboard.codec.model import Budget, Model
from onboard.codec.pack import CODECS, pack, unpack
from onboard.data import labels
from onboard.learn.federated.clipping import Bounds, Claim, Share, norm
from onboard.learn.federated.local import apply_delta
from onboard.learn.federated.rounds import DOWNLINK_BASES, staleness_weight
from onboard.learn.federated.rules import RULES, AggregationRule
from onboard.learn.graph import TrainGraph, initial
from onboard.learn.training import BoardTraining, Training
from onboard.mission import intake
from onboard.mission.objects import UPDATE, Task, Update, decode_update, encode_object, names_that_fit
from onboard.wire.messages import BadMessage


class BadUpdate(ValueError):  # noqa: N818 - "bad" says error already
    """An object that is no update of this mission from this node; says why."""


@dataclass(frozen=True, kw_only=True)
class MissionTerms:
    """What a mission asks of every board in every round."""

    id: bytes
    """8 B that no other mission has."""
    model: str
    """Name of the model on the boards."""
    seed: int
    """Both ends draw the first weights from it."""
    deadline_s: float
    """Time that a board is given for its answer."""
    training: Training
    classes: Sequence[str] = ()
    """What the labels mean. Empty: that is left unsaid."""


class Server:
    """The server of one mission. `staleness`: exponent of `staleness_weight`, None to discard late updates;
    `bounds`: what one board may count for; `rule`: what the updates come to, a row of `RULES`.
    """

    def __init__(
        self,
        terms: MissionTerms,
        graph: TrainGraph,
        *,
        staleness: float | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008 - it is frozen
        rule: str = "mean",
    ) -> None:
        self.layout = graph.layout
        self.origin = initial(graph.shapes, terms.seed)
        self.staleness = staleness
        self.bounds = bounds
        self._rule = RULES[rule]
        self._terms, self._graph = terms, graph
        self._classes = labels.digest(terms.classes) if terms.classes else b""
        self._names = names_that_fit(terms.classes)

    # ask

    def model(self, number: int, packed: bytes, *, deploy: bool = False) -> bytes:
        """The object that round `number` sends: its task, and the weights that the last round made (none in
        the first). `deploy`: weights to use, not to train."""
        return encode_object(self.task(number, deploy=deploy), packed)

    def task(self, number: int, *, deploy: bool = False) -> Task:
        """What round `number` asks of each board."""
        terms = self._terms
        return Task(
            mission=terms.id,
            round=number,
            model=terms.model,
            graph=self._graph.digest,
            seed=terms.seed,
            weights="seed" if number == 1 else "packed",
            training=None if deploy else terms.training.of_round(number),
            deadline_s=terms.deadline_s,
            classes=self._classes,
            names=self._names,
        )

    # take

    def open(
        self, kind: int, payload: bytes, node: int, number: int,
        asked: Callable[[int], BoardTraining | None] = lambda number: None,
    ) -> tuple[Update, Model]:  # fmt: skip
        """The update that came over the link of `node` when `number` was the latest round. `asked` tells how
        a round asked to train, or None for what it would ask now: an operator may change that meanwhile.

        Raises BadUpdate for what is no update, and for what cannot come of such a training (see `intake`).
        """
        try:
            if kind != UPDATE:
                raise BadMessage(f"kind {kind} is not for the server")
            update, weights = decode_update(payload)
            if update.mission != self._terms.id:
                raise BadMessage(f"mission {update.mission.hex()} is not this one")
            if update.node != node:
                raise BadMessage(f"node {update.node} came over the link of node {node}")
            if not 1 <= update.round <= number:
                raise BadMessage(f"round {update.round} has not begun, at {number}")
            model = unpack(weights, self.layout)
            intake.check(
                model, len(weights), asked(update.round) or self._terms.training.of_round(update.round)
            )
            return update, model
        except ValueError as error:  # BadMessage, BadPack and what the intake says
            raise BadUpdate(str(error)) from None

    # average

    def no_updates(self) -> AggregationRule:
        """A round's average, before there is an update."""
        return self._rule(self.layout)

    def base(self, packed: bytes) -> dict[str, Floats] | None:
        """What the updates of a round that sent `packed` moved from, where they are whole models. None where
        an update is what was moved. Raises BadPack."""
        if not packed or not self._terms.training.rule.sends_whole:
            return None
        return unpack(packed, self.layout).reconstruct()

    def move(self, weights: Weights, base: Weights | None) -> dict[str, npt.NDArray[np.float64]]:
        """What the weights of an update, or their average, have moved from their `base`."""
        return {
            name: values.astype(np.float64) - (0.0 if base is None else base[name])
            for name, values in weights.items()
        }

    def claim(self, update: Update, model: Model, base: Weights | None) -> Claim:
        """What an update asks to count for."""
        return Claim(norm(self.move(model.reconstruct(), base)), update.samples)

    def accumulate(
        self, average: AggregationRule, update: Update, model: Model, number: int,
        base: Weights | None = None, share: Share | None = None,
    ) -> None:  # fmt: skip
        """Adds an update to the average of round `number` by its age and by what it may count for, which is
        all that it claims if `share` is None."""
        share = share or Share(1.0, update.samples)
        weights = model.reconstruct()
        if share.factor < 1:
            weights = {
                name: (values * share.factor).astype(np.float32)
                for name, values in self.move(weights, base).items()
            }
            weights = weights if base is None else apply_delta(base, weights)
        average.add(weights, share.samples, self.age_weight(update, number))

    def age_weight(self, update: Update, number: int) -> float:
        """What an update counts for in round `number` beside one of that round."""
        return staleness_weight(number - update.round, self.staleness)

    def quantize_average(self, average: AggregationRule, packed: bytes) -> bytes:
        """The outcome of a round that sent `packed`, packed for the way down by the method's codec. An
        average of moves is added to what they moved. Raises BadPack."""
        training, total = self._terms.training, average.mean()
        if packed and not training.rule.sends_whole:
            total = apply_delta(unpack(packed, self.layout).reconstruct(), total)
        budget = Budget(training.bits_down, DOWNLINK_BASES, training.rule.compress)
        return pack(CODECS[training.rule.format].quantize(self.layout, total, budget))

    def weights(self, packed: bytes) -> dict[str, Floats]:
        """What boards start from, and are judged by, after a round with this outcome. Raises BadPack."""
        return apply_delta(self.origin, unpack(packed, self.layout).reconstruct())
