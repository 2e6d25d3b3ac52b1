"""Which neighbours a node listens to: one that pulls at its model again and again is left out, as if dead.

It may be another's satellite, or its model was spoiled. So it is left out for a while, which doubles each
time, and then tried again. Refusals are logged, but not one line for every object."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from onboard.console.log import say

log = logging.getLogger(__name__)

STRIKES = 3  # and a neighbour is left out
OUTLIER = 0.6  # an exchange of which no more is taken is a strike
PARDON = 0.125  # of a strike, for each exchange that is as it should be
LEFT_OUT_S, LONGEST_S = 600.0, 86_400.0
TELL_EVERY_S = 60.0


@dataclass(slots=True)
class _Record:
    strikes: float = 0.0
    times: int = 0  # it was left out
    until_s: float = 0.0
    untold: int = 0  # refusals
    tell_at_s: float = 0.0


class Trust:
    """Trust in each of `peers`; it counts objects that were `refused` and exchanges that were `clipped`."""

    def __init__(self, peers: Iterable[int]) -> None:
        self.refused = self.clipped = 0
        self._records = {peer: _Record() for peer in peers}

    def left_out(self, now: float) -> frozenset[int]:
        return frozenset(peer for peer, record in self._records.items() if now < record.until_s)

    def refuse(self, peer: int, why: str, now: float) -> None:
        record = self._records[peer]
        self.refused += 1
        record.untold += 1
        if now >= record.tell_at_s:
            say(log, "exchange-refused", level=logging.WARNING, peer=peer, why=why, times=record.untold)
            record.untold, record.tell_at_s = 0, now + TELL_EVERY_S

    def strike(self, peer: int) -> bool:
        """Records something that no node sends that follows the rules; returns whether to leave it out."""
        record = self._records[peer]
        record.strikes += 1
        return record.strikes >= STRIKES

    def judge(self, peer: int, taken: float) -> bool:
        """Records which share of an exchange was mixed; returns whether to leave the neighbour out."""
        record = self._records[peer]
        if taken == 1.0:
            record.strikes = max(0.0, record.strikes - PARDON)
            return False
        self.clipped += 1
        return taken <= OUTLIER and self.strike(peer)

    def leave_out(self, peer: int, why: str, now: float) -> None:
        """Stops listening to a neighbour for a while."""
        record = self._records[peer]
        for_s = min(LEFT_OUT_S * 2**record.times, LONGEST_S)
        record.strikes, record.times, record.until_s = 0.0, min(record.times + 1, 30), now + for_s
        say(log, "neighbour-left-out", level=logging.WARNING, peer=peer, why=why, for_s=for_s)
