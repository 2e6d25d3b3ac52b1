"""A node's own losses tell whether its model was spoiled: no exchange makes it much worse than a guess."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median

RECENT, BEFORE = 8, 64  # losses
TIMES = 3.0  # of what it was before
GUESSES = 2.0  # of the loss of a node that guesses: neighbours whose classes are unlike cost less


class LossWatch:
    """The losses of batches, in nats, of a model for so many `classes`."""

    def __init__(self, classes: int) -> None:
        self._guess = math.log(max(classes, 2))
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._before: deque[float] = deque(maxlen=BEFORE)

    def add(self, loss: float) -> None:
        """One more batch."""
        if len(self._recent) == RECENT:
            self._before.append(self._recent[0])
        self._recent.append(loss)

    @property
    def is_sure(self) -> bool:
        """Whether enough batches were seen since it was cleared."""
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
