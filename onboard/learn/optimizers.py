"""Moves weights by their gradients: Adam, AdamW, and stochastic gradient descent with momentum.

An optimizer works in place on one vector of weights (P,) float32, a block of it through all operations at a
time, so that a step reads each number from memory once and needs no second vector. Running statistics get no
gradient and stay. Weight decay is of parameters with two or more axes, as gains and biases need none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from onboard.codec.layout import Floats, Layout, Weights
from onboard.learn.training import BoardTraining

BLOCK = 65_536  # weights; of five vectors they are 1.3 MB: larger blocks are no faster on a core with 1 MB
BETA1 = 0.9  # Adam's paper, section 2, as the next two
BETA2 = 0.999
EPSILON = 1e-8


class Optimizer(Protocol):
    """What a training steps with. `vectors` (P,) by name and `steps` are its whole state; who restores it
    writes into the vectors."""

    vectors: dict[str, Floats]
    steps: int

    def step(self, weights: Floats, gradients: Weights, rate: float) -> None:
        """Moves `weights` (P,) in place, by gradients of the tensors that have one, which it overwrites."""


class Adam:
    """Adam (Kingma and Ba, ICLR 2015, algorithm 1). With a `peak`, the largest second moment, it is AMSGrad
    (Reddi et al., ICLR 2018, algorithm 2), as ALQ has it (section 3.2). Weight decay is a part of the
    gradient, and `decoupled` moves weights by itself (Loshchilov and Hutter, "Decoupled weight decay
    regularization", ICLR 2019, algorithm 2).

    The vectors are decayed sums, the paper's moments over 1 - beta: a step then takes two passes fewer."""

    def __init__(
        self, layout: Layout, *, weight_decay: float = 0.0, decoupled: bool = False, amsgrad: bool = False
    ) -> None:
        names = ("gradients", "squares") + (("peak_squares",) if amsgrad else ())
        self.vectors: dict[str, Floats] = {name: np.zeros(layout.parameters, np.float32) for name in names}
        self.steps = 0
        self._layout, self._decay, self._decoupled = layout, weight_decay, decoupled

    def step(self, weights: Floats, gradients: Weights, rate: float) -> None:
        self.steps += 1
        # Both bias corrections folded into the step length: the end of the paper's section 2.
        correction = math.sqrt(self._total(BETA2))
        length = rate * correction / self._total(BETA1)
        sums, squares = self.vectors["gradients"], self.vectors["squares"]
        peak = self.vectors.get("peak_squares")
        # numpy converts a number anew at each use, which a third of the time would go into.
        beta1, beta2, least, by, decay, shrink = (
            np.array(value, np.float32)
            for value in (BETA1, BETA2, EPSILON * correction, length, self._decay, 1 - rate * self._decay)
        )
        spare = np.empty(BLOCK, np.float32)
        for at, gradient, decays in _blocks(self._layout, gradients):
            m, v, moved = sums[at], squares[at], weights[at]
            if decays and self._decay:
                if self._decoupled:
                    moved *= shrink
                else:
                    gradient += np.multiply(moved, decay, out=spare[: len(gradient)])
            m *= beta1
            m += gradient
            np.square(gradient, out=gradient)
            v *= beta2
            v += gradient
            if peak is not None:
                v = np.maximum(peak[at], v, out=peak[at])
            np.sqrt(v, out=gradient)
            gradient += least
            np.divide(m, gradient, out=gradient)
            gradient *= by
            moved -= gradient

    def mean(self, out: Floats | None = None) -> Floats:
        """Returns g (P,): the first moment, bias-corrected."""
        mean: Floats = np.multiply(self.vectors["gradients"], np.float32(1 / self._total(BETA1)), out=out)
        return mean

    def curvature(self, out: Floats | None = None) -> Floats:
        """Returns h (P,): ALQ's curvature (section 3.2), the corrected root of the second moment or peak."""
        h: Floats = np.sqrt(self.vectors.get("peak_squares", self.vectors["squares"]), out=out)
        h *= np.float32(self._total(BETA2) ** -0.5)
        return h

    def _total(self, beta: float) -> float:
        """What the decayed weights of all steps come to; 1 before the first, whose sum is 0."""
        return (1 - beta**self.steps) / (1 - beta) if self.steps else 1.0


class Sgd:
    """Stochastic gradient descent: v <- momentum * v + gradient + decay * x, x <- x - rate * v, as RD-PSGD
    (its section 3.1) and Sutskever et al. (ICML 2013) without Nesterov's look ahead."""

    def __init__(self, layout: Layout, *, momentum: float, weight_decay: float = 0.0) -> None:
        self.vectors: dict[str, Floats] = {"velocity": np.zeros(layout.parameters, np.float32)}
        self.steps = 0
        self._layout, self._momentum, self._decay = layout, momentum, weight_decay

    def step(self, weights: Floats, gradients: Weights, rate: float) -> None:
        self.steps += 1
        spare = np.empty(BLOCK, np.float32)
        for at, gradient, decays in _blocks(self._layout, gradients):
            v, moved, scratch = self.vectors["velocity"][at], weights[at], spare[: len(gradient)]
            if decays and self._decay:
                gradient += np.multiply(moved, self._decay, out=scratch)
            v *= self._momentum
            v += gradient
            moved -= np.multiply(v, rate, out=scratch)


def _blocks(layout: Layout, gradients: Weights) -> Iterator[tuple[slice, Floats, bool]]:
    """Yields a block of every vector at a time, its gradient, and whether its weights decay."""
    for name, shape, start, end in layout.spans:
        if name not in gradients:
            continue
        flat = gradients[name].reshape(-1)
        for first in range(start, end, BLOCK):
            last = min(first + BLOCK, end)
            yield slice(first, last), flat[first - start : last - start], len(shape) > 1


OPTIMIZERS: dict[str, Callable[[Layout, BoardTraining], Optimizer]] = {
    "adam": lambda layout, knobs: Adam(
        layout, weight_decay=knobs.weight_decay, amsgrad=knobs.rule.uses_moments
    ),
    "adamw": lambda layout, knobs: Adam(
        layout, weight_decay=knobs.weight_decay, amsgrad=knobs.rule.uses_moments, decoupled=True
    ),
    "sgd": lambda layout, knobs: Sgd(layout, momentum=knobs.momentum, weight_decay=knobs.weight_decay),
}
"""Every optimizer by the name that a mission gives it, which `learn.training.OPTIMIZER_NAMES` lists."""
