"""The table of port schemes: which class understands and opens the URLs that begin so.

A port's URL is one of

- `/dev/ttyUSB0` or `serial:/dev/ttyUSB0?baud=115200`: a serial device;
- any URL of pyserial, such as `socket://HOST:PORT` or `rfc2217://HOST:PORT`;
- `kiss:/dev/ttyUSB0?baud=9600&port=0`, `kiss+tcp://HOST:PORT?port=0`: a TNC on a serial device or behind TCP;
- `udp://HOST:PORT?bind=HOST:PORT`: a peer, and the address here; `udp://?bind=HOST:PORT` learns the peer."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import serial

from hw_profiles import Link
from onboard.link.ports.framing import FRAMINGS, FramedStream
from onboard.link.ports.port import BadUrl, Port, PortFacts, PortScheme, Tap
from onboard.link.ports.serial import SerialPort
from onboard.link.ports.udp import InBackground, UdpPort, UdpUrl, check_host
from onboard.wire.config import Limits
from onboard.wire.framing import kiss
from onboard.wire.medium.medium_access import LEAD_BYTES
from onboard.wire.transfer.peer import QUIET_S

DEFAULT_BAUD = 115_200
"""For a radio modem's serial side, whose speed is not the radio's."""
REORDER_SLACK = 3  # TCP's duplicate threshold (RFC 5681, section 3.2)
_BOUNDS = {"baud": range(1, 20_000_001), "port": kiss.PORTS}


@dataclass(frozen=True, slots=True)
class StreamUrl:
    """`device`: a path or a pyserial URL; `baud`: None where the URL names none."""

    device: str
    baud: int | None = None
    framing: str = "cobs"
    kiss_port: int = 0


@dataclass(frozen=True, slots=True)
class StreamScheme:
    """Ports that carry a byte stream. `parse` reads a URL of this form; its BadUrl is one line naming it."""

    form: str
    parse: Callable[[str], StreamUrl]

    def facts(self, url: str) -> PortFacts:
        stream = self.parse(url)
        is_remote = "://" in stream.device
        return PortFacts(
            wire_bytes=FRAMINGS[stream.framing].wire_bytes,
            framing=stream.framing,
            kiss_port=stream.kiss_port,
            device=None if is_remote else Path(stream.device),
            needs_network=is_remote,
            far_url=url,
            limits=Limits(lead_bytes=LEAD_BYTES),
        )

    def open(self, url: str, link: Link, tap: Tap | None) -> SerialPort:
        """Without `baud`, a UART link's URL runs at its rate (10 bits a byte), and any other at 115,200."""
        stream = self.parse(url)
        uart_baud = round(link.rate_up_bps) if link.bits_per_byte > 8 else DEFAULT_BAUD
        framing = FRAMINGS[stream.framing].make(link.mtu_bytes, stream.kiss_port)
        assert isinstance(framing, FramedStream), f"{stream.framing} is not for a stream"
        return SerialPort(
            url, stream.device, baud=stream.baud or uart_baud, framing=framing,
            max_frame_bytes=link.mtu_bytes, tap=tap,
        )  # fmt: skip


class UdpScheme:
    """One frame in a datagram."""

    form = "udp://HOST:PORT"

    def facts(self, url: str) -> PortFacts:
        """The other end listens at the port that this one calls."""
        ends = UdpUrl.parse(url)
        everywhere = "[::]" if ends.is_ipv6 else "0.0.0.0"
        return PortFacts(
            wire_bytes=partial(operator.add, ends.header_bytes),
            framing="datagram",
            needs_network=ends.names_hosts,
            far_url=None if ends.peer is None else f"udp://?bind={everywhere}:{ends.peer[1]}",
            limits=Limits(quiet_s=QUIET_S, reorder_slack=REORDER_SLACK),
        )

    def open(self, url: str, link: Link, tap: Tap | None) -> UdpPort:
        return UdpPort(url, max_frame_bytes=link.mtu_bytes, tap=tap)


def _serial(url: str) -> StreamUrl:
    return StreamUrl(_path(url), _options(url, "serial:PATH?baud=N", {"baud"}).get("baud"))


def _kiss(url: str) -> StreamUrl:
    options = _options(url, "kiss:PATH?baud=N&port=N", {"baud", "port"})
    return StreamUrl(_path(url), options.get("baud"), "kiss", options.get("port", 0))


def _kiss_tcp(url: str) -> StreamUrl:
    options = _options(url, "kiss+tcp://HOST:PORT?port=N", {"port"})
    device = f"socket://{_host_port(url, 'kiss+tcp://HOST:PORT')}"
    return StreamUrl(device, None, "kiss", options.get("port", 0))


def _pyserial(url: str) -> StreamUrl:
    """`socket://HOST:PORT`, `rfc2217://HOST:PORT` and whatever else pyserial has a handler for."""
    if url.startswith("socket://"):
        _host_port(url, "socket://HOST:PORT")
        if urlsplit(url).query:
            raise BadUrl(f"{url}: not socket://HOST:PORT, which has no options")
        return StreamUrl(url)
    if url.startswith("rfc2217://"):
        _host_port(url, "rfc2217://HOST:PORT")
    _check_pyserial(url)
    return StreamUrl(url)


def _check_pyserial(url: str) -> None:
    """A URL without a handler, or with unknown options, would be tried for ever and never opened."""
    try:
        port = serial.serial_for_url(url, do_not_open=True)
    except serial.SerialException:  # hwgrep:// looks for its device at once
        return
    except ValueError as error:
        raise BadUrl(f"{url}: {error}") from None
    if url.startswith(("rfc2217://", "loop://")):  # others open a file in it
        try:
            port.from_url(url)
        except Exception as error:  # what is wrong comes as KeyError, TypeError and more
            why = str(error).rpartition('": ')[2]  # without pyserial's form of the URL
            raise BadUrl(f"{url}: options: {why}") from None


def _options(url: str, form: str, known: set[str]) -> dict[str, int]:
    options = {}
    for key, texts in parse_qs(urlsplit(url).query, keep_blank_values=True).items():
        text = texts[-1]
        if len(texts) > 1:
            raise BadUrl(f"{url}: {key} is given twice")
        if key not in known or not (text.isascii() and text.isdecimal() and int(text) in _BOUNDS[key]):
            raise BadUrl(f"{url}: {key} = {text!r}: not {form}")
        options[key] = int(text)
    return options


def _path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc or not parts.path or parts.fragment:
        raise BadUrl(f"{url}: no path of a device; not {parts.scheme}:PATH")
    return parts.path


def _host_port(url: str, form: str) -> str:
    try:
        parts = urlsplit(url)
        found = bool(parts.hostname and parts.port and parts.path in ("", "/"))
    except ValueError:
        found = False
    if not found:
        raise BadUrl(f"{url}: not {form}")
    check_host(url, parts.hostname or "")
    return parts.netloc


PATH, PYSERIAL = "/", "://"
SCHEMES: dict[str, PortScheme] = {
    PATH: StreamScheme("a device's path", StreamUrl),
    "serial": StreamScheme("serial:PATH?baud=N", _serial),
    "kiss": StreamScheme("kiss:PATH?baud=N&port=N", _kiss),
    "kiss+tcp": StreamScheme("kiss+tcp://HOST:PORT?port=N", _kiss_tcp),
    "udp": UdpScheme(),
    PYSERIAL: StreamScheme("a pyserial URL", _pyserial),
}
"""Every scheme by what precedes the URL's first colon; PATH is for a URL without one, PYSERIAL for a scheme
that is not here. docs/extending.md says how to add one."""


def scheme_of(url: str) -> PortScheme:
    """Return the scheme of a port's URL. Raises BadUrl for an unknown one."""
    name, has_name, _ = url.partition(":")
    if has_name and name in SCHEMES:
        return SCHEMES[name]
    if "://" in url:
        return SCHEMES[PYSERIAL]
    if url.startswith("/"):
        return SCHEMES[PATH]
    *others, last = (scheme.form for scheme in SCHEMES.values())
    raise BadUrl(f"{url!r}: not {', '.join(others)} or {last}")


def open_port(url: str, link: Link, tap: Tap | None = None) -> Port:
    """Open the port at `url`. Raises BadUrl, PortLost."""
    return scheme_of(url).open(url, link, tap)


def opener(url: str, link: Link, tap: Tap | None = None) -> Callable[[], Port | None]:
    """Return what opens a pump's port: at once, or in the background where a network must answer first."""
    at_once = partial(open_port, url, link, tap)
    return InBackground(at_once) if facts_of(url).needs_network else at_once


def facts_of(url: str) -> PortFacts:
    return scheme_of(url).facts(url)
