"""A mission's server: what it asks of the boards, which updates it takes, and what their average becomes.

It has no link, no clock and no disk; whoever carries it brings those. The ground daemon and the simulated
fleet do, and a satellite could (SpaceDML's server is one). When a round ends is `learn.federated.Round`'s.

What travels down is the model's difference from first weights that both ends draw from the mission's seed,
so that a board needs nothing else to begin. What travels up is what a board's round has moved, or the whole
model in the same way (`BoardTraining.sends_whole`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onboard.codec.dense import Dense
from onboard.codec.layout import Floats, Weights
from onboard.codec.model import Model
from onboard.codec.pack import pack, unpack
from onboard.data import labels
from onboard.learn.federated.clipping import Bounds, Claim, Share, norm
from onboard.learn.federated.local import moved
from onboard.learn.federated.rounds import PartialAverage, condense, staleness_weight
from onboard.learn.graph import TrainGraph, initial
from onboard.mission import intake
from onboard.mission.objects import UPDATE, Task, Update, decode_update, encode_object, names_that_fit
from onboard.mission.training import BoardTraining, Training
from onboard.wire.messages import BadMessage


class BadUpdate(ValueError):  # noqa: N818 - "bad" says error already
    """An object that is no update of this mission from this node; says why."""


class Server:
    """The server of one mission. `mission`: 8 B id; `model`: its name on the boards; `seed` draws the first
    weights; `deadline_s` is what a board is given; `staleness`: exponent of `staleness_weight`, None to
    discard late updates; `classes`: what the labels mean, none to leave that unsaid; `bounds`: what one
    board may count for.
    """

    def __init__(
        self,
        *,
        mission: bytes,
        model: str,
        seed: int,
        deadline_s: float,
        training: Training,
        graph: TrainGraph,
        staleness: float | None = None,
        classes: Sequence[str] = (),
        bounds: Bounds = Bounds(),  # noqa: B008 - it is frozen
    ) -> None:
        self.layout = graph.layout
        self.origin = initial(graph.shapes, seed)
        self.staleness = staleness
        self.bounds = bounds
        self._mission, self._model, self._seed, self._deadline_s = mission, model, seed, deadline_s
        self._training, self._graph = training, graph
        self._classes = labels.digest(classes) if classes else b""
        self._names = names_that_fit(classes)

    # ask

    def model(self, number: int, packed: bytes, *, deploy: bool = False) -> bytes:
        """The object that round `number` sends: its task, and the weights that the last round made (none in
        the first). `deploy`: weights to use, not to train."""
        return encode_object(self.task(number, deploy=deploy), packed)

    def task(self, number: int, *, deploy: bool = False) -> Task:
        """What round `number` asks of each board."""
        return Task(
            mission=self._mission,
            round=number,
            model=self._model,
            graph=self._graph.digest,
            seed=self._seed,
            weights="seed" if number == 1 else "packed",
            training=None if deploy else self._training.of_round(number),
            deadline_s=self._deadline_s,
            classes=self._classes,
            names=self._names,
        )

    # take

    def open(
        self, kind: int, payload: bytes, node: int, number: int,
        asked: Callable[[int], BoardTraining | None] = lambda number: None,
    ) -> tuple[Update, Model]:  # fmt: skip
        """The update that came over the link of `node`, `number` being the latest round. `asked` tells what
        a round asked, None for what it would ask now (a mission's training may be changed between two).

        Raises BadUpdate for what is none, and for what nobody made who did as asked (see `intake`).
        """
        try:
            if kind != UPDATE:
                raise BadMessage(f"kind {kind} is not for the server")
            update, weights = decode_update(payload)
            if update.mission != self._mission:
                raise BadMessage(f"mission {update.mission.hex()} is not this one")
            if update.node != node:
                raise BadMessage(f"node {update.node} came over the link of node {node}")
            if not 1 <= update.round <= number:
                raise BadMessage(f"round {update.round} has not begun, at {number}")
            model = unpack(weights, self.layout)
            intake.check(model, len(weights), asked(update.round) or self._training.of_round(update.round))
            return update, model
        except ValueError as error:  # BadMessage, BadPack and what the intake says
            raise BadUpdate(str(error)) from None

    # average

    def claim(self, update: Update, model: Model, packed: bytes) -> Claim:
        """What an update asks to count for in a round that sent `packed`. Raises BadPack for that."""
        return Claim(norm(self.move(model.reconstruct(), packed)), update.samples)

    def fold(
        self, average: PartialAverage, update: Update, model: Model, number: int, packed: bytes = b"",
        share: Share | None = None,
    ) -> None:  # fmt: skip
        """Adds an update to the average of round `number`, which sent `packed`, by its age and what it may
        count for: all that it claims if `share` is None. Raises BadPack."""
        scale = self.age_weight(update, number)
        share = share or Share(1.0, update.samples)
        weights = model.reconstruct()
        if share.factor < 1:
            sent = self._sent(packed)
            weights = {
                name: (values * share.factor).astype(np.float32)
                for name, values in self.move(weights, packed).items()
            }
            weights = weights if sent is None else moved(sent, weights)
        average.add(weights, share.samples, scale)

    def _sent(self, packed: bytes) -> dict[str, Floats] | None:
        """What whole models moved from; None where they moved from what they are the difference from."""
        if not packed or not self._training.sends_whole:
            return None
        return unpack(packed, self.layout).reconstruct()

    def move(self, weights: Weights, packed: bytes) -> dict[str, npt.NDArray[np.float64]]:
        """What weights of an update, or their average, have moved from what was sent. Raises BadPack."""
        sent = self._sent(packed)
        return {
            name: values.astype(np.float64) - (0.0 if sent is None else sent[name])
            for name, values in weights.items()
        }

    def age_weight(self, update: Update, number: int) -> float:
        """What an update counts for in round `number` beside one of that round."""
        return staleness_weight(number - update.round, self.staleness)

    def condense(self, average: PartialAverage, packed: bytes) -> bytes:
        """What a round that sent `packed` comes to, packed for the way down: quantized, or for FedAvg in
        float32. An average of moves is added to what they moved. Raises BadPack."""
        training, total = self._training, average.mean()
        if packed and not training.sends_whole:
            total = moved(unpack(packed, self.layout).reconstruct(), total)
        if training.is_dense:
            return pack(Dense(self.layout, total, training.compresses))
        return pack(condense(self.layout, total, training.bits_down))

    def weights(self, packed: bytes) -> dict[str, Floats]:
        """What boards start from, and are judged by, after a round with this outcome. Raises BadPack."""
        return moved(self.origin, unpack(packed, self.layout).reconstruct())
