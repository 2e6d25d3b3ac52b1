"""What one peer may cost this end a second: frames, their bytes, and writes to the disk.

Whoever holds a key may say anything, as often as the line carries it. A peer that costs more than any honest
one is heard no further until its bill is paid: what it sends meanwhile waits in the port, and overflows there
at its own loss. So one link cannot take the time of the others, nor of what else this end does.

Each bound is a leaky bucket, far above what an honest peer needs: one that keeps to its link's rate sends
half of the bytes, and its objects are saved four times a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

AHEAD = 2.0  # times the line's rate
BURST_S = 4.0  # of that, which a port may hold when this end was paused
LEAST_FRAME_BYTES = 64
FRAMES_PER_S = (1000.0, 20_000.0)  # at least and at most, whatever the line carries
BURST_BYTES = 1 << 20  # at least
WRITES_PER_S, BURST_WRITES = 32.0, 256.0
HURRIES_PER_S, BURST_HURRIES = 1.0, 4.0  # objects saved as soon as they are whole
BAD_FRAME = 0.05  # of the cost of one that is authentic: 10 us
TOLD_AGAIN_S = 600.0
_RATE_OVER_S = 10.0


@dataclass(frozen=True, slots=True)
class OverShare:
    """The peer costs more `what` (frames, bytes, writes) a second than its share, which is `bound`; `rate` is
    that of the last seconds. It is heard last from now on; told again every 10 min while it lasts."""

    what: str
    rate: float
    bound: float


class _Bucket:
    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s, self.burst = per_s, burst
        self.level = 0.0
        self.at = -math.inf
        self.since, self.amount = -math.inf, 0.0  # of the rate to tell
        self.told_at = -math.inf

    def charge(self, amount: float, now: float) -> None:
        self.level = self.left(now) + amount
        self.at = now
        if now >= self.since + _RATE_OVER_S:
            self.since, self.amount = now, 0.0
        self.amount += amount

    def left(self, now: float) -> float:
        return max(0.0, self.level - self.per_s * (now - self.at)) if self.level else 0.0

    def free_at(self, now: float) -> float:
        return now + max(0.0, self.left(now) - self.burst) / self.per_s


class PeerShare:
    """The costs of one peer. Times in seconds on the caller's clock."""

    def __init__(self) -> None:
        self._buckets = {
            "frames": _Bucket(FRAMES_PER_S[0], FRAMES_PER_S[0]),
            "bytes": _Bucket(BURST_BYTES, BURST_BYTES),
            "writes": _Bucket(WRITES_PER_S, BURST_WRITES),
        }
        self._hurries = _Bucket(HURRIES_PER_S, BURST_HURRIES)

    def line(self, bytes_per_s: float) -> None:
        """Sets the bounds by what the line carries from the peer now, in bytes a second."""
        most = AHEAD * bytes_per_s
        frames = min(max(most / LEAST_FRAME_BYTES, FRAMES_PER_S[0]), FRAMES_PER_S[1])
        self._set("bytes", most, max(BURST_S * most, BURST_BYTES))
        self._set("frames", frames, BURST_S * frames)

    def heard(self, frame_bytes: int, now: float, *, bad: bool = False) -> None:
        """Charges for a frame that was dealt with. `bad`: it was not the peer's, who does not pay for the
        bytes of others."""
        self._buckets["frames"].charge(BAD_FRAME if bad else 1.0, now)
        if not bad:
            self._buckets["bytes"].charge(frame_bytes, now)

    def wrote(self, now: float, times: int = 1) -> None:
        """Charges for writes to the disk that the peer's frames caused."""
        self._buckets["writes"].charge(times, now)

    def may_hurry(self, now: float) -> bool:
        """Returns whether an object that could be written later may be written now; if so, it is charged."""
        may = self._hurries.left(now) <= BURST_HURRIES - 1
        if may:
            self._hurries.charge(1.0, now)
        return may

    def free_at(self, now: float) -> float:
        """Returns when the peer may be heard again: `now` while it keeps to its share."""
        return max(bucket.free_at(now) for bucket in self._buckets.values())

    def over(self, now: float) -> list[OverShare]:
        """Returns the events to report of a peer that is over its share now."""
        told = []
        for what, bucket in self._buckets.items():
            if bucket.free_at(now) > now and now >= bucket.told_at + TOLD_AGAIN_S:
                bucket.told_at = now
                rate = bucket.amount / max(now - bucket.since, 1.0)
                told.append(OverShare(what, round(rate, 1), round(bucket.per_s, 1)))
        return told

    def _set(self, what: str, per_s: float, burst: float) -> None:
        bucket = self._buckets[what]
        bucket.per_s, bucket.burst = per_s, burst
