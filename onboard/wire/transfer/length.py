"""The fragment length that carries most, from what was lost of frames of which lengths.

A frame is lost with some probability whatever its length, and by any wrong bit: one of n bytes survives with
probability (1 - p) (1 - b)^(8 n). Long fragments waste less on headers, short ones less on wrong bits. Which
of the two losses a link has shows only in frames of different lengths, so what is known of the peer's frames,
mostly short ones, counts too: at first it is all that tells them apart.

A path may also drop all that is longer than its MTU, which no such law describes: a length of which nothing
ever passed is not tried again for 10 s, then for 20, at last for 600 (RFC 8899, section 5.1.1).

A fragment that is lost goes again, and where frames of its length never pass that would be so for ever: on a
line that is noisier than its profile, on one that eats some bytes, or on a path that drops what is long. So
an object of which nothing comes through while the peer answers is cut shorter, and one that could go on in
longer fragments is cut longer. Short frames pass, as the answers to them say, and a few long ones that do not
are evidence enough. Only one or two fragments of a length that none has passed in are in flight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from onboard.wire.framing.frame import OVERHEAD_BYTES
from onboard.wire.medium.medium_access import Timing
from onboard.wire.messages import MAX_FRAGMENTS
from onboard.wire.transfer.sender import ObjectSender
from onboard.wire.transfer.transfer import ReportOutcome
from onboard.wire.transfer.window import LossEstimator

_FRUITLESS = 2.0  # answers in a row that tell of lost fragments alone, where none of that length ever passed
_FRUITLESS_PROVEN = 4.0  # the same where some did: it may be a burst
_HALVED_AFTER = 8.0  # whatever the losses are made of
_UNHEARD = 1 / 3  # what such an answer counts where short frames are lost as well
_MUCH = 0.35  # the share of the peer's frames from which on short ones are lost as well
_LOOK_EVERY_S = 2.0  # at all fates: it takes some milliseconds
_LOOK_AFTER, _LOOK_AFTER_AT_MOST = 12.0, 3000.0  # or after so many fragments lost, and ever more
_SHORTER_FROM, _LONGER_FROM = 8, 32  # fragments that are left at least
SHORTEST_BYTES = 25  # below that more than half of every frame is not payload
_WORTH = 1.05  # shorter fragments have to promise this much more: REPORTs grow longer, and fates are chance
_REMEMBERED = 512  # fates of one length; then older ones count half
_REFUSED_S, _REFUSED_AT_MOST_S = 10.0, 600.0
_WORTH_SHORTER = 1.2  # in the middle of an object, where another length costs an OFFER and a round trip
_WORTH_LONGER = 1.08
_SURE = 8.0  # the logarithm of a likelihood ratio that is believed
_SURE_BARREN = 3.5  # the same where nothing passed at all: less is at stake there
_TELLING, _TELLING_ALONE = 16, 3  # fates, and where all of them are losses
_DOUBT = 4.0  # every answer that tells of losses alone divides the worth of the profile by this
_PROFILE_WORTH = 40.0  # likewise: so much at most speaks for the profile
_PROFILE_UNCONFIRMED = 2.5  # and where no frame of half its length or more is known to have passed
_PRIOR = 16.0  # fates that the link's profile is worth, at its longest frame and at its shortest
_BIT_ERRORS = (0.0, *(10 ** (nth / 8 - 6.5) for nth in range(29)))  # 3e-7 to 1e-3, in steps of a third
_FRAME_LOSSES = (0.0, *(0.005 * 1.35**nth for nth in range(17)))  # 0.5 to 61 %, likewise
_GUESSES = tuple((loss, errors) for errors in _BIT_ERRORS for loss in _FRAME_LOSSES)


@dataclass(frozen=True, slots=True)
class DeliveryStats:
    """The numbers of frames of one length that were lost, and that were not."""

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


class Fitting:
    """Cuts the objects of one outgoing direction. `longest_bytes`: the payload of the longest frame."""

    def __init__(self, timing: Timing, lengths: FragmentSizer, loss: LossEstimator) -> None:
        self._timing, self._lengths, self._loss = timing, lengths, loss
        self.longest_bytes = timing.payload_bytes
        self._peers_bytes = self.longest_bytes
        self._looked_at = -math.inf
        self._lost, self._look_after = 0, _LOOK_AFTER

    def first(self, size: int, heard: Mapping[int, DeliveryStats], now: float) -> int:
        """Bytes of a fragment of an object of so many that is offered now. Where nothing was sent yet that
        could tell, the peer's experience is better than none."""
        most_bytes = self.longest_bytes
        if self._lengths.is_untried:
            most_bytes = min(most_bytes, max(self._peers_bytes, _least(size)))
        best = self._lengths.best(most_bytes, _least(size), heard, now)
        return self._lengths.known(best, _least(size)) if self._lengths.refuses(now) else best

    def peer_cuts(self, fragment_bytes: int) -> None:
        """The peer cuts its objects into fragments of so many bytes."""
        self._peers_bytes = max(fragment_bytes, SHORTEST_BYTES)

    def weigh(
        self,
        sender: ObjectSender,
        verdict: ReportOutcome,
        missed: int,
        heard: Mapping[int, DeliveryStats],
        now: float,
    ) -> int | None:
        """Takes in what a REPORT settled, which came after so many questions were lost; another length for
        the object if it should be cut anew, else None."""
        outgoing = sender.object
        fragment_bytes = min(outgoing.fragment_bytes, len(outgoing.payload))
        wire_bytes, last_bytes = self._wire_bytes(fragment_bytes), outgoing.last_bytes
        lost, settled = verdict.lost, verdict.settled
        if last_bytes < fragment_bytes:
            last = DeliveryStats(verdict.last_lost, verdict.last_settled - verdict.last_lost)
            self._lengths.weigh(self._wire_bytes(last_bytes), last)
            lost, settled = lost - verdict.last_lost, settled - verdict.last_settled
        self._lengths.weigh(wire_bytes, DeliveryStats(lost, settled - lost))
        if settled > lost:
            sender.fruitless = 0.0
        elif lost or (
            verdict.lost and outgoing.count - outgoing.acknowledged.bit_count() == 1
        ):  # the last alone
            missed = missed or self._timing.half_duplex  # there the answer comes when the turn ends
            sender.fruitless += _UNHEARD if missed and _share_lost(heard) >= _MUCH else 1.0
        is_proven = self._lengths.is_proven(wire_bytes)
        sender.is_doubtful = not is_proven and (sender.fruitless > 0 or sender.was_recut)
        if outgoing.complete:
            return None
        if sender.fruitless >= (_FRUITLESS_PROVEN if is_proven else _FRUITLESS):
            return self._shorter(sender, heard, now)
        return self._look(sender, verdict, heard, now)

    def doubt(self, sender: ObjectSender) -> None:
        """What was sent before the peer was heard was lost, and nobody knows whether for its length."""
        wire_bytes = self._wire_bytes(min(sender.object.fragment_bytes, len(sender.object.payload)))
        sender.is_doubtful = not self._lengths.is_proven(wire_bytes)

    def _shorter(self, sender: ObjectSender, heard: Mapping[int, DeliveryStats], now: float) -> int | None:
        outgoing = sender.object
        least_bytes = max(_least(len(outgoing.payload)), SHORTEST_BYTES)
        half_bytes = outgoing.fragment_bytes // 2
        if half_bytes < least_bytes:
            return None
        best = self._lengths.best(
            self.longest_bytes, least_bytes, heard, now,
            doubt=sender.fruitless, now_bytes=outgoing.fragment_bytes, burst=self._loss.burst,
        )  # fmt: skip
        if best > half_bytes and sender.fruitless < _HALVED_AFTER:
            return None
        self._lengths.refuse(self._wire_bytes(outgoing.fragment_bytes), now)
        return self._lengths.known(min(best, half_bytes), least_bytes)

    def _look(
        self, sender: ObjectSender, verdict: ReportOutcome, heard: Mapping[int, DeliveryStats], now: float
    ) -> int | None:
        """Whether another length promises so much more that it is worth while in the middle of an object."""
        outgoing = sender.object
        fragment_bytes = outgoing.fragment_bytes
        is_shorter_wanted = verdict.lost > 0
        is_longer_possible = not outgoing.holes and 2 * fragment_bytes <= self.longest_bytes
        left = outgoing.remaining_bytes / fragment_bytes
        self._lost += verdict.lost
        is_time = now >= self._looked_at + _LOOK_EVERY_S or self._lost >= self._look_after
        if not is_time or not (is_shorter_wanted or is_longer_possible):
            return None
        if left < (_SHORTER_FROM if is_shorter_wanted else _LONGER_FROM):
            return None
        self._looked_at, self._lost = now, 0
        self._look_after = min(2 * self._look_after, _LOOK_AFTER_AT_MOST)
        least_bytes = _least(len(outgoing.payload))
        best = self._lengths.best(
            self.longest_bytes, least_bytes, heard, now, now_bytes=fragment_bytes, burst=self._loss.burst
        )
        if best > fragment_bytes // 2 if is_shorter_wanted else best < 2 * fragment_bytes:
            return None
        self._look_after = _LOOK_AFTER
        return best

    def _wire_bytes(self, fragment_bytes: int) -> int:
        return self._timing.wire_bytes(OVERHEAD_BYTES + fragment_bytes)


def _share_lost(heard: Mapping[int, DeliveryStats]) -> float:
    lost = sum(each.lost for each in heard.values())
    return lost / max(1.0, lost + sum(each.kept for each in heard.values()))


def _least(size: int) -> int:
    return -(-size // MAX_FRAGMENTS)
