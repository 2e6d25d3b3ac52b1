"""A simulated radio link between two ends, repeatable from a seed.

Nothing here waits or reads a clock: `now` is an argument in seconds that never runs backwards. The fate of a
side's n-th frame (lost, flipped bits, duplicated, reordered) is drawn from the seed, the side and n alone;
only collisions and windows depend on time.

A frame takes `len * bits_per_byte / rate` seconds of air after the side's earlier frames, and then the delay.
On a half-duplex link, a side first keys its transmitter for `keying_s` if the other side has spoken since its
last frame or it has been silent for longer than `keying_s`; while it transmits it hears nothing."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Literal

from hw_profiles import Link

Side = Literal["ground", "board"]
SIDES: tuple[Side, Side] = ("ground", "board")

# A frame that others overtake is held back by one to this many of its own air times: up to, and past, the
# three later packets that TCP's fast retransmit takes for a loss (RFC 5681 section 3.2).
_REORDER_AIRTIMES = 4.0


@dataclass(frozen=True)
class Burst:
    """Bursty losses: Gilbert's chain (1960), whose good state loses no frame and whose bad state loses all.

    mean_loss: share of frames lost, 0 <= mean_loss < 1; mean_frames: mean length of a burst, >= 1 frames.
    Raises ValueError if the good state would have to last less than one frame."""

    mean_loss: float
    mean_frames: float

    def __post_init__(self) -> None:
        if not 0 <= self.mean_loss < 1:
            raise ValueError(f"burst mean loss {self.mean_loss} is not in 0 <= loss < 1")
        if not self.mean_frames >= 1:
            raise ValueError(f"burst length {self.mean_frames} is below one frame")
        if self.to_bad > 1:
            raise ValueError(f"no chain loses {self.mean_loss} in bursts of {self.mean_frames} frames")

    @property
    def to_bad(self) -> float:
        """Probability of good -> bad per frame, from stationarity: loss = to_bad / (to_bad + to_good)."""
        return self.mean_loss / (self.mean_frames * (1 - self.mean_loss))

    @property
    def to_good(self) -> float:
        """Probability of bad -> good per frame: a burst's length is geometric."""
        return 1 / self.mean_frames


@dataclass(slots=True)
class Counters:
    """What became of the frames that one side sent, counted at its port."""

    frames: int = 0
    bytes: int = 0  # on the wire: framing and per-frame overhead included
    airtime_s: float = 0.0  # transmitter on: keying included
    delivered: int = 0  # copies handed to the other side
    lost: int = 0  # by the seed: frame loss or burst
    collided: int = 0  # arrived while the receiver's own transmitter was on
    cut: int = 0  # not wholly inside a contact window
    flipped: int = 0  # delivered with at least one wrong bit
    duplicated: int = 0
    reordered: int = 0


@dataclass(frozen=True, kw_only=True)
class Impairments:
    """What happens to frames beyond the link's profile. Raises ValueError for a value out of range."""

    frame_loss: float | None = None  # probability that a frame is lost; None for the profile's
    burst: Burst | None = None  # loses frames in place of `frame_loss`
    bit_error_rate: float | None = None  # probability that a bit is wrong; None for the profile's
    duplicate: float = 0.0  # probability that a frame arrives twice
    reorder: float = 0.0  # probability that a frame is held back while others pass it
    windows: Sequence[tuple[float, float]] | None = None
    """Contacts (open_s, close_s) on the time axis of `now`, ascending; None: always open. A frame that is not
    wholly inside one is lost."""
    cut_after_bytes: int | None = None
    """The board's byte at which the contact closes, once, for `cut_s` seconds."""
    cut_s: float = math.inf
    overhead_bytes: int = 0  # added to every frame (IP and UDP headers)

    def __post_init__(self) -> None:
        for name in ("frame_loss", "bit_error_rate", "duplicate", "reorder"):
            if not 0 <= (getattr(self, name) or 0.0) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not a probability")
        windows = self.windows or ()
        for opens, closes in windows:
            if not opens < closes:
                raise ValueError(f"window {opens}:{closes} closes before it opens")
        for (_, closes), (opens, _) in pairwise(windows):
            if opens < closes:
                raise ValueError(f"window that opens at {opens} overlaps the one that closes at {closes}")
        after, cut_s = self.cut_after_bytes, self.cut_s
        if cut_s < 0 or (after is not None and after < 0):
            raise ValueError(f"cut after {after} bytes for {cut_s} s: neither may be negative")


NONE = Impairments()


class Channel:
    """A seeded link between the sides "ground" and "board": frames and `now` go in, frames come out."""

    def __init__(self, link: Link, impairments: Impairments = NONE, *, seed: int) -> None:
        self.link = link
        given = self._impairments = impairments
        self._loss = link.frame_loss if given.frame_loss is None else given.frame_loss
        self._ber = link.bit_error_rate if given.bit_error_rate is None else given.bit_error_rate
        self._outage: tuple[float, float] | None = None
        rates: dict[Side, float] = {"ground": link.rate_down_bps, "board": link.rate_up_bps}
        self._air = {side: _Air(rate, f"{seed}/{side}", given.burst) for side, rate in rates.items()}
        self._arrivals: list[tuple[float, int, _Arrival]] = []  # heap; the count keeps ties in sending order
        self._order = count()

    def airtime_s(self, side: Side, frame_bytes: int) -> float:
        """Returns the airtime of one frame from that side, with overhead and without keying."""
        wire_bytes = frame_bytes + self._impairments.overhead_bytes
        return wire_bytes * self.link.bits_per_byte / self._air[side].rate_bps

    def send(self, side: Side, frame: bytes, now: float) -> None:
        """Puts a frame on the air after that side's earlier ones."""
        air = self._air[side]
        on = max(now, air.busy_until)
        start = on + self._keying_s(side, on)
        end = start + self.airtime_s(side, len(frame))
        wire_bytes = len(frame) + self._impairments.overhead_bytes
        if side == "board":
            before, limit = air.counters.bytes, self._impairments.cut_after_bytes
            if limit is not None and self._outage is None and wire_bytes and before + wire_bytes >= limit:
                at = start + (end - start) * (limit - before) / wire_bytes
                self._outage = (at, at + self._impairments.cut_s)
        air.counters.frames += 1
        air.counters.bytes += wire_bytes
        air.counters.airtime_s += end - on
        air.on_at, air.busy_until = on, end
        if self.link.half_duplex:
            air.transmissions.append((on, end))

        arrival = _Arrival(side, frame, start, end, *air.fate(self._loss, self._impairments))
        self._schedule(end + self.link.delay_s, arrival)

    def due(self, now: float) -> list[tuple[Side, bytes]]:
        """Returns the frames that have arrived by now, oldest first, each with the side that hears it."""
        heard: list[tuple[Side, bytes]] = []
        while self._arrivals and self._arrivals[0][0] <= now:
            at, _, arrival = heapq.heappop(self._arrivals)
            if self._survives(arrival, at):
                self._air[arrival.side].counters.delivered += 1
                heard.append((other(arrival.side), arrival.frame))
        return heard

    def next_due(self) -> float:
        """When `due` may next return a frame; inf if nothing is on its way."""
        return self._arrivals[0][0] if self._arrivals else math.inf

    def busy_until(self, side: Side) -> float:
        """When the last frame that side sent will have left its antenna; -inf before any."""
        return self._air[side].busy_until

    def is_open(self, now: float) -> bool:
        return self._inside(now, now)

    def counters(self, side: Side) -> Counters:
        """Returns that side's counts so far, including frames still queued for the air."""
        return replace(self._air[side].counters)

    # -- the rules, one each -------------------------------------------------------------------------

    def _keying_s(self, side: Side, on: float) -> float:
        if not self.link.half_duplex:
            return 0.0
        off_at = self._air[side].busy_until
        if on <= off_at:
            return 0.0  # it is still on, whatever the other does
        turned = self._air[other(side)].on_at >= off_at
        return self.link.keying_s if turned or on - off_at > self.link.keying_s else 0.0

    def _inside(self, start: float, end: float) -> bool:
        if self._outage and start < self._outage[1] and end >= self._outage[0]:
            return False
        windows = self._impairments.windows
        return windows is None or any(opens <= start and end <= closes for opens, closes in windows)

    def _heard_silence(self, arrival: _Arrival) -> bool:
        if not self.link.half_duplex:
            return True
        first, last = arrival.start + self.link.delay_s, arrival.end + self.link.delay_s
        transmissions = self._air[other(arrival.side)].transmissions
        # Frames of one side arrive in the order they left, so what ended before this one began is history.
        while transmissions and transmissions[0][1] <= first:
            transmissions.popleft()
        return all(on >= last or off <= first for on, off in transmissions)

    def _survives(self, arrival: _Arrival, at: float) -> bool:
        """Returns whether the receiver hears the frame; counts losses, schedules copies and late frames."""
        counters = self._air[arrival.side].counters
        if arrival.settled:  # a copy, or one held back: it still needs the contact to be open
            sent = at - self.link.delay_s
            counters.cut += not self._inside(sent, sent)
            return self._inside(sent, sent)
        if not self._inside(arrival.start, arrival.end):
            counters.cut += 1
            return False
        if not self._heard_silence(arrival):
            counters.collided += 1
            return False
        if arrival.lost:
            counters.lost += 1
            return False
        arrival.frame = self._flip(arrival)
        arrival.settled = True
        airtime_s = arrival.end - arrival.start
        if arrival.duplicated:
            counters.duplicated += 1
            self._schedule(at + airtime_s, arrival)
        if arrival.held_airtimes:
            counters.reordered += 1
            self._schedule(at + arrival.held_airtimes * airtime_s, arrival)
            return False
        return True

    def _schedule(self, at: float, arrival: _Arrival) -> None:
        heapq.heappush(self._arrivals, (at, next(self._order), arrival))

    def _flip(self, arrival: _Arrival) -> bytes:
        wrong = _bernoulli(random.Random(arrival.flips), 8 * len(arrival.frame), self._ber)
        if not wrong:
            return arrival.frame
        self._air[arrival.side].counters.flipped += 1
        data = bytearray(arrival.frame)
        for bit in wrong:
            data[bit >> 3] ^= 0x80 >> (bit & 7)
        return bytes(data)


@dataclass(slots=True, eq=False)
class _Arrival:
    side: Side  # that sent it
    frame: bytes
    start: float  # of the first bit, at the sender
    end: float
    lost: bool
    duplicated: bool
    held_airtimes: float  # 0: not held back
    flips: int  # seed of the frame's own bit errors
    settled: bool = False  # has passed windows, collisions and loss: a copy or a late one


class _Air:
    def __init__(self, rate_bps: float, seed: str, burst: Burst | None) -> None:
        self.rate_bps = rate_bps
        self.on_at = self.busy_until = -math.inf  # the last transmission
        self.transmissions: deque[tuple[float, float]] = deque(maxlen=4096)
        self.counters = Counters()
        self._random = random.Random(seed)
        self._burst = burst
        self._bad = burst is not None and self._random.random() < burst.mean_loss

    def fate(self, loss: float, given: Impairments) -> tuple[bool, bool, float, int]:
        """Draws an `_Arrival`'s last fields, always with as many draws: no probability shifts other fates."""
        draw = self._random.random
        lost, doubled, held, how_long = draw(), draw(), draw(), draw()
        flips = self._random.getrandbits(64)
        if (burst := self._burst) is None:
            is_lost = lost < loss
        else:
            is_lost = self._bad
            self._bad = lost >= burst.to_good if is_lost else lost < burst.to_bad
        held_airtimes = 1 + (_REORDER_AIRTIMES - 1) * how_long if held < given.reorder else 0.0
        return is_lost, doubled < given.duplicate, held_airtimes, flips


def _bernoulli(source: random.Random, n: int, p: float) -> list[int]:
    """Returns the indices of successes among n trials of probability p, jumping over geometric gaps."""
    if p <= 0:
        return []
    if p >= 1:
        return list(range(n))
    hits: list[int] = []
    scale = 1 / math.log1p(-p)
    at = -1
    while True:
        # 1 - random() is in (0, 1], so the logarithm exists; min keeps a huge gap an ordinary integer.
        at += 1 + int(min(math.log(1 - source.random()) * scale, n))
        if at >= n:
            return hits
        hits.append(at)


def other(side: Side) -> Side:
    return "board" if side == "ground" else "ground"
