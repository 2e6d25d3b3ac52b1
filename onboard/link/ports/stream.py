"""What a URL says of a byte stream: the device as pyserial knows it, its speed, and the framing on it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import serial

from onboard.link.ports.framing import Name
from onboard.link.ports.hosts import check_host
from onboard.link.ports.port import BadUrl
from onboard.wire.framing import kiss

_MOST_BAUD = 20_000_000
_FORMS = "a device's path, serial:PATH?baud=N, kiss:PATH?baud=N&port=N, kiss+tcp://HOST:PORT?port=N, "
_FORMS += "udp://HOST:PORT or a pyserial URL"


@dataclass(frozen=True)
class StreamUrl:
    """`device` is a path or a URL of pyserial's; `baud` None where the URL names none."""

    device: str
    baud: int | None = None
    framing: Name = "cobs"
    kiss_port: int = 0

    @classmethod
    def parse(cls, url: str) -> StreamUrl:
        """Raises BadUrl, in one line that names the URL."""
        if url.startswith("kiss+tcp:"):
            options = _options(url, "kiss+tcp://HOST:PORT?port=N", {"port"})
            return cls(
                f"socket://{_host_port(url, 'kiss+tcp://HOST:PORT')}", None, "kiss", options.get("port", 0)
            )
        if url.startswith("kiss:"):
            options = _options(url, "kiss:PATH?baud=N&port=N", {"baud", "port"})
            return cls(_path(url), options.get("baud"), "kiss", options.get("port", 0))
        if url.startswith("serial:"):
            return cls(_path(url), _options(url, "serial:PATH?baud=N", {"baud"}).get("baud"))
        if not url or ("://" not in url and not url.startswith("/")):
            raise BadUrl(f"{url!r}: not {_FORMS}")
        if url.startswith("socket://"):
            _host_port(url, "socket://HOST:PORT")
            if urlsplit(url).query:
                raise BadUrl(f"{url}: not socket://HOST:PORT, which has no options")
        elif "://" in url:
            if url.startswith("rfc2217://"):
                _host_port(url, "rfc2217://HOST:PORT")
            _check_pyserial(url)
        return cls(url)


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
