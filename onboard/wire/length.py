"""The fragment length that carries most, from what was lost of frames of which lengths.

A frame is lost with some probability whatever its length, and by any wrong bit: one of n bytes survives with
probability (1 - p) (1 - b)^(8 n). Long fragments waste less on headers, short ones less on wrong bits. Which
of the two losses a link has shows only in frames of different lengths, so what is known of the peer's frames,
mostly short ones, counts too: at first it is all that tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_SHORTEST_BYTES = 25  # below that more than half of every frame is not payload
_WORTH = 1.05  # so much more have shorter fragments to promise: REPORTs grow longer, and fates are chance
_REMEMBERED = 512  # fates of one length; then older ones count half
_PRIOR = 16.0  # fates that the link's profile is worth, at its longest frame and at its shortest
_BIT_ERRORS = (0.0, *(10 ** (nth / 8 - 6.5) for nth in range(29)))  # 3e-7 to 1e-3, in steps of a third
_FRAME_LOSSES = (0.0, *(0.005 * 1.35**nth for nth in range(17)))  # 0.5 to 61 %, likewise


@dataclass(frozen=True, slots=True)
class Fates:
    """Of frames of one length: how many were lost and how many were not."""

    lost: float
    kept: float

    def __add__(self, other: Fates) -> Fates:
        return Fates(self.lost + other.lost, self.kept + other.kept)


class Lengths:
    """frame_loss, bit_error_rate: of the link's profile, to begin with. framing_bytes, longest_bytes: of a
    frame on the wire without payload, and with the longest."""

    def __init__(
        self, frame_loss: float, bit_error_rate: float, framing_bytes: int, longest_bytes: int
    ) -> None:
        self._framing_bytes = framing_bytes
        self._fates: dict[int, Fates] = {}  # by bytes on the wire
        self._prior = {}
        for wire_bytes in (framing_bytes, longest_bytes):
            survives = _survives(wire_bytes, frame_loss, bit_error_rate)
            self._prior[wire_bytes] = Fates(_PRIOR * (1 - survives), _PRIOR * survives)

    def weigh(self, wire_bytes: int, fates: Fates) -> None:
        """Frames of so many bytes on the wire met these fates."""
        both = self._fates.get(wire_bytes, Fates(0, 0)) + fates
        if both.lost + both.kept > _REMEMBERED:
            both = Fates(both.lost / 2, both.kept / 2)
        self._fates[wire_bytes] = both

    def best(self, payload_bytes: int, least_bytes: int, heard: Mapping[int, Fates]) -> int:
        """Bytes of payload a frame: `payload_bytes`, or a half, a quarter, ... of it, at least `least_bytes`.

        heard: what became of the peer's frames, by their length. Lengths that halve fit into each other, so
        that what is held of an object in one is held in a shorter one too.
        """
        fates = dict(self._prior)
        for known in (self._fates, heard):
            for wire_bytes, each in known.items():
                fates[wire_bytes] = fates.get(wire_bytes, Fates(0, 0)) + each
        if not any(each.lost for each in self._fates.values()) and not self._prior_loses:
            return payload_bytes
        loss, errors = max(
            ((loss, errors) for loss in _FRAME_LOSSES for errors in _BIT_ERRORS),
            key=lambda guess: _likelihood(fates, *guess),
        )

        def goodput(length: int) -> float:
            wire_bytes = length + self._framing_bytes
            return _survives(wire_bytes, loss, errors) * length / wire_bytes

        best = length = payload_bytes
        while (length := length // 2) >= max(least_bytes, _SHORTEST_BYTES):
            if goodput(length) > _WORTH * goodput(best):
                best = length
        return best

    @property
    def _prior_loses(self) -> bool:
        return any(each.lost for each in self._prior.values())


def _survives(wire_bytes: int, frame_loss: float, bit_error_rate: float) -> float:
    return (1 - frame_loss) * math.exp(8 * wire_bytes * math.log1p(-bit_error_rate))


def _likelihood(fates: Mapping[int, Fates], frame_loss: float, bit_error_rate: float) -> float:
    """The logarithm of the probability of these fates on such a link."""
    total = 0.0
    for wire_bytes, each in fates.items():
        survives = min(max(_survives(wire_bytes, frame_loss, bit_error_rate), 1e-9), 1 - 1e-9)
        total += each.kept * math.log(survives) + each.lost * math.log1p(-survives)
    return total
