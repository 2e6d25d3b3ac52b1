"""A repair stands in for any fragment of its generation, so that nobody need know which one was lost.

Its payload is the sum over GF(2) (exclusive or) of a random half of the generation's fragments, a shorter
last one padded with zeros. The choice, the mask, is drawn from the header by both ends, so no index
travels. A receiver that misses h fragments gets them from h + 1.6 repairs on average (the expected excess
of random binary equations: sum over k of 1 - prod over i > k of (1 - 2^-i)), whichever they are.

Sums and masks are Python integers: an exclusive or of 1,400 B takes 0.1 us.
"""

from __future__ import annotations

import math
import mmap
import struct
from hashlib import blake2s

GENERATION = 256
"""Fragments that are summed together: a mask of them is one BLAKE2s digest."""
_DRAWN_FROM = struct.Struct(">HIB")
_SURE = 1.28  # standard deviations: 9 of 10
_LITTLE = 0.1  # a probability of a loss that is not worth a repair


def generation_size(count: int, generation: int) -> int:
    """How many of an object's `count` fragments are of this generation; 0 or less for none."""
    return min(GENERATION, count - generation * GENERATION)


def mask(digest: bytes, transmission: tuple[int, int], generation: int, size: int) -> int:
    """Which of the `size` fragments of a generation are summed, bit i for the i-th; never none.

    `transmission`: epoch and seq of the REPAIR, so that no two of them are the same sum.
    """
    epoch, seq = transmission
    drawn = blake2s(digest + _DRAWN_FROM.pack(epoch, seq, generation), person=b"sdml-gf2")
    everything = (1 << size) - 1
    return int.from_bytes(drawn.digest(), "little") & everything or everything


def total(data: bytes | bytearray | mmap.mmap, fragment_bytes: int, generation: int, chosen: int) -> int:
    """The sum of the fragments of an object's `data` that are in `chosen`, little-endian."""
    start = generation * GENERATION * fragment_bytes
    summed = 0
    while chosen:
        low = chosen & -chosen
        at = start + (low.bit_length() - 1) * fragment_bytes
        summed ^= int.from_bytes(data[at : at + fragment_bytes], "little")
        chosen ^= low
    return summed


def combine(payload: bytes, fragment_bytes: int, generation: int, chosen: int) -> bytes:
    """The payload of a REPAIR: the sum of the fragments in `chosen`."""
    length = repair_bytes(len(payload), fragment_bytes, generation)
    return total(payload, fragment_bytes, generation, chosen).to_bytes(length, "little")


def repair_bytes(size: int, fragment_bytes: int, generation: int) -> int:
    """Length of a REPAIR's payload: of a fragment, or of the only one there is if that is shorter."""
    return min(fragment_bytes, size - generation * GENERATION * fragment_bytes)


def lacks(missing: int, airborne: int, loss: float, burst: float) -> float:
    """The number of frames that are to be added to those in flight, so that `missing` arrive in 9 of 10
    cases.

    A frame arrives with probability 1 - loss, so the number that does is about normal; in bursts its
    variance is 2 burst - 1 times that of single losses (Gilbert 1960: the chain's correlation time). One
    more than is missing is wanted: a repair that tells nothing new takes its place once or twice.
    """
    if missing == airborne and 1 - (1 - loss) ** airborne <= _LITTLE:
        return 0.0
    arrive = airborne * (1 - loss)
    return missing + 1 - (arrive - _SURE * math.sqrt(arrive * loss * (2 * burst - 1)))


class Equations:
    """What the repairs of one generation say of its missing fragments: as many independent sums as `rank`.

    Kept in reduced row echelon form: the lowest fragment of each row is in no other row. Rows are never
    more than missing fragments, so they take no more memory than these will.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, int]] = {}  # pivot bit: mask, sum

    @property
    def rank(self) -> int:
        """Independent sums held; with this many fragments known otherwise, nothing would be missing."""
        return len(self._rows)

    def add(self, chosen: int, total: int) -> list[tuple[int, int]]:
        """Take the sum of the missing fragments in `chosen`; gives the fragments (index in the
        generation, value) that follow from it. The caller has taken out all that it holds."""
        solved: list[tuple[int, int]] = []
        for pivot, (row, value) in self._rows.items():
            if chosen & pivot:
                chosen ^= row
                total ^= value
        if not chosen:
            return solved
        pivot = chosen & -chosen
        for other, (row, value) in self._rows.items():
            if row & pivot:
                self._rows[other] = row ^ chosen, value ^ total
        self._rows[pivot] = chosen, total
        return self._solved()

    def know(self, index: int, value: int) -> list[tuple[int, int]]:
        """Fragment `index` has come by itself; gives the others that follow from it."""
        bit = 1 << index
        again = self._rows.pop(bit, None)
        for pivot, (row, total) in self._rows.items():
            if row & bit:
                self._rows[pivot] = row ^ bit, total ^ value
        if again is not None:
            return self.add(again[0] ^ bit, again[1] ^ value)
        return self._solved()

    def _solved(self) -> list[tuple[int, int]]:
        alone = [pivot for pivot, (row, _) in self._rows.items() if row == pivot]
        return [(pivot.bit_length() - 1, self._rows.pop(pivot)[1]) for pivot in alone]
