"""A UDP port carries one frame in one datagram, unframed, and counts what IP and UDP add to it.

A peer that is not up yet is no error: its host's "port unreachable" only says that a datagram was lost. A
host's name that no name server would take is bad input, not a port that may come. What may have to wait for a
network is done in the background: no daemon waits for one."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qs, urlsplit

from hw_profiles import Link
from onboard.link.ports.port import BadUrl, PortEvent, PortLost, Tap
from onboard.wire.framing.frame import Origin

IPV4_UDP_BYTES = 20 + 8  # RFC 791 without options, RFC 768
IPV6_UDP_BYTES = 40 + 8  # RFC 8200
_FRAMES_A_READ = 64  # a flood must not keep the pump from sending
_DYNAMIC = range(1024, 65_536)  # of the system ports (RFC 6335) none was ever given
_EVERYBODY = ipaddress.ip_address("255.255.255.255")

T = TypeVar("T")
Address = tuple[Any, ...]
"""(host, port), and in IPv6 (host, port, flow, scope)."""

# EMSGSIZE: longer than the path's MTU, as the kernel has learned it. The object is refragmented for it.
_LOST_ON_THE_WAY = frozenset({
    errno.EMSGSIZE, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN,
    errno.EHOSTDOWN, errno.EPERM,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class UdpUrl:
    """`udp://HOST:PORT?bind=HOST:PORT`; either end may be missing, not both."""

    peer: tuple[str, int] | None
    bind: tuple[str, int] | None

    @classmethod
    def parse(cls, url: str) -> UdpUrl:
        """Raises BadUrl."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise BadUrl(f"{url}: {error}") from None
        options = parse_qs(parts.query, keep_blank_values=True)
        unknown = sorted(options.keys() - {"bind"})
        if parts.scheme != "udp" or parts.path not in ("", "/") or unknown:
            raise BadUrl(f"{url}: {unknown or parts.path} is not part of udp://HOST:PORT?bind=HOST:PORT")
        peer = host_port(url, parts.netloc) if parts.netloc else None
        if peer is not None:
            host, port = peer
            address = address_of(host)
            if port == 0 or (address is not None and (address.is_multicast or address == _EVERYBODY)):
                raise BadUrl(f"{url}: {host}:{port} is no place of one other end")
        bind = host_port(url, options["bind"][-1]) if "bind" in options else None
        if peer is None and bind is None:
            raise BadUrl(f"{url}: neither a peer nor a port to bind to; udp://HOST:PORT?bind=HOST:PORT")
        return cls(peer, bind)

    @property
    def is_ipv6(self) -> bool:
        """Whether frames travel in IPv6: where an end is a literal IPv6 address. Names are IPv4."""
        address = address_of((self.peer or self.bind or ("", 0))[0])
        return address is not None and address.version == 6

    @property
    def names_hosts(self) -> bool:
        return any(end is not None and address_of(end[0]) is None for end in (self.peer, self.bind))

    @property
    def header_bytes(self) -> int:
        return IPV6_UDP_BYTES if self.is_ipv6 else IPV4_UDP_BYTES


class UdpPort:
    """A `Port` and its `Paths`. The peer is where the URL says until it is heard from elsewhere, or else
    where it is heard from first. Its last address counts, whatever its name says: behind address translation,
    or with a new lease, it moves. It may be at any address of its name, or where it was heard last."""

    def __init__(self, url: str, *, max_frame_bytes: int, tap: Tap | None) -> None:
        """Binds the socket. Raises PortLost, and BadUrl for a URL that is not understood."""
        self.url = url
        self._tap = tap
        self.rx_bytes = self.tx_bytes = 0
        self.broken = 0
        """Datagrams longer than any frame."""
        self.max_frame_bytes = max_frame_bytes
        self._kept: list[tuple[bytes, Address]] = []
        self._from: dict[int, tuple[bytes, Address]] = {}  # the frames of the last read, by their id()
        ends = UdpUrl.parse(url)
        self._family = socket.AF_INET6 if ends.is_ipv6 else socket.AF_INET
        self._header_bytes = ends.header_bytes
        local: Address = ("", 0) if ends.bind is None else self._found(*ends.bind)[0]
        # What the URL's host stands for, most often one.
        self._named: Sequence[Address] = () if ends.peer is None else self._found(*ends.peer)
        self._heard: Address | None = None
        self._to: Address | None = next(iter(self._named), None)
        self._look_up: InBackground[Sequence[Address]] | None = None
        if ends.peer is not None and ends.names_hosts:
            self._look_up = InBackground(partial(resolve, *ends.peer, self._family))
        self._any_port_at = None if local[1] else local
        try:
            self._socket = self._bound(local)
        except OSError as error:
            raise PortLost(url, f"cannot open: {_why(error)}") from error

    @property
    def paths(self) -> UdpPort:
        return self

    @property
    def local(self) -> tuple[str, int]:
        """The host and port that the socket is bound to."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def read(self) -> list[bytes]:
        """At most 64 datagrams a call; one longer than any frame is dropped."""
        self._from = {}
        frames = []
        for _ in range(_FRAMES_A_READ):
            try:
                frame, source = self._socket.recvfrom(self.max_frame_bytes + 1)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _LOST_ON_THE_WAY:
                    continue
                raise PortLost(self.url, f"cannot read: {_why(error)}") from error
            self.rx_bytes += len(frame) + self._header_bytes
            if self._tap is not None:
                self._tap("in", frame)
            if len(frame) > self.max_frame_bytes:
                self.broken += 1
            else:
                self._from[id(frame)] = frame, source
                frames.append(frame)
        return frames

    def write(self, frame: bytes, lead: int = 0) -> None:
        """A datagram has no lead. While no peer is known the frame goes nowhere, as from a radio."""
        if self._to is not None:
            self.answer(frame, self._to)

    def flush(self) -> None:
        while self._kept:
            frame, to = self._kept[0]
            try:
                self._socket.sendto(frame, to)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _LOST_ON_THE_WAY:
                    raise PortLost(self.url, f"cannot write: {_why(error)}") from error
            self._kept.pop(0)
            self.tx_bytes += len(frame) + self._header_bytes
            if self._tap is not None:
                self._tap("out", frame)

    def discard(self) -> None:
        self._kept.clear()

    def kept_bytes(self) -> int:
        return sum(len(frame) + self._header_bytes for frame, _ in self._kept)

    def queued_bytes(self) -> int:
        """The kernel's part is bounded by the socket's send buffer, and is not told in bytes of the wire."""
        return self.kept_bytes()

    def distrust(self, frame: bytes) -> None:
        """A datagram comes whole or not at all."""

    def fault(self, link: Link) -> PortEvent | None:
        return None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    # -- where the peer is -----------------------------------------------------------------------------

    @property
    def peer(self) -> str | None:
        return None if self._to is None else _text(self._to)

    def origin(self, frame: bytes) -> Origin:
        return self._from[id(frame)][1]

    def trust(self, origin: Origin) -> None:
        assert isinstance(origin, tuple), f"{origin!r} is no address"
        self._to = self._heard = origin

    def answer(self, frame: bytes, origin: Origin) -> None:
        assert isinstance(origin, tuple), f"{origin!r} is no address"
        self._kept.append((frame, origin))
        self.flush()

    @property
    def local_port(self) -> int:
        return 0 if self._any_port_at is None else self.local[1]

    def reclaim(self, local_port: int) -> str:
        if self._any_port_at is None or self.local[1] == local_port or local_port not in _DYNAMIC:
            return ""
        host, _, *rest = self._any_port_at
        try:
            again = self._bound((host, local_port, *rest))
        except OSError as error:
            return _why(error)
        self._socket.close()
        self._socket = again
        return ""

    def recall(self, peer: str) -> None:
        """An address that this port cannot send to is dropped."""
        with contextlib.suppress(BadUrl, OSError):
            host, number = host_port(self.url, peer)
            if address_of(host) is not None:
                known = resolve(host, number, self._family)[0]
                self._heard, self._to = self._heard or known, self._to or known

    def places(self) -> Sequence[Address]:
        heard = [] if self._heard is None else [self._heard]
        return list(dict.fromkeys([*heard, *self._named]))

    def seek(self) -> bool:
        if self._look_up is None:
            return False
        try:
            found = self._look_up()
        except OSError:  # no answer: what was found before is as good as ever
            return False
        if found is None:
            return False
        is_new = not set(found) <= set(self._named)
        self._named = found
        if self._heard is None and self._to not in found:
            self._to = found[0]
        return is_new

    def _found(self, host: str, port: int) -> Sequence[Address]:
        try:
            return resolve(host, port, self._family)
        except OSError as error:
            raise PortLost(self.url, f"cannot open: {host}: {error.strerror or error}") from error

    def _bound(self, local: Address) -> socket.socket:
        made = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            made.setblocking(False)
            # Two frames (the kernel doubles it): of its 212,992 B by default a slow interface would hold a
            # hundred frames, and what is urgent would wait behind them.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.max_frame_bytes)
            if self._family == socket.AF_INET6:  # or a v4 peer comes in with 20 B less than are counted
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Never connected: a peer that moved would not be heard, nor would a change of this end's own
            # address be followed.
            made.bind(local)
        except OSError:
            made.close()
            raise
        return made


def _text(address: Address) -> str:
    host, number = address[:2]
    if len(address) == 4 and address[3] and "%" not in host:
        host += f"%{address[3]}"
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


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
