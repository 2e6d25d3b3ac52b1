"""The closing of a round: what its answers average to, of those that can be used.

An answer was checked when it came in. It is checked again when it is read: by then a disk may have changed
it, or a version before took what this one does not. One that cannot be used is named with its reason, and is
no reason to lose the others. A lack of memory is no fault of an answer's, and is raised.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from groundstation.rounds.opening import task_of
from groundstation.store.store import Store, StoreError
from onboard.codec.model import Model
from onboard.console.errors import one_line, where
from onboard.console.log import say
from onboard.data.images import Images
from onboard.learn.federated.clipping import Outlier, norm
from onboard.learn.graph import InferGraph, Score, evaluate
from onboard.learn.training import BoardTraining
from onboard.mission.objects import UPDATE, Update
from onboard.mission.server import RoundAverage, Server

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Closing:
    """Averages the stored answers of a round, and judges what the boards will get. `names` of the nodes are
    for the log."""

    server: Server
    store: Store
    names: Mapping[int, str]
    infer: InferGraph
    test: Images

    def average(
        self, number: int, nodes: Iterable[int], base: bytes
    ) -> Generator[bool, None, tuple[bytes, dict[int, str]]]:
        """The answers of these nodes in round `number`, onto the packed weights `base` that it sent: the
        packed weights, none where some answer could not be used, and those with the reason of each."""
        average, usable, unusable = RoundAverage(self.server, number, base), list[int](), dict[int, str]()
        for node in nodes:
            try:
                average.look(*self._open(number, node))
                usable.append(node)
            except (StoreError, MemoryError):
                raise
            except Exception as error:
                unusable[node] = _why(error)
            yield True
        if unusable:
            return b"", unusable
        yield from self._weigh(average, number)
        for take in (average.add, average.compare):
            yield from self._each(take, number, usable)
        if (outlier := average.odd_one()) is not None:
            self._tell(outlier, number)
            yield from self._each(average.add, number, usable)
        packed = b""
        try:
            packed = self._quantize(average)
        except MemoryError:
            raise
        except Exception as error:  # each of them can be used, and all of them together cannot
            farthest = max(usable, key=lambda node: norm(self._open(number, node)[1].reconstruct()))
            unusable[farthest] = f"with it there is no average: {_why(error)}"
        yield True
        return packed, unusable

    def _each(self, take: Callable[[Update, Model], None], number: int, nodes: list[int]) -> Iterator[bool]:
        for node in nodes:
            take(*self._open(number, node))
            yield True

    def judge(self, packed: bytes) -> Generator[bool, None, Score]:
        """Accuracy and loss of packed weights on the mission's test images."""
        scores = []
        for so_far in evaluate(self.infer, self.server.weights(packed), self.test.x, self.test.y):
            scores.append(so_far)
            yield True
        return scores[-1]  # covers all images

    def lose(self, number: int, unusable: Mapping[int, str], now: float) -> None:
        """What these nodes answered is of no use, for these reasons: it is as if they had not. `now` in Unix
        seconds. Raises StoreError."""
        for node, why in sorted(unusable.items()):
            self.store.lose(number, node, why, now)
            name = self.names.get(node, str(node))
            say(log, "update-lost", level=logging.WARNING, node=name, round=number, why=why)

    def training(self, number: int) -> BoardTraining | None:
        """How round `number` asked each board to train; None where no such round is stored."""
        asked = task_of(self.store.asked(number))
        return asked[0].training if asked else None

    def _weigh(self, average: RoundAverage, number: int) -> Iterator[bool]:
        """All answers have been looked at: says who is beyond the others, or beyond the rounds before."""
        for earlier in range(number - 1, 0, -1):
            if not average.wants_earlier:
                break
            base = self.store.model(earlier - 1) or b""
            for answer in self.store.answers(earlier):
                with contextlib.suppress(ValueError):  # a disk may have changed it since
                    average.look_back(*self._open(earlier, answer["node"]), base)
                yield True
        for outlier in average.weigh():
            self._tell(outlier, number)

    def _tell(self, outlier: Outlier, number: int) -> None:
        name = self.names.get(outlier.node, str(outlier.node))
        say(log, "outlier", level=logging.WARNING, node=name, round=number, **outlier.log_fields())

    def _open(self, number: int, node: int) -> tuple[Update, Model]:
        """One stored answer. Raises ValueError, also for one that is not stored."""
        payload = self.store.payload(number, node)
        if payload is None:
            raise ValueError("there is nothing stored of it")
        return self.server.open(UPDATE, payload, node, number, self.training)

    def _quantize(self, average: RoundAverage) -> bytes:
        """The average, packed, if it is one that can be sent and built on. Raises ValueError."""
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            packed = average.packed()
            for name, weights in self.server.weights(packed).items():
                if not np.isfinite(weights).all():
                    raise ValueError(f"{name} has values that are not finite")
        return packed


def _why(error: Exception) -> str:
    """A complaint about the answer in its own words; of what nobody foresaw also where it was raised."""
    return one_line(str(error)) if isinstance(error, ValueError) and str(error) else where(error)
