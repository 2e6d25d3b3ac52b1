"""The liveness of the peer: whether it owes an answer, since when, and when to ask it again.

The first questions follow the rules of the object that they are about. A peer that gave no answer for too
long is silent: it is asked ever more slowly, down to every 2 s, and is sent nothing else. On half-duplex an
end that handed over a turn with a question in it waits for the answer, and asks again when it does not come.
"""

from __future__ import annotations

import math
from enum import Enum

from onboard.wire.medium.medium_access import RETRY_S, Timing

_QUICK_TURNS = 12  # half-duplex: a question in each, and then every 2 s
# Full duplex: the first questions to a peer that has fallen silent, and how much more slowly the next ones
# follow, up to RETRY_S. A burst of losses that is counted in frames is over sooner the sooner they are sent:
# of 9.6 kbit/s with 40 % lost in bursts of 5 it is worth 1.5 %. 22 questions more, 0.5 kB, a silence.
_FIRST_S, _SLOWER = 0.25, 1.1


class PeerState(Enum):
    """Whether the peer may be sent more than questions."""

    ANSWERING = "answering"
    """The peer owes nothing, or not for too long yet."""
    ANSWER_DUE = "answer-due"
    """On half-duplex, this end asked something in its turn and handed the turn over."""
    SILENT = "silent"
    """The peer gives no answer."""


class PeerLiveness:
    """Follows the questions of one end, whatever they are about."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._since: float | None = None  # end of the first question since the peer was heard
        self._misses = 0  # questions since the peer was heard
        self._in_silence = 0  # of these, to a silent peer
        self.state = PeerState.ANSWERING
        self.retry_at = 0.0  # when to ask again, if nothing else may leave
        self.spoke = False  # half-duplex: in this turn, something that wants an answer

    @property
    def silent(self) -> bool:
        """Whether the peer owes an answer and gives none."""
        return self.state is PeerState.SILENT

    @property
    def loss(self) -> float:
        """The loss to assume: a half where questions have no answer yet, 0 where nothing is suspected."""
        return 0.5 if self._misses and not self.silent else 0.0

    def asked(self, end: float) -> None:
        """A question has left, its last bit at `end`."""
        if self._since is None:
            self._since = end
        self._misses += 1
        quick = self._timing.half_duplex and self._misses <= _QUICK_TURNS and not self.silent
        patience_s = RETRY_S
        if self.silent and not self._timing.half_duplex:
            self._in_silence += 1
            patience_s = min(_FIRST_S * _SLOWER ** min(self._in_silence, 64), RETRY_S)
        self.retry_at = end if quick else end + patience_s

    def hand_over(self, end: float) -> None:
        """On half-duplex, this end's turn is over at `end`."""
        has_asked, self.spoke = self.spoke, False
        if not self.silent:
            self.state = PeerState.ANSWER_DUE if has_asked else PeerState.ANSWERING
        if has_asked:
            self.asked(end)

    def heard(self) -> None:
        """Something authentic came from the peer."""
        self.state = PeerState.ANSWERING
        self._since = None
        self._misses = self._in_silence = 0

    def silent_at(self, fragments: int) -> float:
        """When the peer, asked about an object of so many fragments, becomes silent; inf for never."""
        if self.silent or self._since is None:
            return math.inf
        return self._since + self._timing.silence_s(fragments)

    def tick(self, now: float, fragments: int) -> None:
        """The peer becomes silent if its time is up."""
        if now >= self.silent_at(fragments):
            self.state = PeerState.SILENT
            self.retry_at = now
