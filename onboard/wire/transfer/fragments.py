"""Sets of an object's fragments in one bit each, as there may be 65,535 of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableSet

from onboard.wire.messages import fragments_of

_RUN = re.compile("1+")


class Fragments(MutableSet[int]):
    """Their indices. `bits`: bit i is set for fragment i."""

    def __init__(self, bits: int = 0) -> None:
        self.bits = bits
        self._count = bits.bit_count()

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index >= 0 and bool(self.bits >> index & 1)

    def __iter__(self) -> Iterator[int]:
        """Gives the indices in ascending order."""
        left = f"{self.bits:b}"[::-1]
        at = left.find("1")
        while at >= 0:
            yield at
            at = left.find("1", at + 1)

    def __len__(self) -> int:
        return self._count

    def add(self, index: int) -> None:
        """Does what `MutableSet` says."""
        self._count += index not in self
        self.bits |= 1 << index

    def discard(self, index: int) -> None:
        """Does what `MutableSet` says."""
        self._count -= index in self
        self.bits &= ~(1 << index)

    def clear(self) -> None:
        """All of them at once."""
        self.bits = self._count = 0


def recounted(held: int, size: int, fragment_bytes: int, other_bytes: int) -> int:
    """The set `held` of fragments of `fragment_bytes`, counted in fragments of `other_bytes`: one of these is
    held where all of its bytes are. The object has `size` bytes. It goes by runs of fragments, as a peer may
    ask for it with 65,535 of them."""
    count = fragments_of(size, other_bytes)
    bits = bytearray(b"0" * count)
    for run in _RUN.finditer(f"{held:b}"[::-1]):
        end = min(run.end() * fragment_bytes, size)
        first = -(-run.start() * fragment_bytes // other_bytes)
        last = count if end == size else end // other_bytes
        if first < last:
            bits[first:last] = b"1" * (last - first)
    return int(bits[::-1] or b"0", 2)
