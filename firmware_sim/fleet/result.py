"""What a fleet tells: where a round stands, and in numbers what one was that is over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """A round that is over.

    Bits are a weight of the model: `bits_*` with every byte of the object counted (up: the mean over the
    updates taken), `width_*` by the papers' count (`Model.mean_width`). Bytes, seconds on the air and
    joules are this round's, of all devices; `clock_s` is virtual time so far.
    """

    round: int
    accuracy: float
    loss: float
    bits_up: float
    bits_down: float
    width_up: float
    width_down: float
    bytes_up: int
    bytes_down: int
    airtime_up_s: float
    airtime_down_s: float
    energy_j: float
    clock_s: float
    asked: int
    answered: int
    gone: int
    merged: int
    late: int
    refused: int

    @property
    def bytes_both(self) -> int:
        """On the wire, both directions."""
        return self.bytes_up + self.bytes_down
