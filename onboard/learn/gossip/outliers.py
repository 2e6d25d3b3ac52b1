"""Bounds of what an exchange can do to a model: what it takes is clipped, and the absurd is refused.

An exchange is as large as its values differ: the root mean square of received - sent. Models of one gossip
are trained alike and mixed again and again. A difference of many times what this node's last exchanges had
was made by somebody who wants to move the model, or by one whose own was spoiled. It is scaled down to a
limit (ClippedGossip: He, Karimireddy, Jaggi, "Byzantine-robust decentralized learning via ClippedGossip",
2022), here a multiple of what is usual:

- With a neighbour that was not mixed with lately the limit is FAR times the model's own root mean square, as
  that neighbour may have trained alone for long. It is less where RARE times what the other neighbours in the
  middle differed by last is less, and never below TWICE the model's own: independent models of one size
  differ by the root of two of it.
- With one that is in step it is OFTEN times the largest of the last differences, of the neighbours in the
  middle, and never below SOME of the model's own root mean square: a node may have been moved by one that was
  away for long. A neighbour is in step when it has had the time to come near: NEAR / p exchanges without a
  gap.

Values may be no larger than others' and still have nothing of the model: zeros, noise, a sign that is turned.
So a node also looks at the coefficient of a regression of received on sent: 1 for the same model, 0 for
zeros. All models of a gossip begin as one. Less than ALIKE comes from a node that was away, for some
exchanges until all its coordinates were mixed, and otherwise from nobody who follows the rules: from then on
nothing is taken.

Nodes that follow the rules reach neither limit, so that the mean of their models stays. Where one does not,
the other takes less than it gives, and the sum changes by no more than the limit. Whatever comes through, a
node's own losses tell whether its model was spoiled (`LossWatch`)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean, median, median_low

import numpy as np

from onboard.codec.layout import Floats

ABSURD = 100.0  # times the model's own: no values of such a size are taken at all
FAR, TWICE, RARE = 10.0, 2.0, 20.0
OFTEN, SOME = 3.0, 1.0
LEAST = 0.01  # of a model's root mean square: one that begins with zeros learns from its neighbours too
ALIKE, SOON = 0.25, 3.0  # SOON / p: in so many exchanges a coordinate was in three masks
NEAR = 10.0  # over p: after so many exchanges hardly a coordinate was in no mask, by e^-10
KNOWN = 8  # exchanges that tell what is usual; a neighbour is in step if it had one in as many turns
_SPAN = 1 << 16  # values taken at a time
RECENT, BEFORE = 8, 64  # losses
TIMES = 3.0  # of what the loss was before
GUESSES = 2.0  # of the loss of a node that guesses: neighbours whose classes are unlike cost less


def size_of(values: Floats) -> float:
    """Returns the root mean square of float32 (n,): inf beyond float32, 0 for none."""
    return math.sqrt(_product(values, values) / len(values)) if len(values) else 0.0


def difference(sent: Floats, received: Floats) -> float:
    """Returns the root mean square of received - sent, float32 (n,) each."""
    with np.errstate(over="ignore", invalid="ignore"):
        return size_of(sent - received)


def likeness(sent: Floats, received: Floats) -> float:
    """Returns how much of `sent` is in `received`: their product over the square of `sent`."""
    own = _product(sent, sent)
    return _product(sent, received) / own if own else 1.0


def _product(a: Floats, b: Floats) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        parts = (slice(at, at + _SPAN) for at in range(0, len(a), _SPAN))
        return sum(float(np.dot(a[part], b[part])) for part in parts)


@dataclass(slots=True)
class _Known:
    """What this life knows of one neighbour."""

    usual: deque[float] = field(default_factory=lambda: deque(maxlen=KNOWN))  # last differences, not clipped
    turn: int = 0  # of the last exchange
    in_step: int = 0  # exchanges without a gap
    last: float = 0.0  # difference
    pull: float = 0.0  # the largest since the last checkpoint, as a multiple of the others' at that time
    unlike: int = 0  # exchanges that had little of this node's model, less those that had

    @property
    def tells(self) -> bool:
        return len(self.usual) == KNOWN


class Clipping:
    """What is usual at one node, with each of `peers`, where the `share` p of the coordinates travels."""

    def __init__(self, peers: Iterable[int], share: float) -> None:
        self._near, self._soon = math.ceil(NEAR / share), math.ceil(SOON / share)
        self.scale = math.inf  # the model's root mean square; not looked at yet
        self._known = {peer: _Known() for peer in peers}
        self._turn = 0

    def look_at(self, vector: Floats, *, mixes: bool = False) -> None:
        """Measures the model as it is now; counts a turn if this node mixes."""
        self.scale = max(size_of(vector), LEAST)
        self._turn += mixes

    def is_absurd(self, received: Floats) -> bool:
        """Whether no model of this gossip can have values of that size."""
        return not size_of(received) <= ABSURD * self.scale

    def share(self, peer: int, sent: Floats, received: Floats) -> float:
        """Returns the share of the difference to take: 1, less if clipped, 0 without this model in it."""
        known, moved = self._known[peer], difference(sent, received)
        known.in_step = known.in_step + 1 if self._turn - known.turn <= KNOWN else 0
        others = [each.last for other, each in self._known.items() if other != peer and each.last]
        usual = max(median_low(others) if others else 0.0, SOME * self.scale / OFTEN)
        limit = self._limit(peer, known)
        known.turn, known.last, known.pull = self._turn, moved, max(known.pull, moved / usual)
        known.unlike = max(0, known.unlike + (1 if likeness(sent, received) < ALIKE else -1))
        if known.unlike > self._soon:
            return 0.0
        if moved <= limit:
            known.usual.append(moved)
            return 1.0
        return limit / moved

    def checkpointed(self) -> None:
        """The model is durable: who pulled at it before does not matter any more."""
        for known in self._known.values():
            known.pull = 0.0

    def pullers(self) -> list[int]:
        """Names neighbours that pulled far more than the others since the last checkpoint; from then on the
        others pull as far, to bring the model back."""
        most = max(known.pull for known in self._known.values())
        return [peer for peer, known in self._known.items() if known.pull > max(OFTEN, most / 2)]

    def _limit(self, peer: int, known: _Known) -> float:
        others = [each.usual[-1] for other, each in self._known.items() if other != peer and each.usual]
        far = FAR * self.scale
        if others:
            far = min(far, max(TWICE * self.scale, RARE * median_low(others)))
        if not others or not known.tells or known.in_step < self._near:
            return far
        usual = median_low([max(each.usual) for each in self._known.values() if each.tells])
        return min(far, max(OFTEN * usual, SOME * self.scale))


class LossWatch:
    """The losses of batches of a model, where a model that only guesses has the loss `guess`."""

    def __init__(self, guess: float) -> None:
        self._guess = guess
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._before: deque[float] = deque(maxlen=BEFORE)

    def add(self, loss: float) -> None:
        if self.is_sure:
            self._before.append(self._recent[0])
        self._recent.append(loss)

    @property
    def is_sure(self) -> bool:
        """Whether enough batches were seen since `clear`."""
        return len(self._recent) == RECENT

    @property
    def has_jumped(self) -> bool:
        """Whether the last batches are far worse than those before, and than guesses."""
        if not self.is_sure:
            return False
        usual = median(self._before) if self._before else 0.0
        return fmean(self._recent) > max(GUESSES * self._guess, TIMES * usual)

    def clear(self) -> None:
        """The model is another one: only what was usual before stays known."""
        self._recent.clear()
