"""The closing of a round: what its answers average to, of those that can be used.

An answer was checked when it came in. It is checked again when it is read: by then a disk may have changed
it, or a version before took what this one does not. One that cannot be used is named with its reason, and is
no reason to lose the others. A lack of memory is no fault of an answer's, and is raised.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from groundstation.store.store import Store, StoreError
from onboard.codec.model import Model
from onboard.console.errors import one_line, where
from onboard.console.log import say
from onboard.data.loading import Images
from onboard.learn.federated.clipping import Outlier, norm
from onboard.learn.graph import InferGraph, Score, evaluate
from onboard.learn.training import BoardTraining
from onboard.mission.objects import UPDATE, Update
from onboard.mission.server import RoundAverage, Server

log = logging.getLogger(__name__)


@dataclass
class Average:
    """What the answers of a round came to: the packed weights, none where no answer could be used or where
    some could not; and which those are, with the reason of each."""

    packed: bytes = b""
    unusable: dict[int, str] = field(default_factory=dict)


class Closing:
    """Averages the stored answers of a round, and judges what the boards will get. `training` tells how
    a round asked to train, `names` of the nodes are for the log."""

    def __init__(
        self,
        server: Server,
        store: Store,
        training: Callable[[int], BoardTraining | None],
        names: Mapping[int, str],
        infer: InferGraph,
        test: Images,
    ) -> None:
        self._server, self._store, self._training, self._names = server, store, training, names
        self._infer, self._test = infer, test

    def average(self, number: int, nodes: Iterable[int], base: bytes) -> Generator[bool, None, Average]:
        """The answers of these nodes in round `number`, onto the packed weights `base` that it sent."""
        average, outcome, usable = RoundAverage(self._server, number, base), Average(), []
        for node in nodes:
            try:
                average.look(*self._open(number, node))
                usable.append(node)
            except (StoreError, MemoryError):
                raise
            except Exception as error:
                outcome.unusable[node] = _why(error)
            yield True
        if outcome.unusable:
            return outcome
        yield from self._weigh(average, number)
        for take in (average.add, average.compare):
            for node in usable:
                take(*self._open(number, node))
                yield True
        if (outlier := average.odd_one()) is not None:
            self._tell(outlier, number)
            for node in usable:
                average.add(*self._open(number, node))
                yield True
        try:
            outcome.packed = self._quantize(average)
        except MemoryError:
            raise
        except Exception as error:  # each of them can be used, and all of them together cannot
            farthest = max(usable, key=lambda node: self._size(number, node))
            outcome.unusable[farthest] = f"with it there is no average: {_why(error)}"
        yield True
        return outcome

    def judge(self, packed: bytes) -> Generator[bool, None, Score]:
        """Accuracy and loss of packed weights on the mission's test images."""
        scores = []
        for so_far in evaluate(self._infer, self._server.weights(packed), self._test.x, self._test.y):
            scores.append(so_far)
            yield True
        return scores[-1]  # covers all images

    def lose(self, number: int, unusable: Mapping[int, str], now: float) -> None:
        """What these nodes answered is of no use, for these reasons: it is as if they had not. `now` in Unix
        seconds. Raises StoreError."""
        for node, why in sorted(unusable.items()):
            self._store.lose(number, node, why, now)
            name = self._names.get(node, str(node))
            say(log, "update-lost", level=logging.WARNING, node=name, round=number, why=why)

    def _weigh(self, average: RoundAverage, number: int) -> Iterator[bool]:
        """All answers have been looked at: says who is beyond the others, or beyond the rounds before."""
        for earlier in range(number - 1, 0, -1):
            if not average.wants_earlier:
                break
            base = self._store.model(earlier - 1) or b""
            for answer in self._store.answers(earlier):
                with contextlib.suppress(ValueError):  # a disk may have changed it since
                    average.look_back(*self._open(earlier, answer["node"]), base)
                yield True
        for outlier in average.weigh():
            self._tell(outlier, number)

    def _tell(self, outlier: Outlier, number: int) -> None:
        name = self._names.get(outlier.node, str(outlier.node))
        say(log, "outlier", level=logging.WARNING, node=name, round=number, **outlier.log_fields())

    def _open(self, number: int, node: int) -> tuple[Update, Model]:
        """One stored answer. Raises ValueError, also for one that is not stored."""
        payload = self._store.payload(number, node)
        if payload is None:
            raise ValueError("there is nothing stored of it")
        return self._server.open(UPDATE, payload, node, number, self._training)

    def _quantize(self, average: RoundAverage) -> bytes:
        """The average, packed, if it is one that can be sent and built on. Raises ValueError."""
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            packed = average.packed()
            for name, weights in self._server.weights(packed).items():
                if not np.isfinite(weights).all():
                    raise ValueError(f"{name} has values that are not finite")
        return packed

    def _size(self, number: int, node: int) -> float:
        """How far an answer is from moving nothing."""
        _, model = self._open(number, node)
        return norm(model.reconstruct())


def _why(error: Exception) -> str:
    """A complaint about the answer in its own words; of what nobody foresaw also where it was raised."""
    return one_line(str(error)) if isinstance(error, ValueError) and str(error) else where(error)
