"""A UDP port carries one frame in one datagram, unframed, and counts what IP and UDP add to it.

A peer that is not up yet is no error: its host's "port unreachable" only says that a datagram was lost.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Any
from urllib.parse import parse_qs, urlsplit

from onboard.link.port import BadUrl, PortLost, Tap

IPV4_UDP_BYTES = 20 + 8  # RFC 791 without options, RFC 768
IPV6_UDP_BYTES = 40 + 8  # RFC 8200
_FRAMES_A_READ = 64  # a flood must not keep the pump from sending

_LOST_ON_THE_WAY = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM})

Address = tuple[Any, ...]  # (host, port), and in IPv6 (host, port, flow, scope)


class UdpPort:
    """See `Port`. With a peer in the URL only that peer is heard; without, the first that proves authentic
    is the peer, and the last if it moves (behind address translation it does)."""

    def __init__(self, url: str, *, max_frame_bytes: int, tap: Tap | None) -> None:
        """Binds the socket. Raises PortLost, and BadUrl for a URL that is not understood."""
        self.url = url
        self._tap = tap
        self.rx_bytes = self.tx_bytes = self._overlong = 0
        self.max_frame_bytes = max_frame_bytes
        self._kept: list[bytes] = []
        self._from: list[tuple[bytes, Address]] = []
        peer, bind = _ends(url)
        self._family = socket.AF_INET6 if is_ipv6(url) else socket.AF_INET
        self._header_bytes = IPV6_UDP_BYTES if is_ipv6(url) else IPV4_UDP_BYTES
        self._peer = None if peer is None else _resolve(url, peer, self._family)
        self._fixed = peer is not None
        local = _resolve(url, bind, self._family) if bind is not None else None
        self._socket = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            # Two frames (the kernel doubles it): of its 212,992 B by default a slow interface would hold a
            # hundred frames, and what is urgent would wait behind them.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max_frame_bytes)
            if self._family == socket.AF_INET6:  # or a v4 peer comes in with 20 B less than are counted
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if local is not None:
                self._socket.bind(local)
            if self._peer is not None:
                self._socket.connect(self._peer)
        except OSError as error:
            self._socket.close()
            raise PortLost(url, f"cannot open: {_why(error)}") from error

    @property
    def broken(self) -> int:
        """Datagrams longer than any frame."""
        return self._overlong

    @property
    def local(self) -> tuple[str, int]:
        """The host and port that the socket is bound to."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def read(self) -> list[bytes]:
        """See `Port.read`. At most 64 datagrams a call; one longer than any frame is dropped."""
        self._from = []
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
                self._overlong += 1
            else:
                self._from.append((frame, source))
        return [frame for frame, _ in self._from]

    def write(self, frame: bytes) -> None:
        """See `Port.write`. While no peer is known the frame goes nowhere, as from a radio."""
        if self._peer is None:
            return
        self._kept.append(frame)
        self.flush()

    def lead(self, count: int) -> None:
        """A datagram begins where it begins."""

    def flush(self) -> None:
        """See `Port.flush`."""
        while self._kept:
            try:
                # An earlier datagram's loss is told late, and then this one was not sent: once more.
                # A second time it is this one's own, and lost it is.
                if not self._send(self._kept[0]):
                    self._send(self._kept[0])
            except BlockingIOError:
                return
            except OSError as error:
                raise PortLost(self.url, f"cannot write: {_why(error)}") from error
            frame = self._kept.pop(0)
            self.tx_bytes += len(frame) + self._header_bytes
            if self._tap is not None:
                self._tap("out", frame)

    def discard(self) -> None:
        """See `Port.discard`."""
        self._kept.clear()

    def _send(self, frame: bytes) -> bool:
        """False where the kernel says that a datagram was lost: this one, or an earlier one."""
        try:
            if self._fixed:
                self._socket.send(frame)
            else:
                self._socket.sendto(frame, self._peer or ())
        except OSError as error:
            if error.errno not in _LOST_ON_THE_WAY:
                raise
            return False
        return True

    def kept_bytes(self) -> int:
        """See `Port.kept_bytes`."""
        return sum(len(frame) + self._header_bytes for frame in self._kept)

    def queued_bytes(self) -> int:
        """See `Port.queued_bytes`. Without the kernel's, which is bounded by the socket's send buffer and
        counted with the kernel's own overhead, not in bytes of the wire."""
        return self.kept_bytes()

    def trust(self, frame: bytes) -> None:
        """See `Port.trust`."""
        if not self._fixed:
            self._peer = next((source for known, source in self._from if known is frame), self._peer)

    def fileno(self) -> int:
        """See `Port.fileno`."""
        return self._socket.fileno()

    def close(self) -> None:
        """See `Port.close`."""
        self._socket.close()


def is_ipv6(url: str) -> bool:
    """Whether frames on this URL travel in IPv6: where an end is a literal IPv6 address. Names are IPv4.

    Raises BadUrl.
    """
    peer, bind = _ends(url)
    host = (peer or bind or ("", 0))[0]
    try:
        return ipaddress.ip_address(host.partition("%")[0]).version == 6
    except ValueError:
        return False


def names_hosts(url: str) -> bool:
    """Whether an end is a name, which has to be looked up. Raises BadUrl."""
    return any(end is not None and not _is_address(end[0]) for end in _ends(url))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _ends(url: str) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
    """`udp://HOST:PORT?bind=HOST:PORT` as (peer, bind); either may be missing, not both."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise BadUrl(f"{url}: {error}") from None
    options = parse_qs(parts.query, keep_blank_values=True)
    unknown = sorted(options.keys() - {"bind"})
    if parts.scheme != "udp" or parts.path not in ("", "/") or unknown:
        raise BadUrl(f"{url}: {unknown or parts.path} is not part of udp://HOST:PORT?bind=HOST:PORT")
    peer = _end(url, parts.netloc) if parts.netloc else None
    bind = _end(url, options["bind"][-1]) if "bind" in options else None
    if peer is None and bind is None:
        raise BadUrl(f"{url}: neither a peer nor a port to bind to; udp://HOST:PORT?bind=HOST:PORT")
    return peer, bind


def _end(url: str, text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.port is not None:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise BadUrl(f"{url}: {text!r} is not HOST:PORT, or [HOST]:PORT for IPv6")


def _resolve(url: str, end: tuple[str, int], family: socket.AddressFamily) -> Address:
    try:
        return socket.getaddrinfo(*end, family, socket.SOCK_DGRAM)[0][4]
    except OSError as error:
        raise PortLost(url, f"cannot open: {end[0]}: {error.strerror or error}") from error


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
