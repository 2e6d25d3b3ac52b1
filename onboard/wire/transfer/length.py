"""The fragment length that carries most, from what was lost of frames of which lengths.

A frame is lost with some probability whatever its length, and by any wrong bit: one of n bytes survives with
probability (1 - p) (1 - b)^(8 n). Long fragments waste less on headers, short ones less on wrong bits. Which
of the two losses a link has shows only in frames of different lengths, so what is known of the peer's frames,
mostly short ones, counts too: at first it is all that tells them apart.

A path may also drop all that is longer than its MTU, which no such law describes: a length of which nothing
ever passed is not tried again for 10 s, then for 20, at last for 600 (RFC 8899, section 5.1.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

SHORTEST_BYTES = 25  # below that more than half of every frame is not payload
_WORTH = 1.05  # so much more have shorter fragments to promise: REPORTs grow longer, and fates are chance
_REMEMBERED = 512  # fates of one length; then older ones count half
_REFUSED_S, _REFUSED_AT_MOST_S = 10.0, 600.0
_WORTH_SHORTER = 1.2  # in the middle of an object, where another length costs an OFFER and a round trip
_WORTH_LONGER = 1.08
_SURE = 8.0  # the logarithm of a likelihood ratio that is believed
_SURE_BARREN = 3.5  # and where nothing passed at all: less is at stake there
_TELLING, _TELLING_ALONE = 16, 3  # fates, and where all of them are losses
_DOUBT = 4.0  # so much less is the profile worth with every answer that tells of losses alone
_PROFILE_WORTH = 40.0  # likewise: so much at most speaks for the profile
_PROFILE_UNCONFIRMED = 2.5  # and where no frame of half its length or more is known to have passed
_PRIOR = 16.0  # fates that the link's profile is worth, at its longest frame and at its shortest
_BIT_ERRORS = (0.0, *(10 ** (nth / 8 - 6.5) for nth in range(29)))  # 3e-7 to 1e-3, in steps of a third
_FRAME_LOSSES = (0.0, *(0.005 * 1.35**nth for nth in range(17)))  # 0.5 to 61 %, likewise
_GUESSES = tuple((loss, errors) for errors in _BIT_ERRORS for loss in _FRAME_LOSSES)


@dataclass(frozen=True, slots=True)
class DeliveryStats:
    """Of frames of one length: how many were lost and how many were not."""

    lost: float
    kept: float

    def __add__(self, other: DeliveryStats) -> DeliveryStats:
        return DeliveryStats(self.lost + other.lost, self.kept + other.kept)


class FragmentSizer:
    """frame_loss, bit_error_rate: of the link's profile, to begin with. framing_bytes, longest_bytes: of a
    frame on the wire without payload, and with the longest."""

    def __init__(
        self, frame_loss: float, bit_error_rate: float, framing_bytes: int, longest_bytes: int
    ) -> None:
        self._framing_bytes = framing_bytes
        self._fates: dict[int, DeliveryStats] = {}  # by bytes on the wire
        self._refused_bytes: float = math.inf  # frames of so many are not sent before
        self._refused_least_bytes: float = math.inf
        self._refused_until = -math.inf
        self._refused_s = _REFUSED_S
        self._prior = {}
        for wire_bytes in (framing_bytes, longest_bytes):
            survives = _survives(wire_bytes, frame_loss, bit_error_rate)
            self._prior[wire_bytes] = DeliveryStats(_PRIOR * (1 - survives), _PRIOR * survives)
        self._profile = _profile(tuple(self._prior.items()))

    def weigh(self, wire_bytes: int, fates: DeliveryStats) -> None:
        """Frames of so many bytes on the wire met these fates."""
        both = self._fates.get(wire_bytes, DeliveryStats(0, 0)) + fates
        if both.lost + both.kept > _REMEMBERED:
            both = DeliveryStats(both.lost / 2, both.kept / 2)
        self._fates[wire_bytes] = both

    @property
    def is_untried(self) -> bool:
        """Whether of no frame is known what became of it."""
        return not self._fates

    def is_proven(self, wire_bytes: int) -> bool:
        """Whether a frame of so many bytes, or a longer one, ever passed."""
        return any(each.kept for length, each in self._fates.items() if length >= wire_bytes)

    def known(self, payload_bytes: int, least_bytes: int) -> int:
        """The longest of `payload_bytes`, half of it, ... of which frames passed; itself if none did."""
        length = payload_bytes
        while length >= max(least_bytes, SHORTEST_BYTES):
            if self._fates.get(length + self._framing_bytes, DeliveryStats(0, 0)).kept >= _TELLING_ALONE:
                return length
            length //= 2
        return payload_bytes

    def refuses(self, now: float) -> bool:
        """Whether some length is not sent for some time."""
        return now < self._refused_until

    def refuse(self, wire_bytes: int, now: float) -> None:
        """Nothing passes in frames of so many bytes: they are not sent for some time, ever longer."""
        if self._refused_until > -math.inf and wire_bytes >= self._refused_least_bytes:
            self._refused_s = min(2 * self._refused_s, _REFUSED_AT_MOST_S)
        self._refused_bytes, self._refused_until = wire_bytes, now + self._refused_s
        self._refused_least_bytes = min(wire_bytes, self._refused_least_bytes)
        self._fates[wire_bytes] = DeliveryStats(self._fates.get(wire_bytes, DeliveryStats(0, 0)).lost, 0)

    def best(
        self,
        payload_bytes: int,
        least_bytes: int,
        heard: Mapping[int, DeliveryStats],
        now: float = 0.0,
        *,
        doubt: float = 0.0,
        now_bytes: int | None = None,
        burst: float = 1.0,
    ) -> int:
        """Bytes of payload a frame: `payload_bytes`, or a half, a quarter, ... of it, at least `least_bytes`.

        heard: what became of the peer's frames, by their length. doubt: how often in a row only losses were
        told, so that the profile is believed the less. now_bytes: the length in force, for which one is given
        that has much more to promise, or itself; a shorter one only where losses that spare no length are
        much less likely. burst: how many times longer losses last than chance alone makes them. Lengths that
        halve fit into each other, so that what is held of an object in one is held in a shorter one too.
        """
        self._forget(now)
        worth: float = 1 / _DOUBT ** (doubt + 2 * self._belies_profile)
        most = _PROFILE_UNCONFIRMED if self._fates and not self._has_long else _PROFILE_WORTH
        fates: dict[int, DeliveryStats] = {}
        for known in (self._fates, heard):
            for wire_bytes, each in known.items():
                fates[wire_bytes] = fates.get(wire_bytes, DeliveryStats(0, 0)) + each
        lengths = list(self._allowed(payload_bytes, least_bytes, now))
        if not any(each.lost for each in self._fates.values()) and not self._prior_loses:
            return lengths[0]

        def likelihood(guess: tuple[float, float]) -> float:
            return _likelihood(fates, *guess) + max(worth * self._profile[guess], -most)

        guess = max(_GUESSES, key=likelihood)
        flat = max(((loss, 0.0) for loss in _FRAME_LOSSES), key=likelihood)
        surety = likelihood(guess) - likelihood(flat)
        loss, errors = guess

        def goodput(length: int) -> float:
            wire_bytes = length + self._framing_bytes
            return _survives(wire_bytes, loss, errors) * length / wire_bytes

        best = lengths[0]
        for length in lengths:
            if goodput(length) > _WORTH * goodput(best):
                best = length
        if now_bytes is None:
            return best
        if best < now_bytes and surety < (_SURE_BARREN if doubt else _SURE) * burst:
            return now_bytes
        if doubt:
            return best
        worth = _WORTH_LONGER if best > now_bytes else _WORTH_SHORTER
        return best if goodput(best) >= worth * goodput(now_bytes) else now_bytes

    def _forget(self, now: float) -> None:
        """What was refused long ago may pass now: of frames so long nothing is known any more."""
        if now >= self._refused_until:
            self._fates = {
                length: each for length, each in self._fates.items() if length < self._refused_bytes
            }
            self._refused_bytes = math.inf

    @property
    def _has_long(self) -> bool:
        """Whether any frame of more than half the longest's length passed."""
        longest = max(self._prior)
        return any(each.kept for length, each in self._fates.items() if 2 * length > longest)

    @property
    def _belies_profile(self) -> bool:
        """Whether of the longest frames far fewer passed than the profile says."""
        longest = max(self._prior)
        lost = sum(each.lost for length, each in self._fates.items() if 2 * length > longest)
        kept = sum(each.kept for length, each in self._fates.items() if 2 * length > longest)
        few = (lost + kept) * self._prior[longest].kept / _PRIOR / 4
        return (lost + kept >= _TELLING and kept < few) or (not kept and lost >= _TELLING_ALONE)

    def _allowed(self, payload_bytes: int, least_bytes: int, now: float) -> Iterator[int]:
        """The longest first; one at least."""
        length, none = payload_bytes, True
        while none or length >= max(least_bytes, SHORTEST_BYTES):
            refused = now < self._refused_until and length + self._framing_bytes >= self._refused_bytes
            shortest = length // 2 < max(least_bytes, SHORTEST_BYTES)
            if not refused or (none and shortest):
                none = False
                yield length
            if shortest:
                return
            length //= 2

    @property
    def _prior_loses(self) -> bool:
        return any(each.lost for each in self._prior.values())


def _survives(wire_bytes: int, frame_loss: float, bit_error_rate: float) -> float:
    return (1 - frame_loss) * math.exp(8 * wire_bytes * math.log1p(-bit_error_rate))


@lru_cache(maxsize=64)  # all sessions of one link ask the same, and the answer takes 2 ms
def _profile(prior: tuple[tuple[int, DeliveryStats], ...]) -> Mapping[tuple[float, float], float]:
    """The logarithms of how probable each guess is by what the link's profile says, the best one's 0."""
    likelihoods = {guess: _likelihood(dict(prior), *guess) for guess in _GUESSES}
    most = max(likelihoods.values())
    return {guess: each - most for guess, each in likelihoods.items()}


def _likelihood(fates: Mapping[int, DeliveryStats], frame_loss: float, bit_error_rate: float) -> float:
    """The logarithm of the probability of these fates on such a link."""
    total = 0.0
    for wire_bytes, each in fates.items():
        survives = min(max(_survives(wire_bytes, frame_loss, bit_error_rate), 1e-9), 1 - 1e-9)
        total += each.kept * math.log(survives) + each.lost * math.log1p(-survives)
    return total
