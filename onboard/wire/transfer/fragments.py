"""A set of an object's fragments in one bit each, as there may be 65,535 of them."""

from __future__ import annotations

from collections.abc import Iterator, MutableSet


class Fragments(MutableSet[int]):
    """Their indices. `bits`: bit i is set for fragment i."""

    def __init__(self, bits: int = 0) -> None:
        self.bits = bits
        self._count = bits.bit_count()

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index >= 0 and bool(self.bits >> index & 1)

    def __iter__(self) -> Iterator[int]:
        """In ascending order."""
        left = f"{self.bits:b}"[::-1]
        at = left.find("1")
        while at >= 0:
            yield at
            at = left.find("1", at + 1)

    def __len__(self) -> int:
        return self._count

    def add(self, index: int) -> None:
        """See `MutableSet`."""
        self._count += index not in self
        self.bits |= 1 << index

    def discard(self, index: int) -> None:
        """See `MutableSet`."""
        self._count -= index in self
        self.bits &= ~(1 << index)

    def clear(self) -> None:
        """All of them at once."""
        self.bits = self._count = 0
