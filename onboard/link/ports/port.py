"""A port carries whole frames to the other end and never blocks; when it is lost it says so once.

`SerialPort` carries byte streams, `UdpPort` datagrams; the scheme of a port's URL says which."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from hw_profiles import Link
from onboard.wire.config import Limits
from onboard.wire.framing.frame import Origin

Way = Literal["in", "out"]
Tap = Callable[[Way, bytes], None]
"""Takes every piece that crosses a port, as it crossed: part of a stream, or one datagram."""


class BadUrl(ValueError):  # noqa: N818 - "bad" says error already
    """A port's URL that cannot be understood; the message is one line with the URL and what is wrong."""


class PortLost(OSError):  # noqa: N818 - a state of the world rather than a mistake
    """The device or interface at `url` cannot be opened, or is gone; `reason` in a few words."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason


class PortEvent(msgspec.Struct, frozen=True):
    """A line of the log about a port, a spool or the peer, which does not concern the application."""

    name: str
    fields: dict[str, Any]
    level: int = logging.WARNING


def line_fault(fault: str, why: str) -> PortEvent:
    """Return the event of a fault of the line: `fault` in one word, for programs, `why` for a person."""
    return PortEvent("line-fault", {"fault": fault, "why": why})


@dataclass(frozen=True, slots=True, kw_only=True)
class PortFacts:
    """What a port's URL tells before the port is open."""

    wire_bytes: Callable[[int], int]
    """The bytes that a frame of that many takes on the port: with COBS at worst, one byte in 254 more than
    most, and through KISS as of random bytes, whose worst case is twice that and does not occur."""
    framing: str
    """How frames stand in what crosses the port: a name in `framing.FRAMINGS`."""
    kiss_port: int = 0
    """The port of the TNC, where the framing is KISS."""
    device: Path | None = None
    """The device on this computer; None for one behind a network, and for a pyserial URL."""
    needs_network: bool = False
    """Whether a network has to answer before the port is open, so that it is opened in the background."""
    far_url: str | None
    """The other end's likely URL for this one; None where neither URL would say where the other end is."""
    limits: Limits = field(default_factory=Limits)
    """What a session has to allow for over the port."""


class PortScheme(Protocol):
    """The ports whose URLs begin alike."""

    @property
    def form(self) -> str:
        """A URL of this scheme as an operator is told to write it."""

    def facts(self, url: str) -> PortFacts:
        """Return what `url` tells. Raises BadUrl where it cannot be understood."""

    def open(self, url: str, link: Link, tap: Tap | None) -> Port:
        """Open the port, for frames of at most `link.mtu_bytes`. May take seconds over a network. Raises
        BadUrl, and PortLost for a port that is not there."""


class Port(Protocol):
    """An open port. Every method may raise PortLost; none waits. Counters: all bytes that crossed it, with
    framing, headers (on UDP those of IP and UDP) and noise; pieces that were no frame by framing alone."""

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
        """Return frames that have arrived since the last call; bounded, so call again when readable."""

    def write(self, frame: bytes, lead: int = 0) -> None:
        """Send one frame, or keep what the device does not take yet for `flush`. `lead`: the delimiters
        before it, where there are any, as it is the first after a pause."""

    def flush(self) -> None:
        """Hand over what `write` had to keep, as far as the device takes it."""

    def discard(self) -> None:
        """Drop what is kept, and what the device holds where possible. No rest of a frame spoils the next."""

    def kept_bytes(self) -> int:
        """Return the bytes that wait for `flush`."""

    def queued_bytes(self) -> int:
        """Return the bytes not yet on the wire: those kept, and the kernel's where it can tell."""

    def distrust(self, frame: bytes) -> None:
        """Note that `frame`, from the last `read`, was damaged or none of the other end's."""

    def fault(self, link: Link) -> PortEvent | None:
        """Return what is wrong with the line beyond what its profile expects, as far as the input tells."""

    def fileno(self) -> int:
        """Return what to select() on, or -1 where the port must be polled."""

    def close(self) -> None:
        """Release the device. Bytes not yet sent are lost, as on a radio."""


class Paths(Protocol):
    """The paths of a port whose peer has an address, which may be unknown yet or change. What a frame proves
    is for the session to say, see `Presence.proof_of_life`."""

    @property
    def peer(self) -> str | None:
        """Where `Port.write` sends, as text; None while no peer is known."""

    def origin(self, frame: bytes) -> Origin:
        """Return where `frame`, from the last `read`, came from."""

    def trust(self, origin: Origin) -> None:
        """Note that the peer is there now."""

    def answer(self, frame: bytes, origin: Origin) -> None:
        """Send one frame there, whoever that is. As `Port.write`."""

    def recall(self, peer: str) -> None:
        """Presume the peer at its last run's address, the text of `peer` then."""

    @property
    def local_port(self) -> int:
        """The port given to this end, as its URL asks for any; 0 where the URL says which."""

    def reclaim(self, local_port: int) -> str:
        """Take the last run's port again, as the peer may look for it there; return why it cannot be had."""

    def places(self) -> Sequence[Origin]:
        """Return everywhere where the peer may be, for while it gives no answer."""

    def seek(self) -> bool:
        """Look the silent peer's name up again, without waiting. Return whether `places` has a new one."""
