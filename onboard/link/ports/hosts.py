"""Whether a host in a port's URL is one that can be asked for: what no name server is ever told is bad input,
and no port that may come."""

from __future__ import annotations

import ipaddress

from onboard.link.ports.port import BadUrl


def check_host(url: str, host: str) -> None:
    """That `host` is an address, or may be a name: no empty part (`pi..local`), none of more than 63 letters.

    Raises BadUrl, where Python's look-up would raise UnicodeError at each try.
    """
    if address_of(host) is not None:
        return
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


_EVERYBODY = ipaddress.ip_address("255.255.255.255")
