"""The peer of a link as its pump knows it: what it may cost this end, and where it is.

Whoever holds a key may send anything, as often as the line carries it. A peer that costs more than an honest
one is not heard until its debt is paid; meanwhile its frames wait in the port, and overflow at its own loss.
So one link cannot take the time of the others. Each bound is a leaky bucket far above honest needs: a peer
that keeps to its link's rate uses half of the bytes, and its objects are saved four times a second.

The peer's address is learned from proof alone, kept in the spool's folder, and sought again."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from onboard.link.ports.port import Port, PortEvent
from onboard.storage.files import checked, discard_file, read_file, replace_durably, unchecked
from onboard.wire.framing.frame import Origin
from onboard.wire.session import Session

AHEAD = 2.0  # times the line's rate
BURST_S = 4.0  # of that, which a port may hold when this end was paused
LEAST_FRAME_BYTES = 64
FRAMES_PER_S = (1000.0, 20_000.0)  # at least and at most, whatever the line carries
BURST_BYTES = 1 << 20  # at least
WRITES_PER_S, BURST_WRITES = 32.0, 256.0
HURRIES_PER_S, BURST_HURRIES = 1.0, 4.0  # objects saved as soon as they are whole
BAD_FRAME = 0.05  # of the cost of an authentic one: 10 us
TOLD_AGAIN_S = 600.0
_RATE_OVER_S = 10.0

SEEK_S = 5.0  # how often a silent peer's name is looked up; what is found is used next
KEEP_S = 10.0  # how often an address is stored: two alternating paths must not wear a card out
KEEP_AT_ONCE = 4  # moves in a row that are stored at once, as a kill may follow
_MAX_NOTE_BYTES = 4096
_UNKNOWN = "nothing is sent before the other end is heard; its port must say where this one is"


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
        self._frames = _Bucket(FRAMES_PER_S[0], FRAMES_PER_S[0])
        self._bytes = _Bucket(BURST_BYTES, BURST_BYTES)
        self._writes = _Bucket(WRITES_PER_S, BURST_WRITES)
        self._buckets = {"frames": self._frames, "bytes": self._bytes, "writes": self._writes}
        self._hurries = _Bucket(HURRIES_PER_S, BURST_HURRIES)

    def line(self, bytes_per_s: float) -> None:
        """Set the bounds by what the line carries from the peer now."""
        most = AHEAD * bytes_per_s
        frames = min(max(most / LEAST_FRAME_BYTES, FRAMES_PER_S[0]), FRAMES_PER_S[1])
        self._bytes.per_s, self._bytes.burst = most, max(BURST_S * most, BURST_BYTES)
        self._frames.per_s, self._frames.burst = frames, BURST_S * frames

    def heard(self, frame_bytes: int, now: float, *, bad: bool = False) -> None:
        """Charge for a handled frame. `bad`: it was not the peer's, which does not pay for others' bytes."""
        self._frames.charge(BAD_FRAME if bad else 1.0, now)
        if not bad:
            self._bytes.charge(frame_bytes, now)

    def wrote(self, now: float, times: int = 1) -> None:
        self._writes.charge(times, now)

    def may_hurry(self, now: float) -> bool:
        """Return whether an object may be written now and not later, and charge it if so."""
        may = self._hurries.left(now) <= BURST_HURRIES - 1
        if may:
            self._hurries.charge(1.0, now)
        return may

    def free_at(self, now: float) -> float:
        """Return when the peer may be heard again: `now` while it keeps to its share."""
        return max(bucket.free_at(now) for bucket in self._buckets.values())

    def over(self, now: float) -> list[PortEvent]:
        """Return the events to report of a peer that is over its share now, each every 10 min."""
        told = []
        for what, bucket in self._buckets.items():
            if bucket.free_at(now) > now and now >= bucket.told_at + TOLD_AGAIN_S:
                bucket.told_at = now
                rate_per_s = round(bucket.amount / max(now - bucket.since, 1.0), 1)  # of the last seconds
                rates = {"rate_per_s": rate_per_s, "bound_per_s": round(bucket.per_s, 1)}
                told.append(PortEvent("over-its-share", {"what": what, **rates}))
        return told


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of the datagram port at `url`, as a folder's file `peer` keeps them. `peer`: the peer's
    last one, empty for none; `local_port`: the port given to a URL that asked for any, 0 for none."""

    url: str
    peer: str = ""
    local_port: int = 0

    @classmethod
    def load(cls, folder: Path) -> Addresses:
        """Return what `store` stored last; empty addresses where that is damaged or missing."""
        path = folder / "peer"
        try:
            url, peer, number, _ = unchecked(read_file(path, _MAX_NOTE_BYTES)).decode().split("\n")
            return cls(url, peer, int(number))
        except FileNotFoundError:  # nowhere yet
            pass
        except (OSError, ValueError):  # damaged, or of another version: it will be heard
            discard_file(path)
        return cls("")

    def store(self, folder: Path) -> None:
        """Raises OSError."""
        body = f"{self.url}\n{self.peer}\n{self.local_port}\n".encode()
        replace_durably(folder / "peer", checked(body))


class Whereabouts:
    """Tracks where the peer of `session` is, over all ports that its pump opens in turn."""

    def __init__(self, session: Session, folder: Path, tell: Callable[[PortEvent], None]) -> None:
        self._presence, self._folder, self._tell = session.presence, folder, tell
        self._kept = Addresses.load(folder)
        self._unknown_told = False
        self._peer = ""  # as heard last, or as the port's URL says
        self._met = False  # whether it was heard through this port
        self._keep_at = -math.inf
        self._seek_at = -math.inf

    def opened(self, port: Port, now: float) -> None:
        """Use this port. Both ends are presumed where they were in the last run: each must find the other."""
        paths = port.paths
        self._seek_at = now + SEEK_S
        self._met = False
        self._presence.is_reachable = True
        if paths is None:
            return
        kept = self._kept if self._kept.url == port.url else Addresses(port.url)
        if why := paths.reclaim(kept.local_port):
            taken = {"port": port.url, "local_port": kept.local_port, "why": why}
            self._tell(PortEvent("local-port-taken", taken))
        if kept.peer:
            paths.recall(kept.peer)
        self._peer = paths.peer or ""
        self._presence.is_reachable = paths.peer is not None
        if not kept.local_port and paths.local_port:  # before the peer can hear of it
            self._store(replace(kept, local_port=paths.local_port))

    def heard(self, port: Port, origin: Origin, now: float) -> None:
        """Note a frame that the session took: it may have proved that the peer is there now."""
        if port.paths is None or not self._presence.proof_of_life:
            return
        port.paths.trust(origin)
        before, self._peer = self._peer, port.paths.peer or ""
        self._unknown_told, self._met = False, True
        self._presence.is_reachable = True
        self.keep(port, now)
        if self._peer != before:
            self._tell(PortEvent("peer-at", {"port": port.url, "at": self._peer}, logging.INFO))

    def keep(self, port: Port, now: float = math.inf) -> None:
        """Store the address, so that this end speaks to its peer at once when it starts again."""
        if port.paths is None or not self._met or now < self._keep_at - (KEEP_AT_ONCE - 1) * KEEP_S:
            return
        found = Addresses(port.url, self._peer, port.paths.local_port)
        if self._kept != found:
            self._keep_at = max(now, self._keep_at) + KEEP_S
            self._store(found)

    def look(self, port: Port, now: float) -> None:
        """Seek the peer elsewhere while it gives no answer."""
        if port.paths is None:
            return
        if port.paths.peer is None:
            if not self._unknown_told:
                self._unknown_told = True
                self._tell(PortEvent("peer-unknown", {"port": port.url, "why": _UNKNOWN}))
        elif now >= self._seek_at and self._presence.in_doubt:
            self._seek_at = now + SEEK_S
            if port.paths.seek():
                self._presence.ask()

    def write(self, port: Port, frame: bytes, lead: int) -> None:
        """Send the session's frame to its destination, or to all places while the peer gives no answer."""
        to = self._presence.destination
        if port.paths is not None and to is not None:
            port.paths.answer(frame, to)
        elif port.paths is not None and self._presence.in_doubt:
            for place in port.paths.places():
                port.paths.answer(frame, place)
        else:
            port.write(frame, lead)

    def _store(self, addresses: Addresses) -> None:
        """A disk that refuses loses the addresses until the next time."""
        with contextlib.suppress(OSError):
            addresses.store(self._folder)
            self._kept = addresses
