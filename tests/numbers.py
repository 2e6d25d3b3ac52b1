"""Every number that is ever used under a key: what is encrypted twice under one tells its exclusive or."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import NO_SALT
from onboard.wire.session import Session
from tests.onboard.storage.test_boot_counter import DAMAGE


class Number(NamedTuple):
    """Of one frame that left: its nonce is made of the last four, its key of the rest."""

    key: bytes
    salt: bytes
    source: int
    destination: int
    epoch: int
    seq: int


class Numbers:
    """Of all frames but HELLO, which is never encrypted and has a subkey of its own."""

    def __init__(self) -> None:
        self.used: dict[Number, bytes] = {}
        self.hellos = 0

    def look_at(self, session: Session, raw: bytes) -> None:
        """Raises AssertionError for a number that was used before, or a frame under no salt."""
        frame = framing.unproven(raw)
        if frame.type is Type.HELLO:
            self.hellos += 1
            return
        keys, salt = session._security._keys, session.salt
        assert salt != NO_SALT, f"{frame} left before anything was agreed on"
        number = Number(keys[frame.key_id], salt, frame.source, frame.destination, frame.epoch, frame.seq)
        assert number not in self.used, f"{number} was used twice"
        self.used[number] = raw

    @property
    def salts(self) -> int:
        return len({number.salt for number in self.used})


@contextmanager
def recorded() -> Iterator[Numbers]:
    """All sessions of this process are watched for as long as this lasts."""
    numbers, transmit = Numbers(), Session.transmit

    def watched(session: Session, now: float) -> bytes | None:
        raw = transmit(session, now)
        if raw is not None:
            numbers.look_at(session, raw)
        return raw

    Session.transmit = watched  # type: ignore[method-assign]
    try:
        yield numbers
    finally:
        Session.transmit = transmit  # type: ignore[method-assign]


def spoil(state: Path, drawn: random.Random) -> str:
    """One of what befalls a node's journal while it is off; returns what."""
    slots = sorted(state.glob("journal.?"))
    ways: list[Callable[[Path, random.Random], None]] = DAMAGE if len(slots) == 2 else []
    kind = drawn.choice(["nothing", "slot", "slot", "slot", "both"])
    if not ways or kind == "nothing":
        return "nothing"
    if kind == "both":
        for slot in slots:
            slot.unlink()
        return kind
    way = drawn.choice(ways)
    way(drawn.choice(slots), drawn)
    return way.__name__
