"""A frame that may leave, before the session gives it its place in the air."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from onboard.wire.framing.frame import Type
from onboard.wire.transfer.transfer import Outgoing

Origin = Hashable
"""Where a frame came from, in whatever form its port knows places; None on a cable: it has one other end."""


@dataclass(frozen=True, slots=True)
class PendingFrame:
    """What is to be sealed; `about` is the object of ours that it serves. `to`: an origin that is answered,
    None for the peer, wherever it is."""

    type: Type
    payload: bytes = b""
    object_id: int = 0
    fragment: int = 0
    priority: int = 0
    poll: bool = False
    question: bool = False  # and it is what the frame is for
    about: Outgoing | None = None
    to: Origin = None
