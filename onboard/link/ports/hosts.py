"""The hosts in ports' URLs: whether one can be asked for, where it is, and where a peer is that moves.

What no name server is ever told is bad input, and no port that may come. What may have to wait for a network
is done in the background: no daemon waits for one.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from onboard.link.ports.port import BadUrl

T = TypeVar("T")
Address = tuple[Any, ...]
"""(host, port), and in IPv6 (host, port, flow, scope)."""
_EVERYBODY = ipaddress.ip_address("255.255.255.255")


def host_port(url: str, text: str) -> tuple[str, int]:
    """`HOST:PORT`, or `[HOST]:PORT` for IPv6, as it stands in `url`. Raises BadUrl."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or "@" in text:
        raise BadUrl(f"{url}: {text!r} is not HOST:PORT, or [HOST]:PORT for IPv6")
    check_host(url, host)
    return host, port


def check_host(url: str, host: str) -> None:
    """That `host` is an address, or may be a name: no empty part (`pi..local`), none of more than 63 letters.

    Raises BadUrl, where Python's look-up would raise UnicodeError at each try.
    """
    if address_of(host) is None:
        try:
            host.encode("idna")
        except UnicodeError:
            raise BadUrl(f"{url}: {host!r} is no name of a host") from None


def check_peer(url: str, host: str, port: int) -> None:
    """That `host` and `port` may be those of one other end. Raises BadUrl."""
    address = address_of(host)
    if port == 0 or (address is not None and (address.is_multicast or address == _EVERYBODY)):
        raise BadUrl(f"{url}: {host}:{port} is no place of one other end")


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def resolve(host: str, port: int, family: socket.AddressFamily) -> Sequence[Address]:
    """All addresses of a host, at a port; may wait for a name server. Raises OSError."""
    found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
    return list(dict.fromkeys(entry[4] for entry in found))


class InBackground(Generic[T]):
    """Does something on a thread of its own, such as to open a port or to look up a name, one attempt at a
    time. Each call tells how the attempt stands, and begins one if there is none."""

    def __init__(self, attempt: Callable[[], T]) -> None:
        self._try = attempt
        self._thread: threading.Thread | None = None
        self._outcome: T | Exception | None = None

    def __call__(self) -> T | None:
        """What the attempt gave, or None while it lasts. Raises what the attempt raised."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._attempt, daemon=True)
            self._thread.start()
        if self._thread.is_alive():
            return None
        outcome, self._thread, self._outcome = self._outcome, None, None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _attempt(self) -> None:
        try:
            self._outcome = self._try()
        except Exception as error:  # it belongs to whoever asked, on their thread
            self._outcome = error


class Places:
    """Where the peer of a datagram port may be: where it was heard, and where its name says that it is.

    The last place at which it was heard is the peer, whatever its name says: behind address translation, or
    with a new lease, it is elsewhere. While it gives no answer there, all places are asked at once. `peer`:
    where to send, None for nowhere. named: what the URL's host stands for, most often one.
    """

    def __init__(self, named: Sequence[Address] = ()) -> None:
        self._named = list(named)
        self._heard: Address | None = None
        self.peer: Address | None = self._named[0] if self._named else None

    def trust(self, address: Address) -> None:
        self.peer = self._heard = address

    def recall(self, address: Address) -> None:
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
