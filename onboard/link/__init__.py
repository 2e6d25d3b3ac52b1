"""Opens ports: the only part of the flight side that touches a device, a socket or the spool's files.

What a port's URL may be: see `onboard.link.ports.schemes`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from hw_profiles import Link
from onboard.link.ports.opening import InBackground
from onboard.link.ports.port import BadUrl, Port, PortFacts, PortLost, Tap
from onboard.link.ports.schemes import scheme_of
from onboard.link.spool import Spool

__all__ = [
    "BadUrl", "Port", "PortFacts", "PortLost", "Spool", "facts_of", "open_port", "opener", "wire_bytes",
]  # fmt: skip


def open_port(url: str, link: Link, tap: Tap | None = None) -> Port:
    """The open port at `url`; see `PortScheme.open`. Raises BadUrl, PortLost."""
    return scheme_of(url).open(url, link, tap)


def opener(url: str, link: Link, tap: Tap | None = None) -> Callable[[], Port | None]:
    """What a pump opens the port with: at once, or in the background where a network has to answer first."""
    at_once = partial(open_port, url, link, tap)
    return InBackground(at_once) if facts_of(url).needs_network else at_once


@lru_cache(maxsize=4096)  # asked a dozen times for every frame: reading the URL took half of a sender's time
def facts_of(url: str) -> PortFacts:
    """What a port's URL tells before the port is open. Raises BadUrl."""
    return scheme_of(url).facts(url)


def wire_bytes(url: str, frame_bytes: int) -> int:
    """The bytes that a frame of `frame_bytes` takes on the port at `url`. Raises BadUrl."""
    return facts_of(url).wire_bytes(frame_bytes)
