"""How an object is cut, and when one that is on its way is cut anew.

A fragment that is lost goes again, and where frames of its length never pass that would be so for ever: on a
line that is noisier than its profile, that eats some bytes, or on a path that drops what is long. So an
object of which nothing comes through while the peer answers is cut shorter, and one that could go on in
longer fragments is cut longer. Short frames pass, as the answers to them say, so that a few long ones which
do not tell enough. Of a length that no fragment has passed in yet only one or two are in flight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from onboard.wire.framing.frame import OVERHEAD_BYTES
from onboard.wire.medium.timing import Timing
from onboard.wire.messages import MAX_FRAGMENTS
from onboard.wire.transfer.length import SHORTEST_BYTES, DeliveryStats, FragmentSizer
from onboard.wire.transfer.loss import LossEstimator
from onboard.wire.transfer.sender import ObjectSender
from onboard.wire.transfer.transfer import ReportOutcome

_FRUITLESS = 2.0  # answers in a row that tell of lost fragments alone, where none of that length ever passed
_FRUITLESS_PROVEN = 4.0  # and where some did: it may be a burst
_HALVED_AFTER = 8.0  # whatever the losses are made of
_UNHEARD = 1 / 3  # what such an answer counts where short frames are lost as well
_MUCH = 0.35  # of the peer's frames
_LOOK_EVERY_S = 2.0  # at all fates: it takes some milliseconds
_LOOK_AFTER, _LOOK_AFTER_AT_MOST = 12.0, 3000.0  # or after so many fragments lost, and ever more
_SHORTER_FROM, _LONGER_FROM = 8, 32  # fragments that are left at least


class Fitting:
    """Of one outgoing direction. `longest_bytes`: payload of the longest frame that may be sent."""

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
        elif lost or (verdict.lost and outgoing.count - outgoing.held.bit_count() == 1):  # the last alone
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
