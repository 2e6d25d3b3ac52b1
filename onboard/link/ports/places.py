"""Where the peer of a datagram port may be: where it was heard, and where its name says that it is.

The last place at which it was heard is the peer, whatever its name says: behind address translation, or with
a new lease, it is elsewhere. While it gives no answer there, all places are asked at once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

Address = tuple[Any, ...]
"""(host, port), and in IPv6 (host, port, flow, scope)."""
Resolve = Callable[[str, int, socket.AddressFamily], Sequence[Address]]
"""All addresses of a host, at a port; may wait for a name server. Raises OSError."""


def resolve(host: str, port: int, family: socket.AddressFamily) -> Sequence[Address]:
    """As the system does it. Raises OSError."""
    found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
    return list(dict.fromkeys(entry[4] for entry in found))


class Places:
    """`peer`: where to send, None for nowhere. named: what the URL's host stands for, most often one."""

    def __init__(self, named: Sequence[Address] = ()) -> None:
        self._named = list(named)
        self._heard: Address | None = None
        self.peer: Address | None = self._named[0] if self._named else None

    def trust(self, address: Address) -> None:
        """The peer is there now."""
        self.peer = self._heard = address

    def recall(self, address: Address) -> None:
        """The peer was there once."""
        self._heard = self._heard or address
        self.peer = self.peer or address

    def name(self, addresses: Sequence[Address]) -> bool:
        """The name stands for these now, and for no others; whether one of them is new."""
        new = not set(addresses) <= set(self._named)
        self._named = list(addresses)
        if self._heard is None and self.peer not in self._named:
            self.peer = self._named[0]
        return new

    def all(self) -> list[Address]:
        """Where the peer may be, the most likely place first."""
        heard = [] if self._heard is None else [self._heard]
        return list(dict.fromkeys([*heard, *self._named]))
