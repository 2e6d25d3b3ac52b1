"""Where the peer of a port is: learned from proof alone, kept with the state, looked for when it is lost."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from onboard.link.port import Port
from onboard.link.spool import Spool
from onboard.wire.send import Origin
from onboard.wire.session import Session

SEEK_S = (
    5.0  # while the peer gives no answer its name is looked up this often, and the answer taken next time
)
KEEP_S = 10.0  # where the peer is reaches the disk this often: two paths in turn must wear no card out


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


class Whereabouts:
    """Of the peer of `session`, over all ports that its pump opens one after the other."""

    def __init__(self, session: Session, spool: Spool) -> None:
        self._session, self._spool = session, spool
        self._unknown_told = False
        self._peer = ""  # as heard last, or as the port's URL says
        self._keep_at = -math.inf
        self._seek_at = -math.inf

    def opened(self, port: Port, now: float) -> None:
        """This is the port from now on. The peer is thought to be where it was when this program ran last."""
        paths = port.paths
        if paths is not None and (peer := self._spool.peer(port.url)):
            paths.recall(peer)
        self._peer = "" if paths is None else paths.peer or ""
        self._seek_at = now + SEEK_S
        self._session.presence.is_reachable = paths is None or paths.peer is not None

    def origin(self, port: Port, frame: bytes) -> Origin:
        """Where a frame that was just read came from."""
        return None if port.paths is None else port.paths.origin(frame)

    def heard(self, port: Port, origin: Origin, now: float) -> list[PeerMoved]:
        """The session was given a frame from there: it may have proved that the peer is there now."""
        if port.paths is None or not self._session.presence.proof_of_life:
            return []
        port.paths.trust(origin)
        before, self._peer = self._peer, port.paths.peer or ""
        self._unknown_told = False
        self._session.presence.is_reachable = True
        self.keep(port, now)
        return [] if self._peer == before else [PeerMoved(port.url, self._peer)]

    def keep(self, port: Port, now: float = math.inf) -> None:
        """So that this end speaks to its peer at once when it starts again. A disk that refuses loses that,
        until the next time."""
        if self._peer and now >= self._keep_at and self._spool.peer(port.url) != self._peer:
            self._keep_at = now + KEEP_S
            with contextlib.suppress(OSError):
                self._spool.keep_peer(port.url, self._peer)

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
