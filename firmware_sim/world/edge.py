"""One direction of an edge: when a message has left it, at the link's rate and in its contacts alone.

A message that a contact's end cuts goes on at the next one where it was, as sessions do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hw_profiles import Link
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import OVERHEAD_BYTES

ALWAYS = ((0.0, math.inf),)


def contacts_around(cut: tuple[float, float] | None) -> Sequence[tuple[float, float]]:
    """(rise, set) in seconds of an edge that carries nothing from one time until another."""
    whole = ALWAYS if cut is None else ((0.0, cut[0]), (cut[1], math.inf))
    return [(rise_s, set_s) for rise_s, set_s in whole if rise_s < set_s]


class DirectedLink:
    """`contacts`: (rise, set) in seconds, one after the other."""

    def __init__(self, link: Link, rate_bps: float, contacts: Sequence[tuple[float, float]] = ALWAYS) -> None:
        self._link, self._rate_bps, self._contacts = link, rate_bps, contacts
        self.delay_s = link.delay_s
        self._free_s = 0.0  # when all that was sent has left
        self.bytes_sent = 0

    def is_open(self, now: float) -> bool:
        """Whether there is contact."""
        return any(rise <= now < set_ for rise, set_ in self._contacts)

    def send(self, message_bytes: int, now: float) -> float:
        """When a message that is sent now arrives; inf if there is not enough contact for it, ever.

        Its frames take as many more as the link loses: a transfer repeats those and no others.
        """
        sent_bytes = math.ceil(framed_bytes(message_bytes, self._link) / (1 - self._link.frame_loss))
        self.bytes_sent += sent_bytes
        left_s = sent_bytes * self._link.bits_per_byte / self._rate_bps
        self._free_s = max(self._free_s, now)
        for rise, set_ in self._contacts:
            begins_s = max(self._free_s, rise)
            if begins_s + left_s <= set_:
                self._free_s = begins_s + left_s
                return self._free_s + self.delay_s
            left_s -= max(0.0, set_ - begins_s)
            self._free_s = max(self._free_s, set_)
        return math.inf

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"free_s": self._free_s, "bytes_sent": self.bytes_sent}

    def restore(self, free_s: float, bytes_sent: int) -> None:
        """Goes on from `state`."""
        self._free_s, self.bytes_sent = free_s, bytes_sent


def framed_bytes(message_bytes: int, link: Link) -> int:
    """What a message takes on the wire in frames of the link's MTU, once: header, tag and COBS."""
    payload_bytes = link.mtu_bytes - OVERHEAD_BYTES
    whole, rest = divmod(message_bytes, payload_bytes)
    last = cobs.wire_bytes(rest + OVERHEAD_BYTES) if rest else 0
    return whole * cobs.wire_bytes(link.mtu_bytes) + last
