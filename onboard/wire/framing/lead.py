"""Delimiters before the first frame after a pause, so that what a line spoils at a start is no frame of ours.

A transmitter that keys late, or a receiver that is still settling, spoils the first bytes of whatever comes
after a pause, and a quiet line may have left noise in the other end's buffer. Without a delimiter in front a
frame would be one chunk with all that. On half-duplex every turn begins with enough of them. On a line that
is always on one will do, unless nothing comes back or the same question comes twice: then it is as many.
"""

from __future__ import annotations

from onboard.wire.medium.timing import Timing

_EAGER = 8  # bursts in a row without an answer that have a long lead; of later ones every fourth
_DOUBTFUL = 3.0
_TRUST = 0.5  # that a question which is a new one gives back of a doubt


class Lead:
    """How long the lead of each burst of one end is. On a datagram port none has any."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._unheard = 0  # bursts since anything was heard
        self._again = False  # the peer has asked the same once more: it did not hear the answer
        self._doubt = 0.0

    def begins(self) -> int:
        """A burst begins: the delimiters before its first frame."""
        short, long = self._timing.lead_bytes
        eager = 0 < self._unheard <= _EAGER or self._unheard % 4 == 3
        is_long = eager or self._again or self._doubt >= _DOUBTFUL
        self._unheard += 1
        self._again = False
        return long if is_long else short

    def within(self, *, lossy: bool) -> int:
        """A frame follows another without a pause: it needs no lead, but where frames are lost noise may be
        what comes in between."""
        return min(1, self._timing.lead_bytes[0]) if lossy else 0

    def heard(self, *, again: bool) -> None:
        """A frame of the peer's came; `again`: it asks what the one before it asked, and was answered."""
        self._unheard = 0
        self._again = again
        self._doubt = self._doubt + 1 if again else max(0.0, self._doubt - _TRUST)
