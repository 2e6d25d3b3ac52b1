"""Codes bits that are not random in little more than their entropy; any bytes at all decode to bits.

This is an adaptive binary range coder (G. N. N. Martin, "Range encoding", 1979): each bit narrows a 32-bit
range by the probability that its context has learned from the bits before it, so that no statistics travel.
It uses only integers, so every machine decodes the same. A decoder that has run out of bytes reads zeros; its
caller decides how many bits it asks for, and so bounds time and memory.

A context is a list [zeros, ones]: twice how often a bit was 0 and 1 so far, plus one each (Krichevsky and
Trofimov's estimator). Plain lists and two like loops in the decoder save a call or an attribute for every
bit, half of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

FULL = 1 << 32
REFILL = 1 << 24  # under it a byte is settled, and leaves or enters
FORGET = 512  # counts are halved here, so that a context follows statistics that change

Context = list[int]
Tree = list[Context]


def context() -> Context:
    return [1, 1]


def tree(bits: int) -> Tree:
    """Makes contexts for numbers of `bits` bits, highest first: each bit under all the bits before it."""
    return [context() for _ in range(1 << bits)]


@dataclass(slots=True)
class Encoder:
    """Takes bits with their contexts; `finish` gives the bytes."""

    _out: bytearray = field(default_factory=bytearray)
    _low: int = 0
    _range: int = FULL

    @property
    def settled(self) -> int:
        """Counts the bytes that have left; up to 4 more hold what was put last."""
        return len(self._out)

    def put(self, bit: int, counts: Context) -> None:
        zeros, ones = counts
        zero = self._range * zeros // (zeros + ones)
        if bit:
            self._low += zero
            self._range -= zero
        else:
            self._range = zero
        counts[bit] += 2
        if zeros + ones >= FORGET - 1:
            counts[0], counts[1] = counts[0] + 1 >> 1, counts[1] + 1 >> 1
        while self._range < REFILL:
            self._shift()
            self._range <<= 8

    def put_numbers(self, values: Sequence[int], bits: int, trees: Sequence[Tree]) -> None:
        """Puts each of `values` (`bits` bits) in the tree at its place in `trees`."""
        for value, nodes in zip(values, trees, strict=True):
            node = 1
            for shift in range(bits - 1, -1, -1):
                bit = value >> shift & 1
                self.put(bit, nodes[node])
                node = node << 1 | bit

    def _shift(self) -> None:
        """Settles the highest byte of `low`; a carry that comes later runs back through the bytes."""
        if self._low >= FULL:
            self._low -= FULL
            last = len(self._out) - 1
            while self._out[last] == 0xFF:
                self._out[last] = 0
                last -= 1
            self._out[last] += 1
        self._out.append(self._low >> 24)
        self._low = (self._low & (REFILL - 1)) << 8

    def finish(self) -> bytes:
        """Returns the shortest bytes that decode to what was put: a decoder reads trailing zeros anyway."""
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

    def get(self, counts: Context) -> int:
        zeros, ones = counts
        zero = self._range * zeros // (zeros + ones)
        if self._code < zero:
            bit = 0
            self._range = zero
        else:
            bit = 1
            self._code -= zero
            self._range -= zero
        counts[bit] += 2
        if zeros + ones >= FORGET - 1:
            counts[0], counts[1] = counts[0] + 1 >> 1, counts[1] + 1 >> 1
        while self._range < REFILL:
            byte = self._data[self._at] if self._at < len(self._data) else 0
            self._at += 1
            self._code = self._code << 8 | byte
            self._range <<= 8
        return bit

    def get_numbers(self, bits: int, trees: Sequence[Tree]) -> list[int]:
        data, end = self._data, len(self._data)
        at, code, span = self._at, self._code, self._range
        values, leaf = [], 1 << bits
        for nodes in trees:
            node = 1
            while node < leaf:
                counts = nodes[node]
                zeros, ones = counts
                zero = span * zeros // (zeros + ones)
                if code < zero:
                    span = zero
                    node <<= 1
                    counts[0] = zeros + 2
                else:
                    code -= zero
                    span -= zero
                    node = node << 1 | 1
                    counts[1] = ones + 2
                if zeros + ones >= FORGET - 1:
                    counts[0], counts[1] = counts[0] + 1 >> 1, counts[1] + 1 >> 1
                while span < REFILL:
                    code = code << 8 | (data[at] if at < end else 0)
                    at += 1
                    span <<= 8
            values.append(node - leaf)
        self._at, self._code, self._range = at, code, span
        return values
