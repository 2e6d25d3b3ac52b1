"""Faults of a line beyond lost frames: a terminal that eats bytes, an echo, a modem that keys late.

A fault transforms the bytes that cross a cable, alike in both directions, and counts what it did: a fault
that hit nothing has tested nothing. It is pure and seeded. Changes of length happen at the receiver, so the
channel counts what the programs sent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from firmware_sim.world.channel import Side, other

XON, XOFF = 0x11, 0x13
IAC = 0xFF  # telnet's "interpret as command" (RFC 854), doubled where it is data
NOISE_EVERY_S = 0.25  # on a line that carries nothing
PAUSE_S = 0.02  # after so long without a byte, the next one begins a burst


@dataclass
class Fault:
    """A line without faults. `hits` counts, by sender, the bytes or frames that were spoiled or added."""

    random: Random
    strength: float
    hits: Counter[Side] = field(default_factory=Counter)

    def depart(self, side: Side, piece: bytes, begins_burst: bool) -> bytes:
        """Returns the bytes that leave that side, of the same length."""
        return piece

    def arrive(self, side: Side, piece: bytes) -> bytes:
        """Returns what arrives at that side of a piece that the other side sent."""
        return piece

    def echo(self, side: Side, piece: bytes) -> bytes:
        """Returns what that side hears of its own bytes."""
        return b""

    def idle(self, side: Side) -> bytes:
        """Returns what that side hears while nobody speaks."""
        return b""

    def stops(self, side: Side, now: float, sent_bytes: int) -> bool:
        """Whether the line takes nothing from that side now."""
        return False


class EatXonXoff(Fault):
    """Unwanted software flow control: XON and XOFF are taken for commands and never arrive."""

    def arrive(self, side: Side, piece: bytes) -> bytes:
        left = piece.translate(None, bytes((XON, XOFF)))
        self.hits[other(side)] += len(piece) - len(left)
        return left


class DoubleFF(Fault):
    """A terminal server that speaks telnet: every 0xFF arrives twice."""

    def arrive(self, side: Side, piece: bytes) -> bytes:
        self.hits[other(side)] += piece.count(IAC)
        return piece.replace(bytes((IAC,)), bytes((IAC, IAC)))


class DropLong(Fault):
    """A path with a smaller MTU than the profile's: pieces longer than `strength` bytes vanish."""

    def arrive(self, side: Side, piece: bytes) -> bytes:
        too_long = len(piece) > self.strength
        self.hits[other(side)] += too_long
        return b"" if too_long else piece


@dataclass
class SpoilBursts(Fault):
    """A modem that keys late: the first 1 to `strength` bytes after a pause are wrong."""

    _left: Counter[Side] = field(default_factory=Counter)

    def depart(self, side: Side, piece: bytes, begins_burst: bool) -> bytes:
        if begins_burst:
            self._left[side] = self.random.randint(1, int(self.strength))
        spoiled = min(self._left[side], len(piece))
        self._left[side] -= spoiled
        self.hits[side] += spoiled
        wrong = bytes(byte ^ self.random.randint(1, 255) for byte in piece[:spoiled])
        return wrong + piece[spoiled:]


class Noise(Fault):
    """A receiver without a squelch: up to `strength` random bytes before each frame and on an idle line."""

    def arrive(self, side: Side, piece: bytes) -> bytes:
        return self.idle(side) + piece

    def idle(self, side: Side) -> bytes:
        noise = self.random.randbytes(self.random.randint(1, int(self.strength)))
        self.hits[other(side)] += len(noise)
        return noise


class Echo(Fault):
    """A two-wire line, or a modem with local echo: each side hears every byte that it sends."""

    def echo(self, side: Side, piece: bytes) -> bytes:
        self.hits[side] += len(piece)
        return piece


@dataclass
class Stall(Fault):
    """A device that takes nothing for `strength` seconds, once per side, in the middle of an object."""

    AFTER_BYTES = 600  # that a side has sent
    _since: dict[Side, float] = field(default_factory=dict)

    def stops(self, side: Side, now: float, sent_bytes: int) -> bool:
        if side not in self._since and sent_bytes < self.AFTER_BYTES:
            return False
        since = self._since.setdefault(side, now)
        stalled_s = min(now - since, self.strength)
        self.hits[side] = int(stalled_s)
        return now - since < self.strength


DATAGRAMS = ("drop-long", "stall")  # those that can hit datagrams too; the others need a byte stream
FAULTS: dict[str, tuple[type[Fault], float, str]] = {
    "eat-xonxoff": (EatXonXoff, 0, "bytes eaten"),
    "double-ff": (DoubleFF, 0, "bytes doubled"),
    "drop-long": (DropLong, 1200, "frames dropped"),
    "spoil-bursts": (SpoilBursts, 16, "bytes spoiled"),
    "noise": (Noise, 16, "bytes of noise"),
    "echo": (Echo, 0, "bytes echoed"),
    "stall": (Stall, 30, "s stalled"),
}
"""By name: the class, the default strength (0: it takes none), and what its hits count."""


class Faults(dict[str, Fault]):
    """All faults of one line, by name, applied one after the other."""

    def depart(self, side: Side, piece: bytes, begins_burst: bool) -> bytes:
        for fault in self.values():
            piece = fault.depart(side, piece, begins_burst)
        return piece

    def arrive(self, side: Side, piece: bytes) -> bytes:
        for fault in self.values():
            piece = fault.arrive(side, piece)
        return piece

    def echo(self, side: Side, piece: bytes) -> bytes:
        return b"".join(fault.echo(side, piece) for fault in self.values())

    def idle(self, side: Side) -> bytes:
        return b"".join(fault.idle(side) for fault in self.values())

    def stops(self, side: Side, now: float, sent_bytes: int) -> bool:
        stopped = [fault.stops(side, now, sent_bytes) for fault in self.values()]
        return any(stopped)

    def hits(self, side: Side) -> dict[str, int]:
        """Returns the hits on what that side sent, by fault."""
        return {name: fault.hits[side] for name, fault in self.items()}


def parse_faults(texts: Iterable[str], seed: int, *, datagrams: bool) -> Faults:
    """Parses `NAME` or `NAME=STRENGTH`. Raises ValueError with the offending text."""
    found = Faults()
    for text in texts:
        name, equals, number = text.partition("=")
        if name not in FAULTS:
            raise ValueError(f"--fault {text}: must be one of {', '.join(FAULTS)}")
        kind, strength, _ = FAULTS[name]
        if equals:
            try:
                strength = float(number) if strength else math.nan
            except ValueError:
                strength = math.nan
            if not 1 <= strength < math.inf:
                raise ValueError(
                    f"--fault {text}: {number!r} is not a strength of at least 1, or it takes none"
                )
        found[name] = kind(Random(f"{seed}/{name}"), strength)
    for name in found:
        if datagrams and name not in DATAGRAMS:
            raise ValueError(f"--fault {name}: befalls a serial line, and these ends are UDP")
    return found
