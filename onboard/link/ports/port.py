"""A port carries whole frames to the other end and never blocks; when it goes away it says so once.

Two classes fulfil this: `SerialPort` for byte streams, `UdpPort` for datagrams. The scheme of a port's URL
says which (`schemes.SCHEMES`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from hw_profiles import Link
from onboard.wire.config import Limits
from onboard.wire.framing.frame import Origin

Way = Literal["in", "out"]
Tap = Callable[[Way, bytes], None]
"""Is told every piece that crosses a port, as it crossed: part of a stream, or one datagram."""


class BadUrl(ValueError):  # noqa: N818 - "bad" says error already
    """A port's URL that cannot be understood; the message is one line with the URL and what is wrong."""


class PortLost(OSError):  # noqa: N818 - a state of the world rather than a mistake
    """The device or interface at `url` cannot be opened, or is gone; `reason` in a few words."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason


class PortEvent(msgspec.Struct, frozen=True):
    """What concerns a port, a spool or the peer's share, and not the application."""


class LineFault(PortEvent, frozen=True):
    """Something is wrong with the line: `fault` in one word, for programs, `why` for a person; told again
    every 10 min while it lasts."""

    fault: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortFacts:
    """What a port's URL tells before the port is open."""

    wire_bytes: Callable[[int], int]
    """What a frame of that many bytes takes on the port. On serial this is COBS's worst case, one byte in 254
    above what most frames take. Through KISS it is what a frame of random bytes takes, as its worst case is
    twice that and does not occur."""
    framing: str
    """How frames stand in what crosses the port: a name in `framing.FRAMINGS`."""
    kiss_port: int = 0
    """The port of the TNC, where the framing is KISS."""
    device: Path | None = None
    """The device of this computer that the port is; None for one behind a network, and for a pyserial URL."""
    needs_network: bool = False
    """A network has to answer before the port is open, so it is opened in the background."""
    far_url: str | None
    """The URL with which the other end most likely meets this one; None where neither this URL nor that one
    would say where the other end is."""
    limits: Limits = field(default_factory=Limits)
    """What a session has to allow for over the port."""


class PortScheme(Protocol):
    """The ports whose URLs begin alike."""

    @property
    def form(self) -> str:
        """A URL of this scheme as an operator is told to write it."""

    def facts(self, url: str) -> PortFacts:
        """What `url` tells. Raises BadUrl where it cannot be understood."""

    def open(self, url: str, link: Link, tap: Tap | None) -> Port:
        """The open port, for frames of at most `link.mtu_bytes`. May take seconds over a network.

        Raises BadUrl, and PortLost for a port that is not there.
        """


class Port(Protocol):
    """An open port. Every method may raise PortLost; none waits.

    `rx_bytes` and `tx_bytes` count all that crossed the port: framing, headers and noise included, and on
    UDP the IP and UDP headers. `broken` counts what arrived and was no frame by its framing alone.
    """

    url: str
    max_frame_bytes: int
    rx_bytes: int
    tx_bytes: int

    @property
    def paths(self) -> Paths | None:
        """Where the peer may be; None for a cable, which has one other end."""

    @property
    def broken(self) -> int: ...

    def read(self) -> list[bytes]:
        """The frames that have arrived since the last call; bounded, so call again when readable."""

    def write(self, frame: bytes, lead: int = 0) -> None:
        """Sends one frame, or keeps what the device does not take yet for `flush`. `lead`: so many delimiters
        go before it, where there are any, as it is the first after a pause."""

    def flush(self) -> None:
        """Hands over what `write` had to keep, as far as the device takes it."""

    def discard(self) -> None:
        """Forgets what is kept, and what the device holds where it can be made to. Of a frame that was cut so
        the other end hears no more, and nothing of it spoils the next."""

    def kept_bytes(self) -> int:
        """Bytes that wait for `flush`."""

    def queued_bytes(self) -> int:
        """Bytes written and not yet on the wire: those kept, and the kernel's where it can tell."""

    def distrust(self, frame: bytes) -> None:
        """`frame`, returned by the last `read`, was none of the other end's, or damaged."""

    def fault(self, link: Link) -> LineFault | None:
        """What is wrong with the line, as far as what came in tells; what its profile says is expected."""

    def fileno(self) -> int:
        """What to select() on, or -1 where the port has no file descriptor and must be polled."""

    def close(self) -> None:
        """Lets go of the device. Bytes not yet sent are lost, as on a radio."""


class Paths(Protocol):
    """Of a port whose peer has an address, which may be unknown yet or change: where frames come from and go.

    What a frame proves is for the session to say: see `Presence.proof_of_life`.
    """

    @property
    def peer(self) -> str | None:
        """Where `Port.write` sends, as text; None where it sends nowhere, as no peer is known yet."""

    def origin(self, frame: bytes) -> Origin:
        """Where `frame`, returned by the last `read`, came from."""

    def trust(self, origin: Origin) -> None:
        """The peer is there now."""

    def answer(self, frame: bytes, origin: Origin) -> None:
        """Sends one frame there, whoever that is. As `Port.write`."""

    def recall(self, peer: str) -> None:
        """Where the peer was when this program ran last: the text of `peer` then."""

    @property
    def local_port(self) -> int:
        """The port that this end was given, as its URL asks for any; 0 where the URL says which."""

    def reclaim(self, local_port: int) -> str:
        """Takes the port that this end had when this program ran last, as the peer may look for it there.
        Returns why it cannot be had, and keeps the one it has then; empty if all is well."""

    def places(self) -> Sequence[Origin]:
        """Everywhere where the peer may be, for while it gives no answer."""

    def seek(self) -> bool:
        """The peer gives no answer: its name is looked up again, without waiting. Whether `places` has a new
        one by now."""
