"""The table of port schemes: which class understands and opens the URLs that begin so.

A port's URL is one of

- `/dev/ttyUSB0` or `serial:/dev/ttyUSB0?baud=115200`: a serial device;
- any URL of pyserial, such as `socket://HOST:PORT` or `rfc2217://HOST:PORT`;
- `kiss:/dev/ttyUSB0?baud=9600&port=0`, `kiss+tcp://HOST:PORT?port=0`: a TNC on a serial device or behind TCP;
- `udp://HOST:PORT?bind=HOST:PORT`: a peer, and the address here; `udp://?bind=HOST:PORT` learns the peer.
"""

from __future__ import annotations

from onboard.link.ports import stream
from onboard.link.ports.port import BadUrl, PortScheme
from onboard.link.ports.udp import UdpScheme

PATH, PYSERIAL = "/", "://"
SCHEMES: dict[str, PortScheme] = {
    PATH: stream.StreamScheme("a device's path", stream.of_path),
    "serial": stream.StreamScheme("serial:PATH?baud=N", stream.of_serial),
    "kiss": stream.StreamScheme("kiss:PATH?baud=N&port=N", stream.of_kiss),
    "kiss+tcp": stream.StreamScheme("kiss+tcp://HOST:PORT?port=N", stream.of_kiss_tcp),
    "udp": UdpScheme(),
    PYSERIAL: stream.StreamScheme("a pyserial URL", stream.of_pyserial),
}
"""Every scheme by what stands before the URL's first colon; PATH is for a URL without one, and PYSERIAL for
one whose scheme is not here. docs/extending.md says how to add one."""


def scheme_of(url: str) -> PortScheme:
    """The scheme of a port's URL. Raises BadUrl for one that no scheme can be told of."""
    name, has_name, _ = url.partition(":")
    if has_name and name in SCHEMES:
        return SCHEMES[name]
    if "://" in url:
        return SCHEMES[PYSERIAL]
    if url.startswith("/"):
        return SCHEMES[PATH]
    *others, last = (scheme.form for scheme in SCHEMES.values())
    raise BadUrl(f"{url!r}: not {', '.join(others)} or {last}")
