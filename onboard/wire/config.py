"""What a session is made from: its ends, medium, security, saved state and limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hw_profiles import Link
from onboard.wire.events import QuotaUsage
from onboard.wire.framing import cobs
from onboard.wire.medium.contact_gate import Window
from onboard.wire.security.seal import NO_SALT, Keys


@dataclass(frozen=True, slots=True)
class Identity:
    """The two ends of a link, as one of them sees them."""

    node: int
    """This end's number, 0..254."""
    peer: int
    """The other end's number, 0..254."""
    primary: bool
    """Whether this end is the primary station (HDLC), as the ground's is: it sends at `rate_down_bps`, breaks
    ties on half-duplex, and seals under the key that it heard the board by."""


@dataclass(frozen=True, slots=True)
class Medium:
    """What carries the frames."""

    link: Link
    """The profile of the radio or the line."""
    wire_bytes: Callable[[int], int] = cobs.wire_bytes
    """The size on the wire of a frame of that many bytes, with the port's framing."""
    contacts: Iterable[Window] | None = None
    """The windows in which frames may leave, and all times and deadlines count; None: always up."""


@dataclass(frozen=True, slots=True)
class Security:
    """What the operator gave this end to secure the link with."""

    key: bytes | Keys
    """The 32 B key that both ends hold, or several by their ids, the oldest first."""
    nonce: Callable[[int], bytes] | None = None
    """Draws that many unpredictable bytes, for the salt. An end without it can only watch."""
    encrypted: bool = False
    """Whether all frames but HELLO are encrypted, both ways."""
    group_key: bytes | None = None
    """The 32 B key of the peer's broadcasts; with None this end does not listen to them."""

    def __post_init__(self) -> None:
        if self.group_key is not None and self.encrypted:
            raise ValueError("broadcasts are never encrypted: an encrypted session does not listen to them")


@dataclass(frozen=True, slots=True)
class SessionState:
    """What an earlier run of this end left on the disk."""

    epoch: int
    """This end's durable boot counter, 1..65535, one more than at the last start."""
    replay_floor: tuple[int, int] = (0, 0)
    """The peer's highest persisted (epoch, seq): no frame at or below it is taken."""
    salt: bytes = NO_SALT
    """The persisted salt; NO_SALT if it was lost, or if there never was one."""
    group_replay_floor: tuple[int, int] = (0, 0)
    """The `replay_floor` of the peer's broadcasts."""
    done: Iterable[bytes] = ()
    """Digests of the objects that were accepted before."""
    spent: QuotaUsage | None = None
    """The last `QuotaUsage` of the earlier run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a session."""

    max_object_bytes: int = 64 << 20
    """The size of the largest object that is received."""
    max_incoming: int = 16
    """The number of objects that are received at a time."""
    max_incoming_bytes: int = 128 << 20
    """The total size of the objects that are received at a time."""
    remembered: int = 256
    """The digests of finished objects that are remembered."""
    bytes_per_contact: float = math.inf
    """The bytes on the wire that this end may send in one planned contact."""
    bytes_per_day: float = math.inf
    """The bytes on the wire that this end may send in any 24 hours."""
    lead_bytes: int = 0
    """The most delimiters before a burst; 0 on a datagram port."""
    quiet_s: float = math.inf
    """The silence after which the peer is asked whether it is there: 15 s on a port where addresses are
    learned and change, never on a cable."""
    reorder_slack: int = 0
    """How many frames may overtake a late one before it counts as lost: 0 on a serial line, 3 on a datagram
    port (TCP's duplicate threshold, RFC 5681 section 3.2)."""
