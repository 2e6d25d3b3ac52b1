"""Two ends that disagree about the salt of their keys, or about epochs, find out, and agree anew.

Every start of an end begins under a new salt, so a copy of its state that is put back does no harm. What is
left: an end whose peer agreed with somebody else meanwhile (its state folder was run on another computer, its
card was cloned), the last HELLO of an agreement that was lost, and a virtual machine whose memory went back.
Then every frame of the peer's has a wrong tag or is a replay, and each end would wait for the other for ever.
"""

from __future__ import annotations

import math
from collections import deque

REFUSED = 3  # one after the other: bit errors that frequent would leave no link
REFUSED_S = 10.0  # and for so long nothing was proven
ASK_AGAIN_S, AT_LAST_S = 8.0, 64.0  # only where more is refused, and twice as long each time
FREE, WITHIN_S = 3, 600.0
UNANSWERED = 3  # HELLOs, after which replays alone are told
_UNDER_WAY_S = 10.0  # frames that left before a new salt was in force come late


class Doubt:
    """Decides whether the frames that an end refuses mean that it and its peer disagree.

    First it asks the peer for its salt. Where that is another, they agree anew. Where it is the same, wrong
    tags were noise or a forger's; replays were a recording, unless they go on: then the peer's memory has
    gone back.
    """

    def __init__(self) -> None:
        self._refused = self._replays = 0  # since anything was proven, or the peer's salt is known
        self._since_s = self._asked_at = 0.0
        self._is_confirmed = False
        self.asked = 0
        self.is_answered = False  # by an authentic HELLO, whenever that was made
        self.told = False

    @property
    def only_replays(self) -> bool:
        """Whether all that was refused was authentic, and of numbers that are over."""
        return self._refused == self._replays

    @property
    def is_lasting(self) -> bool:
        """Whether the peer was asked in vain, and yet the keys are the same."""
        return self.asked >= UNANSWERED and (self.only_replays or self.is_answered)

    @property
    def is_certain(self) -> bool:
        """Whether the peer has the same salt, and is replayed all the same."""
        return self._is_confirmed and self.only_replays

    def refused(self, now: float, *, replay: bool) -> bool:
        """A frame of the peer's was refused, as a replay or for its tag; True: say HELLO now."""
        if not self._refused:
            self._since_s = now
            self._asked_at = -math.inf
        self._refused += 1
        self._replays += replay
        again_s = min(ASK_AGAIN_S * 2.0 ** max(0, self.asked - 1), AT_LAST_S)
        if self._refused < REFUSED or now < self._since_s + REFUSED_S or now < self._asked_at + again_s:
            return False
        self._asked_at = now
        self.asked += 1
        return True

    def confirmed(self) -> None:
        """The peer, asked, has named the salt in force."""
        if self.asked:
            self._is_confirmed = self.only_replays
            self._refused = self._replays = self.asked = 0

    def proven(self) -> None:
        """A frame was authentic and new: they agree."""
        if self._refused or self._is_confirmed:
            self._refused = self._replays = self.asked = 0
            self._is_confirmed = self.is_answered = self.told = False


class Agreements:
    """How often two ends may agree on a new salt, so that two live copies of one do not take turns for ever.

    Once for each start of the peer, as its epoch shows, and beside that FREE times in WITHIN_S.
    """

    def __init__(self) -> None:
        self._peer_epoch = 0
        self._repeated: deque[float] = deque(maxlen=FREE)

    def is_repeated(self, peer_epoch: int) -> bool:
        """Whether the peer has agreed in this start of it, or a later one, before."""
        return peer_epoch <= self._peer_epoch

    def may(self, peer_epoch: int, now: float) -> bool:
        """Whether this end agrees with one whose epoch that is."""
        return not self.is_repeated(peer_epoch) or not self._are_many(now)

    def agreed(self, peer_epoch: int, now: float) -> bool:
        """They did; True where that is once too often."""
        repeated = self.is_repeated(peer_epoch)
        self._peer_epoch = max(self._peer_epoch, peer_epoch)
        if repeated:
            self._repeated.append(now)
        return repeated and self._are_many(now)

    def _are_many(self, now: float) -> bool:
        return len(self._repeated) == FREE and now < self._repeated[0] + WITHIN_S


class Earlier:
    """Frames under the salt that was in force before, by turns with those under the one in force: some were
    under way, and more mean another live end."""

    def __init__(self) -> None:
        self._since_s = 0.0
        self._is_turn = False
        self._turns = 0
        self.told = False

    def rekeyed(self, now: float) -> None:
        """Another salt is in force."""
        self._since_s, self._is_turn, self._turns = now, False, 0

    def proven(self) -> None:
        """A frame under the salt in force was taken."""
        self._is_turn = True

    def heard(self, now: float) -> bool:
        """A new frame under the one before; True where two ends speak."""
        if self._is_turn and now >= self._since_s + _UNDER_WAY_S:
            self._is_turn = False
            self._turns += 1
        return self._turns >= REFUSED
