"""Opens ports: the only part of the flight side that touches a device, a socket or the spool's files.

A port's URL is one of

- `/dev/ttyUSB0` or `serial:/dev/ttyUSB0?baud=115200`: a serial device;
- any URL of pyserial, such as `socket://HOST:PORT` or `rfc2217://HOST:PORT`;
- `udp://HOST:PORT?bind=HOST:PORT`: a peer, and the address here; `udp://?bind=HOST:PORT` learns the peer.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from hw_profiles import Link
from onboard.link.port import BadUrl, Port, PortLost
from onboard.link.serial import SerialPort
from onboard.link.spool import Spool
from onboard.link.udp import IPV4_UDP_BYTES, IPV6_UDP_BYTES, UdpPort, is_ipv6
from onboard.wire import cobs

__all__ = ["BadUrl", "Port", "PortLost", "Spool", "open_port", "wire_bytes"]

DEFAULT_BAUD = 115_200
"""For a radio modem's serial side, whose speed is not the radio's."""


def open_port(url: str, link: Link) -> Port:
    """The open port at `url`, for frames of at most `link.mtu_bytes`.

    A serial URL without `baud` runs at the link's rate where the link is a UART (10 bits a byte) and else at
    115,200. Raises BadUrl for a URL that is not understood, and PortLost for a port that is not there.
    """
    if url.startswith("udp:"):
        return UdpPort(url, max_frame_bytes=link.mtu_bytes)
    device, baud = _serial(url)
    if baud is None:
        baud = round(link.rate_up_bps) if link.bits_per_byte > 8 else DEFAULT_BAUD
    return SerialPort(device, baud=baud, max_frame_bytes=link.mtu_bytes)


def wire_bytes(url: str, frame_bytes: int) -> int:
    """The bytes that a frame of `frame_bytes` takes on the port at `url`, before that is open.

    On serial this is COBS's worst case: one byte in 254 above what most frames take. Raises BadUrl.
    """
    if not url.startswith("udp:"):
        _serial(url)
        return cobs.wire_bytes(frame_bytes)
    return frame_bytes + (IPV6_UDP_BYTES if is_ipv6(url) else IPV4_UDP_BYTES)


def _serial(url: str) -> tuple[str, int | None]:
    if not url.startswith("serial:"):
        if not url or ("://" not in url and not url.startswith("/")):
            raise BadUrl(
                f"{url!r}: not a device's path, serial:PATH?baud=N, udp://HOST:PORT or a pyserial URL"
            )
        return url, None
    parts = urlsplit(url)
    options = parse_qs(parts.query, keep_blank_values=True)
    baud = options.pop("baud", [""])[-1]
    if options or not parts.path or not (baud == "" or (baud.isdecimal() and 0 < int(baud) <= 20_000_000)):
        raise BadUrl(f"{url}: not serial:PATH?baud=N")
    return parts.path, int(baud) if baud else None
