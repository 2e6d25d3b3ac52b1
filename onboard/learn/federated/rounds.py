"""The server's side of a SpaceDML round: who is asked, when it is over, and what the answers come to.

SpaceDML, Algorithm 1 (partial averaging): the server asks K of N nodes, averages the updates of those that
answered weighted by their samples, quantizes the average by a sketch that needs no data, and sends it back.
All of it is pure, so that a ground daemon, a satellite that acts as server and a simulated fleet run the same
(`onboard.mission.server`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2s
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from onboard.codec.layout import Floats, Layout, Weights, in_groups
from onboard.learn.objectives import METRICS, Metric


def choose(nodes: Iterable[int], k: int, seed: int, round_number: int) -> tuple[int, ...]:
    """Chooses K of the nodes (all, if there are no more), in rising order: those whose hash of (seed, round,
    node) ranks first. Anyone can check, and a node that joins or leaves displaces at most one choice."""
    if k < 1:
        raise ValueError(f"k is {k}, must be at least 1")

    def rank(node: int) -> bytes:
        return blake2s(f"{seed} {round_number} {node}".encode()).digest()

    return tuple(sorted(sorted(set(nodes), key=rank)[:k]))


def staleness_weight(rounds_late: int, exponent: float | None) -> float:
    """Returns (1 + rounds_late)^-exponent, as in FedAsync (Xie, Koyejo and Gupta, "Asynchronous Federated
    Optimization", 2019, which uses 0.5); 0 for a late update without an exponent. Raises ValueError for one
    from the future and a negative exponent."""
    if rounds_late < 0 or (exponent is not None and not exponent >= 0):
        raise ValueError(f"{rounds_late} rounds late, exponent {exponent}: neither can be below 0")
    if exponent is None:
        return 1.0 if rounds_late == 0 else 0.0
    return max(float((1 + rounds_late) ** -exponent), sys.float_info.min)  # ever less, and never nothing


def finished(
    scores: Sequence[float], rounds: int, target: float | None, metric: Metric = METRICS["classify"]
) -> Literal["target", "rounds"] | None:
    """Says why a mission ends after rounds of these scores of its metric on the test data (SpaceDML, section
    IV, with accuracies); None if it goes on."""
    if target is not None and any(metric.reaches(score, target) for score in scores):
        return "target"
    return "rounds" if len(scores) >= rounds else None


class RoundState(Enum):
    OPEN = "open"
    QUORUM = "quorum"  # enough nodes answered
    DEADLINE = "deadline"  # time is up, and at least one node answered
    EXHAUSTED = "exhausted"  # nobody is left who could answer, but somebody did
    EMPTY = "empty"  # time is up or nobody is left, and nobody answered: ask again


class UpdateFate(Enum):
    """What became of an update; only a TAKEN or MERGED one goes into the average."""

    TAKEN = "taken"
    MERGED = "merged"  # its own round is over, and this one takes it with a smaller weight
    LATE = "late"  # the round was over: discarded
    AGAIN = "again"  # this node's update is in already
    UNASKED = "unasked"


@dataclass(slots=True)
class Round:
    """One round: `asked` nodes, of whom `quorum` must answer, until `deadline_s` on the caller's clock.

    It closes once: with the answer that makes the quorum, or when `judge` finds that the deadline has passed
    with an answer, or that every node which has not answered was lost. An update of an earlier round is
    discarded, for it would pull the average back to older weights. A round that `merges` takes it, with its
    `staleness_weight` and not towards the quorum, once a node, if its own round asked the node and this one
    did not."""

    number: int
    asked: frozenset[int]
    quorum: int
    deadline_s: float
    answered: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    merges: bool = False
    merged: set[int] = field(default_factory=set)
    verdict: RoundState = RoundState.OPEN

    def __post_init__(self) -> None:
        if not 1 <= self.quorum <= len(self.asked):
            raise ValueError(f"a quorum of {self.quorum} among {len(self.asked)} nodes cannot be met")

    def answer(
        self, node: int, now: float, *, of_round: int | None = None, was_asked: bool = True
    ) -> UpdateFate:
        """Records a valid update from `node` for `of_round` (default: this one), which `was_asked` for it."""
        if of_round is not None and of_round != self.number:
            free = node not in self.asked and node not in self.merged
            if self.merges and free and not self.is_over and was_asked:
                self.merged.add(node)
                return UpdateFate.MERGED
            return UpdateFate.LATE if was_asked else UpdateFate.UNASKED
        if node not in self.asked:
            return UpdateFate.UNASKED
        if node in self.answered:
            return UpdateFate.AGAIN
        if self.is_over:
            return UpdateFate.LATE
        self.answered.add(node)
        self.lost.discard(node)
        self.judge(now)
        return UpdateFate.TAKEN

    def lose(self, node: int, now: float) -> RoundState:
        """Records that `node` refused or cannot do the task. It may still answer while the round is open."""
        if node in self.asked and node not in self.answered:
            self.lost.add(node)
        return self.judge(now)

    @property
    def is_over(self) -> bool:
        """Whether it takes no answer any more. A round that nobody answered takes the first that comes."""
        return self.verdict not in (RoundState.OPEN, RoundState.EMPTY)

    def judge(self, now: float) -> RoundState:
        """Returns the state of the round at `now`; closes it when its time has come."""
        if not self.is_over:
            self.verdict = RoundState.OPEN
            if len(self.answered) >= self.quorum:
                self.verdict = RoundState.QUORUM
            elif now >= self.deadline_s:
                self.verdict = RoundState.DEADLINE if self.answered else RoundState.EMPTY
            elif self.answered | self.lost == self.asked:
                self.verdict = RoundState.EXHAUSTED if self.answered else RoundState.EMPTY
        return self.verdict


class AggregationRule(Protocol):
    """The outcome of one round, fed one update at a time."""

    def add(self, weights: Weights, samples: int, scale: float = 1.0) -> None:
        """Adds one node's weights, name -> float32 in the tensor's shape, trained on `samples` images that
        count `scale` each. Raises ValueError, with nothing changed, for what cannot be added."""

    def mean(self) -> dict[str, Floats]:
        """Returns the outcome so far, float32. Raises ValueError without an update."""


class PartialAverage:
    """The mean of updates weighted by samples: O(model) memory, however many answer."""

    def __init__(self, layout: Layout) -> None:
        # float64: the sum then does not depend on the order of arrival in any bit that float32 keeps, but for
        # ties.
        self._sums: dict[str, npt.NDArray[np.float64]] = {t.name: np.zeros(t.shape) for t in layout.tensors}
        self._weight = 0.0

    def add(self, weights: Weights, samples: int, scale: float = 1.0) -> None:
        """Raises ValueError for samples under 1, a scale not in (0, 1], missing or extra tensors, wrong
        shapes and values that are not finite."""
        if samples < 1 or not 0 < scale <= 1:
            raise ValueError(f"an update of {samples} samples, scaled by {scale}, weighs nothing")
        if weights.keys() != self._sums.keys():
            raise ValueError(f"an update has the tensors {sorted(weights)}, not {sorted(self._sums)}")
        for name, total in self._sums.items():
            if weights[name].shape != total.shape:
                raise ValueError(f"{name} has shape {weights[name].shape}, the layout says {total.shape}")
            if not np.isfinite(weights[name]).all():
                raise ValueError(f"{name} has values that are not finite")
        weight = samples * scale
        for name, total in self._sums.items():
            total += weight * weights[name].astype(np.float64)
        self._weight += weight

    def mean(self) -> dict[str, Floats]:
        if not self._weight:
            raise ValueError("no update has been added: there is no average")
        return {name: (total / self._weight).astype(np.float32) for name, total in self._sums.items()}


class SparseMean(PartialAverage):
    """The mean of updates that leave most groups of weights where they were: one that m of n boards moved is
    moved by the square root of n / m times its mean over all.

    With a fraction of a bit a weight boards that say nothing of a group hold back in a plain mean those that
    moved it. A mean over the movers alone is how parts of a network are averaged that not every client trains
    (Diao, Ding and Tarokh, "HeteroFL", ICLR 2021); with long moves it goes too far, and this one half way.
    LeNet-5 on EuroSAT at 0.05 bit, five of 20 boards in each of 15 rounds, is right about 49.4 and 47.2 %
    with the plain mean, about 52.3 and 48.6 % with this one (two seeds); on MNIST about 94.3 and 93.7 %, 94.9
    and 94.0 %, and 95.2 and 94.2 % with the movers alone. On digits, with all of five boards in eight rounds,
    about 97.8 %, 96.1 % and 92.8 %."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._layout = layout
        self._movers: dict[str, npt.NDArray[np.float64]] = {
            t.name: np.zeros(t.groups) for t in layout.grouped
        }

    def add(self, weights: Weights, samples: int, scale: float = 1.0) -> None:
        super().add(weights, samples, scale)
        for name, groups in in_groups(self._layout, weights).items():
            self._movers[name] += samples * scale * groups.any(axis=1)

    def mean(self) -> dict[str, Floats]:
        mean = super().mean()
        for name, groups in in_groups(self._layout, mean).items():
            movers = np.where(self._movers[name] > 0, self._movers[name], self._weight)
            groups *= np.sqrt(self._weight / movers).astype(np.float32)[:, None]
        return mean


class CoordinateMedian(PartialAverage):
    """The unweighted median of the updates at each coordinate: fewer than half of them move it no further
    than the others reach (Yin et al., "Byzantine-robust distributed learning: towards optimal statistical
    rates", ICML 2018). It holds all updates of a round in memory."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._added: list[Weights] = []

    def add(self, weights: Weights, samples: int, scale: float = 1.0) -> None:
        super().add(weights, samples, scale)
        self._added.append(weights)

    def mean(self) -> dict[str, Floats]:
        return {
            name: np.median([weights[name] for weights in self._added], axis=0).astype(np.float32)
            for name in super().mean()
        }


RULES: dict[str, Callable[[Layout], AggregationRule]] = {
    "mean": PartialAverage,
    "median": CoordinateMedian,
    "sparse-mean": SparseMean,
}
"""Every rule by the name that a mission gives it. docs/extending.md says how to add one."""


def check_rule(rule: str, method: str, *, sends_whole: bool) -> None:
    """Raises ValueError for a rule that is not in the table, and for one that cannot merge what boards send
    by this `method`."""
    if rule not in RULES:
        raise ValueError(f"rule: must be one of {', '.join(RULES)}")
    if sends_whole and RULES[rule] is SparseMean:
        raise ValueError(f"rule: {method} sends whole models, in which every board moves all")
