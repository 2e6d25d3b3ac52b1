"""Opens ports: the only part of the flight side that touches a device, a socket or the spool's files.

A port's URL is one of

- `/dev/ttyUSB0` or `serial:/dev/ttyUSB0?baud=115200`: a serial device;
- any URL of pyserial, such as `socket://HOST:PORT` or `rfc2217://HOST:PORT`;
- `kiss:/dev/ttyUSB0?baud=9600&port=0`, `kiss+tcp://HOST:PORT?port=0`: a TNC on a serial device or behind TCP;
- `udp://HOST:PORT?bind=HOST:PORT`: a peer, and the address here; `udp://?bind=HOST:PORT` learns the peer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from hw_profiles import Link
from onboard.link.ports import framing
from onboard.link.ports.opening import InBackground
from onboard.link.ports.port import BadUrl, Port, PortLost, Tap
from onboard.link.ports.serial import SerialPort
from onboard.link.ports.stream import StreamUrl
from onboard.link.ports.udp import IPV4_UDP_BYTES, IPV6_UDP_BYTES, UdpPort, is_ipv6, names_hosts
from onboard.link.spool import Spool
from onboard.wire.framing import cobs, kiss

__all__ = [
    "BadUrl", "Port", "PortLost", "Spool", "device_of", "framing_of", "open_port", "opener", "wire_bytes",
]  # fmt: skip

DEFAULT_BAUD = 115_200
"""For a radio modem's serial side, whose speed is not the radio's."""


def open_port(url: str, link: Link, tap: Tap | None = None) -> Port:
    """The open port at `url`, for frames of at most `link.mtu_bytes`. May take seconds over a network.

    A serial URL without `baud` runs at the link's rate where the link is a UART (10 bits a byte) and else at
    115,200. Raises BadUrl for a URL that is not understood, and PortLost for a port that is not there.
    """
    if _is_udp(url):
        return UdpPort(url, max_frame_bytes=link.mtu_bytes, tap=tap)
    stream = StreamUrl.parse(url)
    uart_baud = round(link.rate_up_bps) if link.bits_per_byte > 8 else DEFAULT_BAUD
    return SerialPort(
        url,
        stream.device,
        baud=stream.baud or uart_baud,
        framing=framing.make(stream.framing, link.mtu_bytes, stream.kiss_port),
        max_frame_bytes=link.mtu_bytes,
        tap=tap,
    )


def opener(url: str, link: Link, tap: Tap | None = None) -> Callable[[], Port | None]:
    """What a pump opens the port with: at once, or in the background where a network has to answer first."""
    at_once = partial(open_port, url, link, tap)
    waits = names_hosts(url) if _is_udp(url) else "://" in StreamUrl.parse(url).device
    return InBackground(at_once) if waits else at_once


@lru_cache(maxsize=4096)  # asked a dozen times for every frame: reading the URL took half of a sender's time
def wire_bytes(url: str, frame_bytes: int) -> int:
    """The bytes that a frame of `frame_bytes` takes on the port at `url`, before that is open.

    On serial this is COBS's worst case, one byte in 254 above what most frames take; through KISS what a
    frame of random bytes takes, as its worst case is twice that and does not occur. Raises BadUrl.
    """
    if _is_udp(url):
        return frame_bytes + (IPV6_UDP_BYTES if is_ipv6(url) else IPV4_UDP_BYTES)
    if StreamUrl.parse(url).framing == "kiss":
        return kiss.wire_bytes(frame_bytes)
    return cobs.wire_bytes(frame_bytes)


def framing_of(url: str) -> tuple[framing.Name, int]:
    """How frames stand in what crosses the port at `url`, and the TNC's port where it is KISS. Raises
    BadUrl."""
    if _is_udp(url):
        return "datagram", 0
    stream = StreamUrl.parse(url)
    return stream.framing, stream.kiss_port


def device_of(url: str) -> Path | None:
    """The device of this computer that the port at `url` is; None for one behind a network, and for
    pyserial's other URLs. Raises BadUrl."""
    if _is_udp(url):
        return None
    device = StreamUrl.parse(url).device
    return None if "://" in device else Path(device)


def _is_udp(url: str) -> bool:
    return url.startswith("udp:")
