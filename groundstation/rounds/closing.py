"""Reads what is stored of a round, its questions, answers and models, and checks it again.

An answer was checked on arrival, but a disk may have changed it since, or an earlier version may have taken
what this one does not. An unusable answer is logged with its reason, and the others still count. A lack of
memory is not its fault and is raised. Between two starts, a mission's boards and rules may have changed."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from groundstation.config import Mission
from groundstation.store.store import RoundRow, Store, StoreError
from onboard.codec.model import Model
from onboard.console.errors import one_line, where
from onboard.console.log import say
from onboard.data.images import Images
from onboard.learn.federated.clipping import norm
from onboard.learn.federated.rounds import Round
from onboard.learn.graph import InferGraph
from onboard.learn.objectives import Metric
from onboard.learn.scoring import Score, evaluate
from onboard.learn.training import BoardTraining
from onboard.mission.objects import UPDATE, Task, Update, decode_task
from onboard.mission.server import RoundAverage, Server
from onboard.wire.messages import BadMessage

log = logging.getLogger(__name__)

LOST = ("failed", "refused", "lost")  # states of an answer that is waited for only once it is asked again


@dataclass(frozen=True)
class Closing:
    """Averages the stored answers of a round, and evaluates the result. `measuring`: images to measure its
    running statistics on, if it has any."""

    server: Server
    store: Store
    names: Mapping[int, str]
    infer: InferGraph
    test: Images
    measuring: Images | None

    @property
    def metric(self) -> Metric:
        return self.infer.objective.metric

    def average(
        self, number: int, nodes: Iterable[int], base: bytes
    ) -> Generator[bool, None, tuple[bytes, dict[int, str]]]:
        """Averages these nodes' answers in round `number` onto the packed weights `base` that it sent.
        Returns the packed weights, empty if some answer was unusable, and the reasons for these by node."""
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
        yield from self._look_back(average, number)
        for outlier in average.passes(usable, partial(self._open, number)):
            if outlier is None:
                yield True
            else:
                name = self.names.get(outlier.node, str(outlier.node))
                fields = outlier.log_fields()
                say(log, "outlier", level=logging.WARNING, node=name, round=number, **fields)
        try:
            for _ in average.measure(self.measuring) if self.measuring else ():
                yield True
            with np.errstate(over="ignore", invalid="ignore"):  # the result is checked
                packed = average.packed()
                for name, weights in self.server.weights(packed).items():
                    if not np.isfinite(weights).all():
                        raise ValueError(f"{name} has values that are not finite")
        except MemoryError:
            raise
        except Exception as error:  # each of them is usable, but not all together
            packed = b""
            farthest = max(usable, key=lambda node: norm(self._open(number, node)[1].reconstruct()))
            unusable[farthest] = f"with it there is no average: {_why(error)}"
        yield True
        return packed, unusable

    def judge(self, packed: bytes) -> Generator[bool, None, Score]:
        scores = []
        for so_far in evaluate(self.infer, self.server.weights(packed), self.test.x, self.test.y):
            scores.append(so_far)
            yield True
        return scores[-1]  # covers all images

    def lose(self, number: int, unusable: Mapping[int, str], now: float) -> None:
        """Marks these nodes' answers as lost, for the reasons given. Raises StoreError."""
        for node, why in sorted(unusable.items()):
            self.store.lose(number, node, why, now)
            name = self.names.get(node, str(node))
            say(log, "update-lost", level=logging.WARNING, node=name, round=number, why=why)

    def training(self, number: int) -> BoardTraining | None:
        """Returns how round `number` asked each board to train; None where no such round is stored."""
        asked = task_of(self.store.round(number))
        return asked[0].training if asked else None

    def _look_back(self, average: RoundAverage, number: int) -> Iterator[bool]:
        for earlier in range(number - 1, 0, -1):
            if not average.wants_earlier:
                break
            base = self.store.model(earlier - 1) or b""
            for answer in self.store.answers(earlier):
                with contextlib.suppress(ValueError):  # a disk may have changed it
                    average.look_back(*self._open(earlier, answer["node"]), base)
                yield True

    def _open(self, number: int, node: int) -> tuple[Update, Model]:
        """Returns one stored answer. Raises ValueError, also where none is stored."""
        payload = self.store.payload(number, node)
        if payload is None:
            raise ValueError("there is nothing stored of it")
        return self.server.open(UPDATE, payload, node, number, self.training)


def _why(error: Exception) -> str:
    """Words an error; one that nobody foresaw also says where it was raised."""
    return one_line(str(error)) if isinstance(error, ValueError) and str(error) else where(error)


def restored(row: RoundRow, answers: Sequence[Mapping[str, Any]], mission: Mission, now: float) -> Round:
    """Rebuilds an open round from its row and the answers of boards that the mission has. `now`: on the
    links' clock. Raises ValueError where none of the asked boards is left."""
    rules, nodes = mission.rules, {node.id for node in mission.nodes}
    states = {answer["node"]: answer["state"] for answer in answers if answer["node"] in nodes}
    merged = {node for node, state in states.items() if state == "merged"}
    asked = frozenset(states) - merged
    # Never more than a whole round: the deadline may have changed, or a disk the number.
    left_s = rules.deadline_s if row.left_s is None else min(max(row.left_s, 0.0), rules.deadline_s)
    return Round(
        row.number, asked=asked, quorum=min(mission.quorum, len(asked)), deadline_s=now + left_s,
        answered={node for node, state in states.items() if state == "answered"},
        lost={node for node, state in states.items() if state in LOST},
        merges=rules.staleness is not None, merged=merged,
    )  # fmt: skip


def task_of(row: RoundRow | None) -> tuple[Task, bytes] | None:
    """Returns the task and the packed weights of a round's question, or None if a disk has damaged it."""
    try:
        task, packed = decode_task(row.model if row else b"")
    except BadMessage:
        return None
    return task, bytes(packed)


def scores_of(store: Store, server: Server) -> list[float]:
    """Returns the scores of the closed rounds, NaN for one that is not known. Raises StoreError.

    A last round that has lost its model is opened again, unless the round after it still holds the model."""
    closed = [row for row in store.rounds() if row.closed_at is not None]
    while closed:
        number = closed[-1].number
        why = _unusable(server, store.model(number))
        if not why:
            break
        sent = task_of(store.round(number + 1))
        if sent and not _unusable(server, sent[1]):  # by the next round, to every board
            store.put_model(number, sent[1])
            break
        store.reopen(number)
        say(log, "round-reopened", level=logging.WARNING, round=number, why=why)
        closed.pop()
    return [math.nan if row.accuracy is None else row.accuracy for row in closed]


def _unusable(server: Server, packed: bytes | None) -> str:
    """Returns why nothing can be built on these weights; empty if they are usable."""
    if packed is None:
        return "its model is not there"
    try:
        weights = server.weights(packed)
    except ValueError as error:
        return f"its model cannot be read: {error}"
    return "" if all(np.isfinite(each).all() for each in weights.values()) else "its model is not finite"
