"""Where the peer of a port is: learned from proof alone, kept with the state, looked for when it is lost."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace

from onboard.link.ports.port import Port
from onboard.link.spool import Addresses, Spool
from onboard.wire.framing.frame import Origin
from onboard.wire.session import Session

SEEK_S = (
    5.0  # while the peer gives no answer its name is looked up this often, and the answer taken next time
)
KEEP_S = 10.0  # where the peer is reaches the disk this often: two paths in turn must wear no card out
KEEP_AT_ONCE = 4  # but so many moves in a row at once, as a kill may follow


@dataclass(frozen=True, slots=True)
class PeerUnknown:
    """The port at `url` does not say where the peer is, so nothing is sent until it is heard; told once until
    it is known."""

    url: str


@dataclass(frozen=True, slots=True)
class PeerMoved:
    """The peer of the port at `url` is at the address `peer`, which was not known, or is no more where it was
    before."""

    url: str
    peer: str


@dataclass(frozen=True, slots=True)
class LocalPortTaken:
    """The port at `url` was `local_port` of this computer, which cannot be had now and `why`: it is another
    one, and a peer that has moved meanwhile does not find this end."""

    url: str
    local_port: int
    why: str


class Whereabouts:
    """Of the peer of `session`, over all ports that its pump opens one after the other."""

    def __init__(self, session: Session, spool: Spool) -> None:
        self._session, self._spool = session, spool
        self._unknown_told = False
        self._peer = ""  # as heard last, or as the port's URL says
        self._met = False  # it was heard through this port
        self._keep_at = -math.inf
        self._seek_at = -math.inf

    def opened(self, port: Port, now: float) -> list[LocalPortTaken]:
        """This is the port from now on. Both ends are thought to be where they were when this program ran
        last: the peer may have moved, and then it must find this end there."""
        paths = port.paths
        self._seek_at = now + SEEK_S
        self._met = False
        if paths is None:
            self._session.presence.is_reachable = True
            return []
        kept = self._spool.addresses(port.url)
        why = paths.reclaim(kept.local_port)
        if kept.peer:
            paths.recall(kept.peer)
        self._peer = paths.peer or ""
        self._session.presence.is_reachable = paths.peer is not None
        if not kept.local_port and paths.local_port:  # before the peer can hear of it
            self._write(port, replace(kept, local_port=paths.local_port))
        return [LocalPortTaken(port.url, kept.local_port, why)] if why else []

    def origin(self, port: Port, frame: bytes) -> Origin:
        """Where a frame that was just read came from."""
        return None if port.paths is None else port.paths.origin(frame)

    def heard(self, port: Port, origin: Origin, now: float) -> list[PeerMoved]:
        """The session was given a frame from there: it may have proved that the peer is there now."""
        if port.paths is None or not self._session.presence.proof_of_life:
            return []
        port.paths.trust(origin)
        before, self._peer = self._peer, port.paths.peer or ""
        self._unknown_told, self._met = False, True
        self._session.presence.is_reachable = True
        self.keep(port, now)
        return [] if self._peer == before else [PeerMoved(port.url, self._peer)]

    def keep(self, port: Port, now: float = math.inf) -> None:
        """So that this end speaks to its peer at once when it starts again. A disk that refuses loses that,
        until the next time."""
        if port.paths is None or not self._met or now < self._keep_at - (KEEP_AT_ONCE - 1) * KEEP_S:
            return
        found = Addresses(self._peer, port.paths.local_port)
        if self._spool.addresses(port.url) != found:
            self._keep_at = max(now, self._keep_at) + KEEP_S
            self._write(port, found)

    def look(self, port: Port, now: float) -> list[PeerUnknown]:
        """Time has passed: looks where else the peer may be, while it gives no answer."""
        if port.paths is None:
            return []
        if port.paths.peer is None:
            told, self._unknown_told = self._unknown_told, True
            return [] if told else [PeerUnknown(port.url)]
        if now >= self._seek_at and self._session.presence.in_doubt:
            self._seek_at = now + SEEK_S
            if port.paths.seek():
                self._session.presence.ask()
        return []

    def write(self, port: Port, frame: bytes) -> None:
        """Sends the frame that the session gave last, to where it is to go: while the peer gives no answer,
        everywhere where it may be."""
        to = self._session.presence.destination
        if port.paths is None:
            port.write(frame)
        elif to is not None:
            port.paths.answer(frame, to)
        elif self._session.presence.in_doubt:
            for place in port.paths.places():
                port.paths.answer(frame, place)
        else:
            port.write(frame)

    def _write(self, port: Port, addresses: Addresses) -> None:
        with contextlib.suppress(OSError):
            self._spool.keep_addresses(port.url, addresses)
