"""What a line does wrong beyond losing frames: a terminal that eats bytes, an echo, a modem that keys late.

A fault is a small transformer of the pieces that cross a cable, in both directions alike, and it counts what
it did: a line that spoiled nothing has shown nothing. Pure and seeded, as the channel is. What a fault
changes in length, it changes at the receiver, so that the channel counts what the programs have sent.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable

from firmware_sim.world.channel import Side, other

XON, XOFF = 0x11, 0x13
IAC = 0xFF  # telnet's "interpret as command" (RFC 854), doubled where it is data
NOISE_EVERY_S = 0.25  # on a line that carries nothing
PAUSE_S = 0.02  # a line so long without a byte begins a burst with the next one


class Fault:
    """A line that does nothing wrong. `hits` counts, for each side, what befell the bytes that it sent and
    what was added to them."""

    def __init__(self, source: random.Random, strength: float) -> None:
        self.hits: Counter[Side] = Counter()
        self.random, self.strength = source, strength

    def depart(self, side: Side, piece: bytes, begins_burst: bool) -> bytes:
        """Returns what of a piece leaves that side; the length stays."""
        return piece

    def arrive(self, side: Side, piece: bytes) -> bytes:
        """Returns what of a piece that the other side sent arrives at this one."""
        return piece

    def echo(self, side: Side, piece: bytes) -> bytes:
        """Returns what that side hears of what it sent itself."""
        return b""

    def idle(self, side: Side) -> bytes:
        """Returns what that side hears while nobody speaks."""
        return b""

    def stops(self, side: Side, now: float, sent_bytes: int) -> bool:
        """Whether the line takes nothing from that side now."""
        return False


class EatXonXoff(Fault):
    """Software flow control that nobody asked for: XON and XOFF are taken for commands and never arrive."""

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
    """A path with a smaller MTU than the profile's: what is longer than `strength` bytes vanishes."""

    def arrive(self, side: Side, piece: bytes) -> bytes:
        too_long = len(piece) > self.strength
        self.hits[other(side)] += too_long
        return b"" if too_long else piece


class SpoilBursts(Fault):
    """A modem that keys late: the first 1 to `strength` bytes after a pause are wrong."""

    def __init__(self, source: random.Random, strength: float) -> None:
        super().__init__(source, strength)
        self._left: Counter[Side] = Counter()

    def depart(self, side: Side, piece: bytes, begins_burst: bool) -> bytes:
        if begins_burst:
            self._left[side] = self.random.randint(1, int(self.strength))
        spoiled = min(self._left[side], len(piece))
        self._left[side] -= spoiled
        self.hits[side] += spoiled
        wrong = bytes(byte ^ self.random.randint(1, 255) for byte in piece[:spoiled])
        return wrong + piece[spoiled:]


class Noise(Fault):
    """A receiver without a squelch: up to `strength` random bytes before each frame, and now and then on a
    line that carries nothing."""

    def arrive(self, side: Side, piece: bytes) -> bytes:
        return self.idle(side) + piece

    def idle(self, side: Side) -> bytes:
        noise = self.random.randbytes(self.random.randint(1, int(self.strength)))
        self.hits[other(side)] += len(noise)
        return noise


class Echo(Fault):
    """Two wires, or a modem with local echo: each side hears every byte that it sends."""

    def echo(self, side: Side, piece: bytes) -> bytes:
        self.hits[side] += len(piece)
        return piece


class Stall(Fault):
    """A device that takes nothing for `strength` seconds, once for each side, in the midst of an object."""

    AFTER_BYTES = 600  # that a side has sent

    def __init__(self, source: random.Random, strength: float) -> None:
        super().__init__(source, strength)
        self._since: dict[Side, float] = {}

    def stops(self, side: Side, now: float, sent_bytes: int) -> bool:
        if side not in self._since and sent_bytes < self.AFTER_BYTES:
            return False
        since = self._since.setdefault(side, now)
        stalled_s = min(now - since, self.strength)
        self.hits[side] = int(stalled_s)
        return now - since < self.strength


DATAGRAMS = ("drop-long", "stall")  # what befalls datagrams, too; the others are a byte stream's
FAULTS: dict[str, tuple[type[Fault], float, str]] = {
    "eat-xonxoff": (EatXonXoff, 0, "bytes eaten"),
    "double-ff": (DoubleFF, 0, "bytes doubled"),
    "drop-long": (DropLong, 1200, "frames dropped"),
    "spoil-bursts": (SpoilBursts, 16, "bytes spoiled"),
    "noise": (Noise, 16, "bytes of noise"),
    "echo": (Echo, 0, "bytes echoed"),
    "stall": (Stall, 30, "s stalled"),
}
"""By name: what it is, its strength unless another is given (0: it has none), and what its hits are."""


class Faults(dict[str, Fault]):
    """All that is wrong with one line, by name: one fault acts after the other, as `Fault` says."""

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
        """What was done to what that side sent, by the faults' names."""
        return {name: fault.hits[side] for name, fault in self.items()}


def parse_faults(texts: Iterable[str], seed: int, *, datagrams: bool) -> Faults:
    """Those that `NAME` or `NAME=STRENGTH` ask for. Raises ValueError with the text that is wrong."""
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
        found[name] = kind(random.Random(f"{seed}/{name}"), strength)
    for name in found:
        if datagrams and name not in DATAGRAMS:
            raise ValueError(f"--fault {name}: befalls a serial line, and these ends are UDP")
    return found
