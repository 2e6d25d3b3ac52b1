"""Ports that carry a byte stream: what their URLs say of the device, its speed and the framing on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import serial

from hw_profiles import Link
from onboard.link.ports.framing import FRAMINGS
from onboard.link.ports.hosts import check_host
from onboard.link.ports.port import BadUrl, PortFacts, Tap
from onboard.link.ports.serial import SerialPort
from onboard.wire.framing import kiss
from onboard.wire.medium.medium_access import LEAD_BYTES

DEFAULT_BAUD = 115_200
"""For a radio modem's serial side, whose speed is not the radio's."""
_MOST_BAUD = 20_000_000


@dataclass(frozen=True, slots=True)
class StreamUrl:
    """`device` is a path or a URL of pyserial's; `baud` None where the URL names none."""

    device: str
    baud: int | None = None
    framing: str = "cobs"
    kiss_port: int = 0


@dataclass(frozen=True, slots=True)
class StreamScheme:
    """See `PortScheme`. `parse` reads a URL of this form; its BadUrl is one line that names the URL."""

    form: str
    parse: Callable[[str], StreamUrl]

    def facts(self, url: str) -> PortFacts:
        """See `PortScheme.facts`."""
        stream = self.parse(url)
        is_remote = "://" in stream.device
        return PortFacts(
            wire_bytes=FRAMINGS[stream.framing].wire_bytes,
            framing=stream.framing,
            kiss_port=stream.kiss_port,
            device=None if is_remote else Path(stream.device),
            needs_network=is_remote,
            far_url=url,
            lead_bytes=LEAD_BYTES,
        )

    def open(self, url: str, link: Link, tap: Tap | None) -> SerialPort:
        """See `PortScheme.open`. A URL without `baud` runs at the link's rate where the link is a UART (10
        bits a byte) and else at 115,200."""
        stream = self.parse(url)
        uart_baud = round(link.rate_up_bps) if link.bits_per_byte > 8 else DEFAULT_BAUD
        return SerialPort(
            url,
            stream.device,
            baud=stream.baud or uart_baud,
            framing=FRAMINGS[stream.framing].make(link.mtu_bytes, stream.kiss_port),
            max_frame_bytes=link.mtu_bytes,
            tap=tap,
        )


def of_path(url: str) -> StreamUrl:
    """`/dev/ttyUSB0`."""
    return StreamUrl(url)


def of_serial(url: str) -> StreamUrl:
    """`serial:/dev/ttyUSB0?baud=115200`."""
    return StreamUrl(_path(url), _options(url, "serial:PATH?baud=N", {"baud"}).get("baud"))


def of_kiss(url: str) -> StreamUrl:
    """`kiss:/dev/ttyUSB0?baud=9600&port=0`: a TNC on a serial device."""
    options = _options(url, "kiss:PATH?baud=N&port=N", {"baud", "port"})
    return StreamUrl(_path(url), options.get("baud"), "kiss", options.get("port", 0))


def of_kiss_tcp(url: str) -> StreamUrl:
    """`kiss+tcp://HOST:PORT?port=0`: a TNC behind TCP."""
    options = _options(url, "kiss+tcp://HOST:PORT?port=N", {"port"})
    device = f"socket://{_host_port(url, 'kiss+tcp://HOST:PORT')}"
    return StreamUrl(device, None, "kiss", options.get("port", 0))


def of_pyserial(url: str) -> StreamUrl:
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
    """That pyserial has a handler for it, and knows its options, or the port would be tried, and never
    opened, for ever."""
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
    bounds = {"baud": range(1, _MOST_BAUD + 1), "port": kiss.PORTS}
    options = {}
    for key, texts in parse_qs(urlsplit(url).query, keep_blank_values=True).items():
        text = texts[-1]
        if len(texts) > 1:
            raise BadUrl(f"{url}: {key} is given twice")
        if key not in known or not (text.isascii() and text.isdecimal() and int(text) in bounds[key]):
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
