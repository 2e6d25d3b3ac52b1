"""A mission's server: what it asks of the boards, which updates it takes, and what their average becomes.

It has no link, no clock and no disk; these belong to its caller: the ground daemon, the simulated fleet, or a
satellite, as SpaceDML's server is one. `learn.federated.rounds.Round` decides when a round ends.

What travels down is the model's difference from the first weights, which both ends draw from the mission's
seed, so that a board needs nothing else to begin. What travels up is what a board's round has moved, or the
whole model in the same way (`TrainingMethod.sends_whole`). Whoever holds a board's key can send anything: an
update is checked before it is stored, and in an average the others decide what it may count for
(`learn.federated.clipping`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from onboard.codec.layout import Floats, Weights
from onboard.codec.model import Budget, Model
from onboard.codec.pack import CODECS, pack, unpack
from onboard.codec.quantized import HALF_MAX, MAX_BASES
from onboard.data import labels
from onboard.data.images import Images
from onboard.learn.federated.clipping import FEW, Bounds, Claim, Outlier, Part, Share, norm, odd_one, shares
from onboard.learn.federated.local import apply_delta
from onboard.learn.federated.rounds import RULES, AggregationRule, PartialAverage, staleness_weight
from onboard.learn.graph import TrainGraph
from onboard.learn.statistics import measured
from onboard.learn.training import BoardTraining, Training
from onboard.mission.objects import UPDATE, Task, Update, decode_update, encode_object, names_that_fit
from onboard.wire.messages import BadMessage

MAX_WEIGHT = HALF_MAX
"""No weight moves by more, and none that is sent whole is larger. A coordinate on the way down holds no more
(float16), and float32 can still hold the sum of 400,000 such squares."""
MAX_DENSE_BYTES = 4  # a weight: what is larger than the same model in float32 was not compressed by a board
_HEADERS_BYTES = 2048
Moves = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class MissionTerms:
    """What a mission asks of every board in every round."""

    id: bytes  # 8 B that no other mission has
    seed: int  # of the first weights, which both ends draw
    deadline_s: float  # time that a board is given for its answer
    training: Training
    classes: Sequence[str] = ()  # what the labels mean; empty where that is left unsaid


class BadUpdate(ValueError):  # noqa: N818 - "bad" says error already
    """An object that is no update of this mission from this node; says why."""


class Server:
    """The server of one mission. `staleness`: exponent of `staleness_weight`, None to discard late updates;
    `bounds`: what one board may count for; `rule`: what the updates come to, a row of `RULES`; `measures`:
    whether the running statistics of each outcome will be measured, so that boards need not send theirs."""

    def __init__(
        self,
        terms: MissionTerms,
        graph: TrainGraph,
        *,
        staleness: float | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008 - it is frozen
        rule: str = "mean",
        measures: bool = False,
    ) -> None:
        self.layout = graph.layout
        self.origin = graph.initial(terms.seed)
        self.staleness = staleness
        self.bounds = bounds
        self.rule = RULES[rule]
        self._terms, self._graph, self._measures = terms, graph, measures
        self._classes = labels.digest(terms.classes) if terms.classes else b""
        self._names = names_that_fit(terms.classes)

    def model(self, number: int, packed: bytes, *, deploy: bool = False) -> bytes:
        """The object that round `number` sends: its task, and the weights `packed` that the last round made,
        none in the first. `deploy`: weights to use, not to train."""
        return encode_object(self.task(number, deploy=deploy), packed)

    def task(self, number: int, *, deploy: bool = False) -> Task:
        """What round `number` asks of each board."""
        terms = self._terms
        return Task(
            mission=terms.id,
            round=number,
            model=self._graph.name,
            graph=self._graph.digest,
            seed=terms.seed,
            weights="seed" if number == 1 else "packed",
            training=None if deploy else terms.training.of_round(number),
            deadline_s=terms.deadline_s,
            classes=self._classes,
            names=self._names,
            measures=self._measures and not deploy,
        )

    def open(
        self, kind: int, payload: bytes, node: int, number: int,
        asked: Callable[[int], BoardTraining | None] = lambda number: None,
    ) -> tuple[Update, Model]:  # fmt: skip
        """The update that came over the link of `node` when `number` was the latest round. `asked` tells how
        a round asked to train, or None for what it would ask now: an operator may change that meanwhile.
        Raises BadUpdate for what is no update, and for what cannot come of such a training."""
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
            _check(model, len(weights), asked(update.round) or self._terms.training.of_round(update.round))
            return update, model
        except ValueError as error:  # BadMessage, BadPack and what the check says
            raise BadUpdate(str(error)) from None

    def base(self, packed: bytes) -> dict[str, Floats] | None:
        """What the updates of a round that sent `packed` moved from, where they are whole models. None where
        an update is what was moved. Raises BadPack."""
        if not packed or not self._terms.training.rule.sends_whole:
            return None
        return unpack(packed, self.layout).reconstruct()

    def accumulate(
        self, average: AggregationRule, update: Update, model: Model, number: int,
        base: Weights | None = None, share: Share | None = None,
    ) -> None:  # fmt: skip
        """Adds an update to the average of round `number` by its age and by what it may count for, which is
        all that it claims if `share` is None."""
        share = share or Share(1.0, update.samples)
        weights = model.reconstruct()
        if share.factor < 1:
            moves = _moved(weights, base).items()
            weights = {name: (values * share.factor).astype(np.float32) for name, values in moves}
            weights = weights if base is None else apply_delta(base, weights)
        average.add(weights, share.samples, self.age_weight(update, number))

    def age_weight(self, update: Update, number: int) -> float:
        """What an update counts for in round `number` beside one of that round."""
        return staleness_weight(number - update.round, self.staleness)

    def outcome(self, average: AggregationRule, packed: bytes) -> dict[str, Floats]:
        """What a round that sent `packed` comes to, as a difference from the first weights: an average of
        moves is added to what they moved. Raises BadPack."""
        total = average.mean()
        if packed and not self._terms.training.rule.sends_whole:
            total = apply_delta(unpack(packed, self.layout).reconstruct(), total)
        return total

    def measure(self, average: AggregationRule, packed: bytes, images: Images) -> Iterator[dict[str, Floats]]:
        """The running statistics of a round's outcome, by name, more exact each time. Raises BadPack,
        GraphError."""
        weights = apply_delta(self.origin, self.outcome(average, packed))
        return measured(self._graph, weights, images)

    def quantize_average(
        self, average: AggregationRule, packed: bytes, statistics: Weights = MappingProxyType({})
    ) -> bytes:
        """The outcome of a round that sent `packed`, packed for the way down by the method's codec; measured
        `statistics` take the place of the boards'. Raises BadPack."""
        training, total = self._terms.training, self.outcome(average, packed)
        total |= {name: values - self.origin[name] for name, values in statistics.items()}
        budget = Budget(
            training.bits_down, MAX_BASES, training.rule.compress, whole=True, exact_statistics=True
        )
        return pack(CODECS[training.rule.format].quantize(self.layout, total, budget))

    def weights(self, packed: bytes) -> dict[str, Floats]:
        """What boards start from, and are judged by, after a round with this outcome. Raises BadPack."""
        return apply_delta(self.origin, unpack(packed, self.layout).reconstruct())


def _check(model: Model, size: int, asked: BoardTraining) -> None:
    """Raises ValueError unless a packed model of `size` bytes can be what a board made that was `asked` so:
    in the form that its method makes, within the budget (`Codec.check`), no weight beyond MAX_WEIGHT."""
    layout = model.layout
    if size > MAX_DENSE_BYTES * layout.parameters + _HEADERS_BYTES:
        raise ValueError(f"{size} bytes for {layout.parameters} weights")
    codec = CODECS[model.format]
    if model.format != asked.rule.format:
        raise ValueError(f"{codec.name} weights, asked for was {asked.method}")
    codec.check(model, Budget(asked.bits_up, asked.max_bases, whole=asked.rule.sends_whole))
    for name, values in model.reconstruct().items():
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= MAX_WEIGHT:
            raise ValueError(f"{name} has a weight of {largest:.3g}, none is beyond {MAX_WEIGHT:g}")


def _moved(weights: Weights, base: Weights | None) -> Moves:
    """What the weights of an update, or their average, have moved from their `base`."""
    return {
        name: values.astype(np.float64) - (0.0 if base is None else base[name])
        for name, values in weights.items()
    }


class RoundAverage:
    """The average of round `number`, which sent `packed`: `look` at all answers, run through `passes`, and
    take `packed`. No answer is held between, so that a round of hundreds takes the memory of one."""

    def __init__(self, server: Server, number: int, packed: bytes) -> None:
        self._server, self._number, self._sent = server, number, packed
        self._claims: dict[int, Claim] = {}
        self._earlier: list[float] = []
        self._shares: dict[int, Share] = {}
        self._begin()
        self._statistics: Weights = {}

    @cached_property
    def _base(self) -> dict[str, Floats] | None:
        return self._server.base(self._sent)

    def look(self, update: Update, model: Model) -> None:
        """Takes the first look at one node's answer. Raises BadPack, as the next one does."""
        length = norm(_moved(model.reconstruct(), self._base))
        self._claims[update.node] = Claim(length, update.samples)

    def look_back(self, update: Update, model: Model, packed: bytes) -> None:
        """Takes a look at an answer of an earlier round, which sent `packed`."""
        self._earlier.append(norm(_moved(model.reconstruct(), self._server.base(packed))))

    @property
    def wants_earlier(self) -> bool:
        """Whether the answers are too few to be judged by one another alone."""
        return len(self._claims) + len(self._earlier) < FEW

    def passes(
        self, nodes: Collection[int], opened: Callable[[int], tuple[Update, Model]]
    ) -> Iterator[Outlier | None]:
        """Averages the answers of `nodes`, which `opened` fetches: all are added, then compared with the
        average, and added anew if one of them is the `odd_one`. Yields None after each, and in between those
        who asked to count for far more than the others, and the odd one."""
        self._shares, outliers = shares(self._claims, self._server.bounds, self._earlier)
        yield from outliers
        yield from self._added(nodes, opened)
        if not self._server.bounds.leave_out:
            return
        mean, parts = _moved(self._mean.mean(), self._base), dict[int, Part]()
        for node in nodes:
            parts[node] = self._part(*opened(node), mean)
            yield None
        if (odd := odd_one(parts, norm(mean))) is not None:
            yield odd
            share = self._shares[odd.node]
            self._shares[odd.node] = Share(share.factor, math.ceil(share.samples * odd.keeps))
            self._begin()
            yield from self._added(nodes, opened)

    def _begin(self) -> None:
        """Whatever the rule, answers are compared with their mean."""
        rule, layout = self._server.rule, self._server.layout
        self._mean = PartialAverage(layout)
        self._average: AggregationRule = self._mean if rule is PartialAverage else rule(layout)

    def _added(self, nodes: Iterable[int], opened: Callable[[int], tuple[Update, Model]]) -> Iterator[None]:
        averages = [self._mean] if self._average is self._mean else [self._mean, self._average]
        for node in nodes:
            if (share := self._shares[node]).samples:
                update, model = opened(node)
                for average in averages:
                    self._server.accumulate(average, update, model, self._number, self._base, share)
            yield None

    def _part(self, update: Update, model: Model, mean: Moves) -> Part:
        share, claim = self._shares[update.node], self._claims[update.node]
        move = _moved(model.reconstruct(), self._base)
        product = sum(float((values * mean[name]).sum()) for name, values in move.items())
        weight = share.samples * self._server.age_weight(update, self._number)
        return Part(weight, share.factor * claim.norm, share.factor * product)

    def measure(self, images: Images) -> Iterator[None]:
        """Measures the running statistics of the round's model, after `passes`: the boards' mean ones are
        not its own (`learn.statistics`). Raises ValueError without an answer."""
        for found in self._server.measure(self._average, self._sent, images):
            self._statistics = found
            yield

    def packed(self) -> bytes:
        """Packs the round's model for the way down. Raises ValueError without an answer."""
        return self._server.quantize_average(self._average, self._sent, self._statistics)


def averaged(
    server: Server, number: int, packed: bytes, payloads: Mapping[int, bytes], images: Images | None = None
) -> bytes:
    """The average, packed, of these nodes' updates in round `number`, which sent `packed`; all are at hand.
    `images`: to measure running statistics on. Raises BadUpdate, and ValueError without an update."""
    average = RoundAverage(server, number, packed)

    def opened(node: int) -> tuple[Update, Model]:
        return server.open(UPDATE, payloads[node], node, number)

    for node in sorted(payloads):
        average.look(*opened(node))
    for _ in average.passes(sorted(payloads), opened):
        pass
    for _ in average.measure(images) if images else ():
        pass
    return average.packed()
