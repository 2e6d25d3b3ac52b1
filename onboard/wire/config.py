"""What a session is made from: its ends, what carries it, what guards it, what was kept, and its limits."""

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
    """Whether this end is the primary station (HDLC), as the ground's is: it sends at the link's
    `rate_down_bps`, breaks ties on half-duplex, and seals under the key that it heard the board by. The other
    end sends at `rate_up_bps`."""


@dataclass(frozen=True, slots=True)
class Medium:
    """What carries the frames."""

    link: Link
    """The profile of the radio or the line."""
    wire_bytes: Callable[[int], int] = cobs.wire_bytes
    """What a frame of that many bytes takes on the wire, with the port's framing around it."""
    contacts: Iterable[Window] | None = None
    """Nothing is sent outside of these windows, and deadlines and all other times count only within them;
    None for a link that is always up."""


@dataclass(frozen=True, slots=True)
class Security:
    """What the operator gave this end of the link to guard it with."""

    key: bytes | Keys
    """The 32 B key that both ends hold, or several by their ids, the oldest first."""
    nonce: Callable[[int], bytes] | None = None
    """Draws so many bytes that nobody can foresee, which lets the ends agree on a salt. An end without it can
    only watch."""
    encrypted: bool = False
    """Whether all frames but HELLO are encrypted, both ways."""
    group_key: bytes | None = None
    """The 32 B that the peer's broadcasts are sealed with; with None this end does not listen to them."""

    def __post_init__(self) -> None:
        if self.group_key is not None and self.encrypted:
            raise ValueError("broadcasts are never encrypted: an encrypted session does not listen to them")


@dataclass(frozen=True, slots=True)
class SessionState:
    """What an earlier run of this end left on the disk."""

    epoch: int
    """This end's durable boot counter, 1..65535, one more than at the last start."""
    replay_floor: tuple[int, int] = (0, 0)
    """The peer's highest (epoch, seq) as last persisted: no frame at or below it is taken."""
    salt: bytes = NO_SALT
    """The salt as last persisted; NO_SALT if it was lost, or if there never was one."""
    group_replay_floor: tuple[int, int] = (0, 0)
    """The same as `replay_floor`, for the peer's broadcasts."""
    done: Iterable[bytes] = ()
    """Digests of the objects that were accepted before."""
    spent: QuotaUsage | None = None
    """The last `QuotaUsage` of the earlier run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session takes on at most."""

    max_object_bytes: int = 64 << 20
    """The size of the largest object that is taken."""
    max_incoming: int = 16
    """The objects that are received at a time."""
    max_incoming_bytes: int = 128 << 20
    """The size of all objects together that are received at a time."""
    max_messages: int = 16
    """The MSGs that may wait to leave; the oldest gives way to a new one."""
    remembered: int = 256
    """The digests of finished objects that are remembered."""
    bytes_per_contact: float = math.inf
    """What this end may send on the wire in one planned contact."""
    bytes_per_day: float = math.inf
    """What this end may send on the wire in any 24 hours."""
    lead_bytes: int = 0
    """The most delimiters before a burst (see `Lead`); 0 on a datagram port."""
    quiet_s: float = math.inf
    """When nothing was heard for this long, the peer is asked whether it is there: 15 s on a port where
    addresses are learned and change, never on a cable. See `Presence`."""
    reorder_slack: int = 0
    """Frames of one direction that may overtake one another before the late one counts as lost: 0 on a
    serial line, 3 on a datagram port (TCP's duplicate threshold, RFC 5681 section 3.2)."""
