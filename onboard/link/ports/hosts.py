"""The hosts in ports' URLs: whether one is valid, and which addresses it has.

What no name server would take is bad input, not a port that may come. What may have to wait for a network is
done in the background: no daemon waits for one."""

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
    """Parse `HOST:PORT`, or `[HOST]:PORT` for IPv6, as it stands in `url`. Raises BadUrl."""
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
    """Check that `host` is an address, or may be a name: no empty part (`pi..local`), none of more than 63
    letters. Raises BadUrl, where Python's look-up would raise UnicodeError at each try."""
    if address_of(host) is None:
        try:
            host.encode("idna")
        except UnicodeError:
            raise BadUrl(f"{url}: {host!r} is no name of a host") from None


def check_peer(url: str, host: str, port: int) -> None:
    """Check that `host` and `port` may be those of one other end. Raises BadUrl."""
    address = address_of(host)
    if port == 0 or (address is not None and (address.is_multicast or address == _EVERYBODY)):
        raise BadUrl(f"{url}: {host}:{port} is no place of one other end")


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address; None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def resolve(host: str, port: int, family: socket.AddressFamily) -> Sequence[Address]:
    """Return all addresses of a host; may wait for a name server. Raises OSError."""
    found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
    return list(dict.fromkeys(entry[4] for entry in found))


class InBackground(Generic[T]):
    """Runs `attempt`, such as to open a port or to look up a name, on a thread, one at a time. Each call
    tells how the attempt stands, and begins one if there is none."""

    def __init__(self, attempt: Callable[[], T]) -> None:
        self._try = attempt
        self._thread: threading.Thread | None = None
        self._outcome: T | Exception | None = None

    def __call__(self) -> T | None:
        """Return the attempt's result, or None while it lasts. Raises what the attempt raised."""
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
