"""The choice of fragment length: the one with the best goodput, given which frames were lost.

A frame of n bytes survives with probability (1 - p) (1 - b)^(8 n): p is lost whatever the length, b is the
share of wrong bits. Only frames of different lengths tell these apart, so the peer's mostly short frames
count too. docs/wire.md, "Fragment length", has the rules.

A path may also drop all frames longer than its MTU. A length of which nothing ever passed is avoided for 10
s, then for 20 s, up to 600 s (RFC 8899, section 5.1.1). Short frames pass, as the answers show, so a few lost
long ones are evidence enough."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from functools import lru_cache

from hw_profiles import Link
from onboard.wire.framing.frame import OVERHEAD_BYTES
from onboard.wire.medium.medium_access import Timing
from onboard.wire.messages import MAX_FRAGMENTS
from onboard.wire.transfer.outgoing import Outgoing, ReportOutcome
from onboard.wire.transfer.peer import DeliveryStats, LossEstimator, ReceiveStats
from onboard.wire.transfer.sender import ObjectSender

_FRUITLESS = 2.0  # reports in a row of lost fragments alone, where none of that length ever passed
_FRUITLESS_PROVEN = 4.0  # the same where some did: it may be a burst
_HALVED_AFTER = 8.0  # whatever the losses are made of
_UNHEARD = 1 / 3  # the weight of such a report where short frames are lost as well
_MUCH = 0.35  # from this loss of the peer's frames on, short ones count as lost as well
_LOOK_EVERY_S = 2.0  # an evaluation of all fates takes some milliseconds
_LOOK_AFTER, _LOOK_AFTER_AT_MOST = 12.0, 3000.0  # or after this many lost fragments, doubling
_SHORTER_FROM, _LONGER_FROM = 8, 32  # the least number of fragments left
_SHORTEST_BYTES = 25  # below that more than half of every frame is not payload
_WORTH = 1.05  # the gain that shorter fragments must promise: REPORTs grow, and fates are chance
_REMEMBERED = 512  # fates of one length; then older ones count half
_REFUSED_S, _REFUSED_AT_MOST_S = 10.0, 600.0
_WORTH_SHORTER = 1.2  # in the middle of an object, where another length costs an OFFER and a round trip
_WORTH_LONGER = 1.08
_SURE = 8.0  # the log-likelihood ratio that is believed
_SURE_BARREN = 3.5  # where nothing passed at all, less is at stake
_TELLING, _TELLING_ALONE = 16, 3  # fates that are evidence; the second where all of them are losses
_DOUBT = 4.0  # each report of losses alone divides the profile's weight by this
_PROFILE_WORTH = 40.0  # the most log-likelihood that speaks for the profile
_PROFILE_UNCONFIRMED = 2.5  # where no frame longer than half its longest is known to have passed
_PRIOR = 16.0  # the profile counts as this many fates of its longest and its shortest frame
_BIT_ERRORS = (0.0, *(10 ** (nth / 8 - 6.5) for nth in range(29)))  # 3e-7 to 1e-3, in steps of a third
_FRAME_LOSSES = (0.0, *(0.005 * 1.35**nth for nth in range(17)))  # 0.5 to 61 %, likewise
_GUESSES = tuple((loss, errors) for errors in _BIT_ERRORS for loss in _FRAME_LOSSES)


class FragmentSizer:
    """Chooses one direction's fragment lengths. `link`: the profile whose losses are the prior."""

    def __init__(self, timing: Timing, link: Link, hearing: ReceiveStats, loss: LossEstimator) -> None:
        self._timing, self._hearing, self._loss = timing, hearing, loss
        self.longest_bytes = timing.payload_bytes
        self._framing_bytes = timing.wire_bytes(OVERHEAD_BYTES)
        self._fates: dict[int, DeliveryStats] = {}  # by bytes on the wire
        self._refused_bytes: float = math.inf  # frames this long wait until `_refused_until`
        self._refused_least_bytes: float = math.inf
        self._refused_until = -math.inf
        self._refused_s = _REFUSED_S
        self._looked_at = -math.inf
        self._lost, self._look_after = 0.0, _LOOK_AFTER
        self._prior = {}
        for wire_bytes in (self._framing_bytes, timing.frame_bytes):
            survives = _survives(wire_bytes, link.frame_loss, link.bit_error_rate)
            self._prior[wire_bytes] = DeliveryStats(_PRIOR * (1 - survives), _PRIOR * survives)
        self._profile = _profile(tuple(self._prior.items()))

    def first(self, size: int, now: float) -> int:
        """Return a new object's fragment length: at first the peer's, as nothing was sent that could tell."""
        least_bytes, most_bytes = _least(size), self.longest_bytes
        if not self._fates:
            most_bytes = min(most_bytes, max(self._hearing.fragment_bytes or most_bytes, least_bytes))
        best = self._best(list(_halves(most_bytes, least_bytes)), now)
        return self._known(best, least_bytes) if now < self._refused_until else best

    def weigh(self, sender: ObjectSender, outcome: ReportOutcome, missed: int, now: float) -> int | None:
        """Take in a REPORT's outcome, `missed` polls being lost before it; return a better length, if any."""
        outgoing = sender.object
        for fragment_bytes, fates in outcome.fates.items():
            self.count(self._wire_bytes(fragment_bytes), fates)
        wholes = outcome.fates[outgoing.first_bytes]
        if wholes.kept:
            sender.fruitless = 0.0
        elif wholes.lost or (outcome.lost and outgoing.missing == 1):  # the last alone
            heard = sum(self._hearing.fates.values(), DeliveryStats())
            are_short_lost = heard.lost / max(1.0, heard.lost + heard.kept) >= _MUCH
            missed = missed or self._timing.half_duplex  # there the answer comes when the turn ends
            sender.fruitless += _UNHEARD if missed and are_short_lost else 1.0
        is_proven = self._is_proven(outgoing)
        sender.is_doubtful = not is_proven and (sender.fruitless > 0 or sender.was_recut)
        if outgoing.complete:
            return None
        if sender.fruitless >= (_FRUITLESS_PROVEN if is_proven else _FRUITLESS):
            return self._shorter(sender, now)
        return self._look(outgoing, outcome, now)

    def doubt(self, sender: ObjectSender) -> None:
        """Note losses from before the peer was heard: nobody knows whether the length caused them."""
        sender.is_doubtful = not self._is_proven(sender.object)

    def count(self, wire_bytes: int, fates: DeliveryStats) -> None:
        both = self._fates.get(wire_bytes, DeliveryStats()) + fates
        if both.lost + both.kept > _REMEMBERED:
            both = DeliveryStats(both.lost / 2, both.kept / 2)
        self._fates[wire_bytes] = both

    def _best(self, lengths: list[int], now: float, *, doubt: float = 0.0, now_bytes: int = 0) -> int:
        """Return the best of `lengths`, which halve. `doubt`: how many reports in a row told of losses alone;
        the profile is trusted less for each. `now_bytes`: the length in force, 0 for none; it is kept unless
        another promises much more, and a shorter one needs strong evidence that losses depend on length."""
        if now >= self._refused_until:  # it may pass now: what is known of frames that long is dropped
            self._fates = {
                length: each for length, each in self._fates.items() if length < self._refused_bytes
            }
            self._refused_bytes = math.inf
        refused_bytes = self._refused_bytes - self._framing_bytes
        lengths = [each for each in lengths if each < refused_bytes] or lengths[-1:]
        if not any(each.lost for each in (*self._fates.values(), *self._prior.values())):
            return lengths[0]
        longest = max(self._prior)
        long = sum((each for length, each in self._fates.items() if 2 * length > longest), DeliveryStats())
        few = (long.lost + long.kept) * self._prior[longest].kept / _PRIOR / 4
        belies_profile = long.kept < few if long.lost + long.kept >= _TELLING else False
        belies_profile = belies_profile or (not long.kept and long.lost >= _TELLING_ALONE)
        worth: float = 1 / _DOUBT ** (doubt + 2 * belies_profile)
        most = _PROFILE_UNCONFIRMED if self._fates and not long.kept else _PROFILE_WORTH
        fates = dict(self._fates)
        for wire_bytes, each in self._hearing.fates.items():
            fates[wire_bytes] = fates.get(wire_bytes, DeliveryStats()) + each

        likelihood = {
            guess: each + max(worth * prior, -most)
            for guess, each, prior in zip(_GUESSES, _likelihoods(fates), self._profile, strict=True)
        }
        guess = max(likelihood, key=likelihood.__getitem__)
        surety = likelihood[guess] - max(likelihood[loss, 0.0] for loss in _FRAME_LOSSES)

        def goodput(length: int) -> float:
            wire_bytes = length + self._framing_bytes
            return _survives(wire_bytes, *guess) * length / wire_bytes

        best = lengths[0]
        for length in lengths:
            if goodput(length) > _WORTH * goodput(best):
                best = length
        if not now_bytes:
            return best
        if best < now_bytes and surety < (_SURE_BARREN if doubt else _SURE) * self._loss.burst:
            return now_bytes
        if doubt:
            return best
        worth = _WORTH_LONGER if best > now_bytes else _WORTH_SHORTER
        return best if goodput(best) >= worth * goodput(now_bytes) else now_bytes

    def _shorter(self, sender: ObjectSender, now: float) -> int | None:
        """Return a length in which something may pass, and avoid the present one for a time that doubles."""
        now_bytes, least_bytes = sender.object.fragment_bytes, _least(len(sender.object.payload))
        half_bytes = now_bytes // 2
        if half_bytes < least_bytes:
            return None
        lengths = list(_halves(self.longest_bytes, least_bytes))
        best = self._best(lengths, now, doubt=sender.fruitless, now_bytes=now_bytes)
        if best > half_bytes and sender.fruitless < _HALVED_AFTER:
            return None
        wire_bytes = self._wire_bytes(now_bytes)
        if wire_bytes >= self._refused_least_bytes:
            self._refused_s = min(2 * self._refused_s, _REFUSED_AT_MOST_S)
        self._refused_bytes, self._refused_until = wire_bytes, now + self._refused_s
        self._refused_least_bytes = min(wire_bytes, self._refused_least_bytes)
        self._fates[wire_bytes] = DeliveryStats(self._fates.get(wire_bytes, DeliveryStats()).lost, 0)
        return self._known(min(best, half_bytes), least_bytes)

    def _look(self, outgoing: Outgoing, outcome: ReportOutcome, now: float) -> int | None:
        """Return a length worth a refragmentation in the middle of an object, or None."""
        now_bytes = outgoing.fragment_bytes
        is_shorter_wanted = outcome.lost > 0
        is_longer_possible = not outgoing.holes and 2 * now_bytes <= self.longest_bytes
        self._lost += outcome.lost
        is_time = now >= self._looked_at + _LOOK_EVERY_S or self._lost >= self._look_after
        if not is_time or not (is_shorter_wanted or is_longer_possible):
            return None
        if outgoing.remaining_bytes / now_bytes < (_SHORTER_FROM if is_shorter_wanted else _LONGER_FROM):
            return None
        self._looked_at, self._lost = now, 0.0
        self._look_after = min(2 * self._look_after, _LOOK_AFTER_AT_MOST)
        lengths = list(_halves(self.longest_bytes, _least(len(outgoing.payload))))
        best = self._best(lengths, now, now_bytes=now_bytes)
        if best > now_bytes // 2 if is_shorter_wanted else best < 2 * now_bytes:
            return None
        self._look_after = _LOOK_AFTER
        return best

    def _known(self, most_bytes: int, least_bytes: int) -> int:
        """Return the longest of `most_bytes`, half of it, ... in which frames passed, else `most_bytes`."""
        for length in _halves(most_bytes, least_bytes):
            if self._fates.get(length + self._framing_bytes, DeliveryStats()).kept >= _TELLING_ALONE:
                return length
        return most_bytes

    def _is_proven(self, outgoing: Outgoing) -> bool:
        wire_bytes = self._wire_bytes(outgoing.first_bytes)
        return any(each.kept for length, each in self._fates.items() if length >= wire_bytes)

    def _wire_bytes(self, fragment_bytes: int) -> int:
        return self._timing.wire_bytes(OVERHEAD_BYTES + fragment_bytes)


def _least(size: int) -> int:
    return max(-(-size // MAX_FRAGMENTS), _SHORTEST_BYTES)


def _halves(most_bytes: int, least_bytes: int) -> Iterator[int]:
    yield most_bytes
    while (most_bytes := most_bytes // 2) >= least_bytes:
        yield most_bytes


def _survives(wire_bytes: int, frame_loss: float, bit_error_rate: float) -> float:
    return (1 - frame_loss) * math.exp(8 * wire_bytes * math.log1p(-bit_error_rate))


@lru_cache(maxsize=64)  # all sessions of one link ask the same, and the answer takes 2 ms
def _profile(prior: tuple[tuple[int, DeliveryStats], ...]) -> list[float]:
    """Return each guess's log-likelihood under the link's profile, the best one's being 0."""
    likelihoods = _likelihoods(dict(prior))
    most = max(likelihoods)
    return [each - most for each in likelihoods]


def _likelihoods(fates: Mapping[int, DeliveryStats]) -> list[float]:
    """Return the log-probability of these fates under every guess."""
    totals = [0.0] * len(_GUESSES)
    for wire_bytes, each in fates.items():  # there may be more lengths than `_odds` keeps
        totals = [
            total + (each.kept * kept + each.lost * lost)
            for total, kept, lost in zip(totals, *_odds(wire_bytes), strict=True)
        ]
    return totals


@lru_cache(maxsize=128)  # 9 kB each; most links have six lengths, but objects of many sizes end in as many
def _odds(wire_bytes: int) -> tuple[array[float], array[float]]:
    """Return, for every guess, the log-probabilities that such a frame is kept and that it is lost."""
    survive = [min(max(_survives(wire_bytes, *guess), 1e-9), 1 - 1e-9) for guess in _GUESSES]
    return array("d", map(math.log, survive)), array("d", [math.log1p(-each) for each in survive])
