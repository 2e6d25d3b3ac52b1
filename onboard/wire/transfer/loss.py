"""What the REPORTs so far say of a link's losses, no sooner than there is evidence for it, and what follows.

Losses are taken to be those of a Gilbert channel (E. N. Gilbert, Capacity of a Burst-Noise Channel, BSTJ 39,
1960): a share of frames lost, in bursts of some mean length.
"""

from __future__ import annotations

import math

from onboard.wire.transfer.transfer import ReportOutcome

MOST = 0.7  # a link that loses more than this is as good as down, and no margin makes up for it
_FATES = 8  # what is known of so many fragments weighs as much as taking losses to be few and single
_REMEMBERED = 512  # fates; then older ones count half


class LossEstimator:
    """The losses of one direction, from the fates of its fragments."""

    def __init__(self) -> None:
        self._lost = self._bursts = self._settled = 0.0

    def weigh(self, verdict: ReportOutcome) -> None:
        """Take in what one REPORT settled."""
        self._lost += verdict.lost
        self._bursts += verdict.bursts
        self._settled += verdict.settled
        if self._settled > _REMEMBERED:
            self._lost, self._bursts, self._settled = self._lost / 2, self._bursts / 2, self._settled / 2

    def forget(self) -> None:
        """What is sent from now on is cut otherwise, and meets other losses."""
        self._lost = self._bursts = self._settled = 0.0

    @property
    def measured(self) -> float:
        """Share of fragments that the latest few hundred fates showed as lost."""
        return self._lost / self._settled if self._settled else 0.0

    @property
    def expected(self) -> float:
        """`measured` as far as it is to be acted on, 0..MOST: one frame lost of one says little."""
        return min(self._lost / (self._settled + _FATES), MOST)

    @property
    def burst(self) -> float:
        """How many times longer losses last than if they were independent of one another; 1 or more."""
        mean_frames = (self._lost + _FATES) / (self._bursts + _FATES)
        return max(1.0, mean_frames * (1 - self.expected))

    @property
    def questions(self) -> int:
        """So many that all of them, or their answers, are lost in 1 of 100 cases; 2 to 49."""
        unanswered = 1 - (1 - max(self.expected, 0.01)) ** 2
        return max(2, math.ceil(math.log(0.01) / math.log(unanswered)))
