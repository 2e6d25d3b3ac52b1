"""Bits that are not random leave in little more than their entropy, and any bytes at all decode to bits.

An adaptive binary range coder (G. N. N. Martin, "Range encoding", 1979): each bit narrows a 32-bit range by
the probability its context has learned from the bits before it, so that no statistics travel. Only integers
are used: every machine decodes the same, and a board needs no compression library. A decoder that has run out
of bytes reads zeros; its caller decides how many bits it asks for, and so bounds time and memory whatever the
bytes are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FULL = 1 << 32
REFILL = 1 << 24  # under it a byte is settled, and leaves or enters
FORGET = 512  # counts are halved here, so that a context follows statistics that change


@dataclass(slots=True)
class Context:
    """Twice how often a bit was 0 and 1 so far, plus one each (Krichevsky and Trofimov's estimator)."""

    zeros: int = 1
    ones: int = 1

    def learn(self, bit: int) -> None:
        if bit:
            self.ones += 2
        else:
            self.zeros += 2
        if self.zeros + self.ones > FORGET:
            self.zeros = self.zeros + 1 >> 1
            self.ones = self.ones + 1 >> 1


@dataclass(slots=True)
class Encoder:
    """Takes bits with their contexts; `finish` gives the bytes."""

    _out: bytearray = field(default_factory=bytearray)
    _low: int = 0
    _range: int = FULL

    @property
    def settled(self) -> int:
        """Bytes that have left so far; up to 4 more hold what was put last."""
        return len(self._out)

    def put(self, bit: int, context: Context) -> None:
        zero = self._range * context.zeros // (context.zeros + context.ones)
        if bit:
            self._low += zero
            self._range -= zero
        else:
            self._range = zero
        context.learn(bit)
        while self._range < REFILL:
            self._shift()
            self._range <<= 8

    def _shift(self) -> None:
        """The highest byte of `low` is settled, except for a carry that may still come; then it runs back."""
        if self._low >= FULL:
            self._carry()
        self._out.append(self._low >> 24)
        self._low = (self._low & (REFILL - 1)) << 8

    def _carry(self) -> None:
        self._low -= FULL
        last = len(self._out) - 1
        while self._out[last] == 0xFF:
            self._out[last] = 0
            last -= 1
        self._out[last] += 1

    def finish(self) -> bytes:
        """The shortest bytes that decode to what was put: trailing zeros are left off, since a decoder reads
        them anyway.
        """
        # Of all values in [low, low + range) the one with the most trailing zero bits needs the fewest bytes.
        for kept in (8, 16, 24, 32):
            unit = FULL >> kept
            value = -(-self._low // unit) * unit
            if value < self._low + self._range:
                self._low = value
                break
        for _ in range(4):
            self._shift()
        return bytes(self._out).rstrip(b"\0")


@dataclass(slots=True)
class Decoder:
    """Gives bits back for the same contexts in the same order; total on any bytes."""

    _data: bytes
    _at: int = 4
    _code: int = 0  # how far into the range the encoder's value lies
    _range: int = FULL

    def __post_init__(self) -> None:
        self._code = int.from_bytes(self._data[:4].ljust(4, b"\0"), "big")

    def get(self, context: Context) -> int:
        zero = self._range * context.zeros // (context.zeros + context.ones)
        if self._code < zero:
            bit = 0
            self._range = zero
        else:
            bit = 1
            self._code -= zero
            self._range -= zero
        context.learn(bit)
        while self._range < REFILL:
            byte = self._data[self._at] if self._at < len(self._data) else 0
            self._at += 1
            self._code = self._code << 8 | byte
            self._range <<= 8
        return bit
