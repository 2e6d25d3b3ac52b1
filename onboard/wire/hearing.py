"""The receive statistics of one end: the peer's epoch, its bytes, and the share of its frames that is
lost."""

from __future__ import annotations

import math

from onboard.wire.framing.frame import Frame, Type
from onboard.wire.transfer.length import DeliveryStats

_FATES = 8  # the evidence that it takes, as in LossEstimator
_SHORT = 8  # short frames from which on they alone say what short frames meet
_BUSY_S = 4.0  # the pause after the last DATA, after which the peer's bulk is over


class ReceiveStats:
    """Counts every authentic frame. Losses show as gaps in the seqs of the peer's present epoch."""

    def __init__(self) -> None:
        self.epoch = 0  # the peer's, once it was heard
        self.at = -math.inf  # the last frame
        self.bytes = 0  # on the wire
        self._rekeyed = 0
        self._first_seq = self._highest_seq = 0
        self._frames_in_epoch = self._bytes_in_epoch = self._gaps = 0
        self._bulk_from: float | None = None
        self._bulk_at = -math.inf
        self._short_bytes = self._short_lost = self._short_frames = 0  # while no object was coming

    def heard(self, frame: Frame, wire_bytes: int, now: float, *, object_comes: bool = False) -> bool:
        """Count a frame; returns whether its epoch is newer than those before. object_comes: the peer may
        have sent fragments, so that nobody knows how long the lost frames were."""
        restarted = frame.epoch > self.epoch
        if not object_comes and frame.type not in (Type.DATA, Type.REPAIR):
            self._short_frames += 1
            self._short_bytes += wire_bytes
            missed = frame.seq - self._highest_seq - 1  # one less where a frame comes late
            self._short_lost = max(0, self._short_lost + (0 if restarted else max(missed, -1)))
        if restarted:
            self.epoch, self._first_seq, self._highest_seq = frame.epoch, frame.seq, 0
            self._frames_in_epoch = self._bytes_in_epoch = self._gaps = 0
        self.bytes += wire_bytes
        self._bytes_in_epoch += wire_bytes
        self._gaps += frame.seq > self._highest_seq + 1 and not restarted
        self._highest_seq = max(self._highest_seq, frame.seq)
        self._frames_in_epoch += 1
        self.at = now
        return restarted

    def rekeyed(self) -> None:
        """The ends agreed on a new salt, under which the peer's epochs count anew."""
        self.epoch = 0
        self._rekeyed += 1

    def order(self, frame: Frame) -> tuple[int, int]:
        """A key that orders the peer's frames by when they were sent, across its restarts and new salts."""
        return self._rekeyed << 16 | frame.epoch, frame.seq

    def bulk(self, now: float) -> None:
        """The frame that was just counted carried a piece of an object."""
        if self._bulk_from is None:
            self._bulk_from = now
        self._bulk_at = now

    def is_busy(self, now: float) -> bool:
        """Whether the peer is sending pieces of objects."""
        return now - self._bulk_at < _BUSY_S

    @property
    def bulk_s(self) -> float:
        """The time from the first piece of an object to the last one."""
        return 0.0 if self._bulk_from is None else self._bulk_at - self._bulk_from

    @property
    def fates(self) -> dict[int, DeliveryStats]:
        """What became of the peer's frames, by length. Nobody knows how long a lost frame was, so all count
        as having the mean length of those that came. Frames that came while no object did are preferred, as
        long frames are lost first; until there are enough of them, all frames of the epoch count."""
        if self._short_frames >= _SHORT:
            mean_bytes = self._short_bytes // self._short_frames
            return {mean_bytes: DeliveryStats(self._short_lost, self._short_frames)}
        if not self._frames_in_epoch:
            return {}
        lost = self._highest_seq - self._first_seq + 1 - self._frames_in_epoch
        mean_bytes = self._bytes_in_epoch // self._frames_in_epoch
        return {mean_bytes: DeliveryStats(max(0, lost), self._frames_in_epoch)}

    @property
    def burst(self) -> float:
        """How many times longer losses last than if they were independent of one another; 1 or more."""
        lost = self._highest_seq - self._first_seq + 1 - self._frames_in_epoch
        return max(1.0, (lost + _FATES) / (self._gaps + _FATES) * (1 - self.loss))

    @property
    def loss(self) -> float:
        """The share of the peer's frames that were lost since its epoch was first heard."""
        if not self._frames_in_epoch:
            return 0.0
        return max(0.0, 1 - self._frames_in_epoch / (self._highest_seq - self._first_seq + 1))
