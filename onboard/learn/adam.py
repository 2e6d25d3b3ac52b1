"""One vector of weights takes Adam's steps; the second moment tells how the loss bends along each weight.

Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1, on one flat float32
vector, in place: at LeNet-5's 431,080 weights a step is memory traffic, and every array made anew would cost
as much as a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

BETA1 = 0.9  # the paper's own defaults, section 2
BETA2 = 0.999
EPSILON = 1e-8


@dataclass(slots=True)
class Adam:
    """First and second moment (P,) float32 after `steps` steps."""

    first: Vector
    second: Vector
    steps: int = 0

    @classmethod
    def fresh(cls, size: int) -> Adam:
        return cls(np.zeros(size, np.float32), np.zeros(size, np.float32))

    def step(self, weights: Vector, gradient: Vector, learning_rate: float) -> None:
        """Move `weights` (P,) in place. `gradient` (P,) is used up as scratch space."""
        self.steps += 1
        self.first *= BETA1
        self.first += (1 - BETA1) * gradient
        np.square(gradient, out=gradient)
        gradient *= 1 - BETA2
        self.second *= BETA2
        self.second += gradient
        # Both bias corrections folded into the step length: the end of the paper's section 2.
        correction = float(np.sqrt(1 - BETA2**self.steps))
        length = learning_rate * correction / (1 - BETA1**self.steps)
        np.sqrt(self.second, out=gradient)
        gradient += EPSILON * correction
        np.divide(self.first, gradient, out=gradient)
        gradient *= length
        weights -= gradient

    def curvature(self) -> Vector:
        """h (P,): the square root of the second moment, bias-corrected; ALQ's diagonal curvature (section
        3.2).
        """
        scale = 1 - BETA2**self.steps if self.steps else 1.0
        return np.asarray(np.sqrt(self.second / np.float32(scale)), np.float32)
