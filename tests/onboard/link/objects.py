"""Objects for the tests: random bytes, wholly or partly received."""

from __future__ import annotations

import random
from collections.abc import Iterable

from onboard.link.ports.port import PortEvent
from onboard.link.pump import PumpEvent
from onboard.mission.objects import UPDATE
from onboard.wire.messages import digest
from onboard.wire.transfer.incoming import Incoming


def payload(size: int, seed: int = 1) -> bytes:
    """`size` random bytes."""
    return random.Random(seed).randbytes(size)


def receive(incoming: Incoming, whole: bytes, fragments: Iterable[int]) -> None:
    """Stores these fragments of `whole`."""
    for index in fragments:
        start = index * incoming.fragment_bytes
        incoming.store(index, whole[start : start + incoming.fragment_bytes])


def incoming(whole: bytes, fragment_bytes: int = 100, fragments: Iterable[int] = ()) -> Incoming:
    """An object of which these fragments were received."""
    result = Incoming(digest(UPDATE, whole), UPDATE, len(whole), fragment_bytes)
    receive(result, whole, fragments)
    return result


def lines(events: Iterable[PumpEvent], name: str) -> list[PortEvent]:
    """The events of ports that are logged by this name."""
    return [event for event in events if isinstance(event, PortEvent) and event.name == name]
