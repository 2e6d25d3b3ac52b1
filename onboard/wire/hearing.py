"""What one end has heard of its peer: since when, in which epoch, how fast, and how much it missed."""

from __future__ import annotations

import math

from onboard.wire.frame import Frame

_BUSY_S = 4.0  # without DATA for so long the peer's bulk is over


class Hearing:
    """Told of every authentic frame. Losses show as gaps in the seqs of the peer's present epoch."""

    def __init__(self) -> None:
        self.epoch = 0  # the peer's, once it was heard
        self.at = -math.inf  # the last frame
        self.bytes = 0  # on the wire
        self._first_seq = self._highest_seq = 0
        self._frames_in_epoch = 0
        self._bulk_from: float | None = None
        self._bulk_at = -math.inf

    def heard(self, frame: Frame, now: float) -> bool:
        """Takes in a frame; whether it is of a newer epoch than those before."""
        restarted = frame.epoch > self.epoch
        if restarted:
            self.epoch, self._first_seq, self._highest_seq, self._frames_in_epoch = (
                frame.epoch, frame.seq, 0, 0,
            )  # fmt: skip
        self._highest_seq = max(self._highest_seq, frame.seq)
        self._frames_in_epoch += 1
        self.at = now
        return restarted

    def bulk(self, now: float) -> None:
        """The frame was of an object."""
        if self._bulk_from is None:
            self._bulk_from = now
        self._bulk_at = now

    def is_busy(self, now: float) -> bool:
        """Whether the peer sends bulk."""
        return now - self._bulk_at < _BUSY_S

    @property
    def bulk_s(self) -> float:
        """From the first frame of an object to the last."""
        return 0.0 if self._bulk_from is None else self._bulk_at - self._bulk_from

    @property
    def loss(self) -> float:
        """Share of the peer's frames that were not heard, since its epoch was first heard."""
        if not self._frames_in_epoch:
            return 0.0
        return max(0.0, 1 - self._frames_in_epoch / (self._highest_seq - self._first_seq + 1))
