"""Adam on one vector of weights; the second moment tells how the loss bends along each weight.

Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1, in place: at LeNet-5's
431,080 weights a step is memory traffic, and every new array would cost as much as a pass. With a `peak` it
is AMSGrad (Reddi et al., "On the convergence of Adam and beyond", ICLR 2018, algorithm 2), whose second
moment never falls, as ALQ has it (section 3.2 there)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

BETA1 = 0.9  # the paper's own defaults, section 2
BETA2 = 0.999
EPSILON = 1e-8


class Adam:
    """First and second moment (P,) float32 after `steps` steps; AMSGrad's `peak` is the largest second
    moment."""

    def __init__(self, size: int, *, amsgrad: bool = False) -> None:
        self.first, self.second, peak = np.zeros((3, size), np.float32)
        self.peak: Vector | None = peak if amsgrad else None
        self.steps = 0

    def step(self, weights: Vector, gradient: Vector, learning_rate: float) -> None:
        """Moves `weights` (P,) in place and uses `gradient` (P,) as scratch space."""
        self.steps += 1
        self.first *= BETA1
        self.first += (1 - BETA1) * gradient
        np.square(gradient, out=gradient)
        gradient *= 1 - BETA2
        self.second *= BETA2
        self.second += gradient
        if self.peak is not None:
            np.maximum(self.peak, self.second, out=self.peak)
        # Both bias corrections folded into the step length: the end of the paper's section 2.
        correction = float(np.sqrt(1 - BETA2**self.steps))
        length = learning_rate * correction / (1 - BETA1**self.steps)
        np.sqrt(self.second if self.peak is None else self.peak, out=gradient)
        gradient += EPSILON * correction
        np.divide(self.first, gradient, out=gradient)
        gradient *= length
        weights -= gradient

    def mean(self, out: Vector | None = None) -> Vector:
        """Returns g (P,): the first moment, bias-corrected."""
        scale = 1 - BETA1**self.steps if self.steps else 1.0
        mean: Vector = np.multiply(self.first, np.float32(1 / scale), out=out)
        return mean

    def curvature(self, out: Vector | None = None) -> Vector:
        """Returns h (P,): ALQ's curvature (section 3.2), the corrected root of the second moment or peak."""
        scale = 1 - BETA2**self.steps if self.steps else 1.0
        h: Vector = np.sqrt(self.second if self.peak is None else self.peak, out=out)
        h *= np.float32(scale**-0.5)
        return h
