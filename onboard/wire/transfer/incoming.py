"""One object that is being received: its bytes, which of its fragments are held, and sums that may give more.

What it takes of memory follows from the size that its OFFER says, which the inbox bounds before this is
made: the bytes once, at most as much again for sums, and a few bits a fragment. The bytes of a large one take
memory only where a fragment has come, as an OFFER alone is cheap and may come 20 times a second. Sets of
fragments are Python integers, bit i for fragment i.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

from onboard.wire.messages import MAX_FRAGMENTS, digest, fragments_of
from onboard.wire.transfer import repair
from onboard.wire.transfer.fragments import Fragments, recounted
from onboard.wire.transfer.repair import GENERATION, Equations

Buffer = bytes | bytearray | mmap.mmap

_LARGE_BYTES = 2**18
_MOST_SUMS = 2048
"""Sums of an object that are held at a time. Each costs some 250 B beside its bytes, and an honest sender has
no more than a generation or two of them on the way; what is not held is repaired or sent again later."""


class BadFragment(ValueError):  # noqa: N818 - "bad" says error already
    """A fragment that the object cannot have: an index out of range, or a wrong length."""


@dataclass(frozen=True, slots=True)
class Partial:
    """A half-received object as a spool keeps it.

    `held`: bit i is set when fragment i is held. `data`: `size` bytes, of which only the held fragments
    mean anything. `deadline_s`: seconds of contact that its last OFFER left it, 0 for no deadline.
    """

    digest: bytes
    kind: int
    size: int
    fragment_bytes: int
    held: int
    data: Buffer
    deadline_s: int = 0


class Incoming:
    """An object being received. `dirty` holds the fragments stored since whoever spools it cleared it.

    data: `size` bytes to go on in, which are this object's from then on.
    """

    def __init__(
        self, digest: bytes, kind: int, size: int, fragment_bytes: int, data: bytearray | None = None
    ) -> None:
        if fragment_bytes < 1 or size < 0 or fragments_of(size, fragment_bytes) > MAX_FRAGMENTS:
            raise ValueError(f"an object of {size} B in fragments of {fragment_bytes} B")
        self.digest, self.kind, self.size, self.fragment_bytes = digest, kind, size, fragment_bytes
        self.count = fragments_of(size, fragment_bytes)
        self.held = 0
        self.have = 0
        self.dirty = Fragments()
        self.deadline_s, self.deadline = 0, math.inf
        self._data: Buffer = _zeros(size) if data is None else data
        self._all = (1 << self.count) - 1
        self._equations: dict[int, Equations] = {}  # by generation; in memory only

    @classmethod
    def of(cls, partial: Partial) -> Incoming:
        """The object as `partial` left it. Raises ValueError where it contradicts itself."""
        data = partial.data if isinstance(partial.data, bytearray) else bytearray(partial.data)
        incoming = cls(partial.digest, partial.kind, partial.size, partial.fragment_bytes, data)
        if len(data) != partial.size or partial.held & ~incoming._all or partial.held < 0:
            raise ValueError(
                f"partial {partial.digest.hex()} of {partial.size} B has {len(data)} B of data "
                f"and holds up to fragment {partial.held.bit_length() - 1} of {incoming.count}"
            )
        incoming.held = partial.held
        incoming.have = partial.held.bit_count()
        incoming.deadline_s = partial.deadline_s
        return incoming

    def partial(self) -> Partial:
        """What to keep so that `of` can go on from here. The data is not copied."""
        return Partial(
            self.digest, self.kind, self.size, self.fragment_bytes, self.held, self._data, self.deadline_s
        )

    def end_by(self, deadline_s: int, now: float) -> None:
        """The object has so many seconds left, 0 for no deadline."""
        self.deadline_s = deadline_s
        self.deadline = now + deadline_s if deadline_s else math.inf

    @property
    def complete(self) -> bool:
        """Whether every fragment is held; the digest has yet to say whether they are right."""
        return self.have == self.count

    def store(self, index: int, payload: bytes) -> bool:
        """Keep fragment `index`; True when it was missing. Raises BadFragment and changes nothing."""
        if not 0 <= index < self.count:
            raise BadFragment(f"fragment {index} of {self.count}")
        start, end = self._span(index)
        if len(payload) != end - start:
            raise BadFragment(f"fragment {index} with {len(payload)} B, not {end - start}")
        if self.held >> index & 1:
            return False
        self._put(index, payload)
        generation, nth = divmod(index, GENERATION)
        equations = self._equations.get(generation)
        if equations is not None:
            self._put_all(generation, equations.know(nth, int.from_bytes(payload, "little")))
        return True

    def repair(self, transmission: tuple[int, int], generation: int, payload: bytes) -> bool:
        """Take a sum of fragments, sent as (epoch, seq); True when it told anything new.

        Raises BadFragment and changes nothing.
        """
        size = repair.generation_size(self.count, generation)
        if size <= 0:
            raise BadFragment(f"repair of generation {generation} of {self.count} fragments")
        length = repair.repair_bytes(self.size, self.fragment_bytes, generation)
        if len(payload) != length:
            raise BadFragment(f"repair of generation {generation} with {len(payload)} B, not {length}")
        chosen = repair.mask(self.digest, transmission, generation, size)
        known = self.held >> generation * GENERATION & chosen
        if chosen == known:
            return False
        summed = int.from_bytes(payload, "little")
        summed ^= repair.total(self._data, self.fragment_bytes, generation, known)
        equations = self._equations.setdefault(generation, Equations())
        if sum(each.rank for each in self._equations.values()) >= _MOST_SUMS:
            return False
        before = self.have + equations.rank
        self._put_all(generation, equations.add(chosen ^ known, summed))
        return self.have + equations.rank > before

    @property
    def equations(self) -> tuple[tuple[int, int], ...]:
        """Generations of which sums are held that do not yet give fragments, and how many each."""
        return tuple((generation, of.rank) for generation, of in sorted(self._equations.items()) if of.rank)

    def fragment(self, index: int) -> memoryview:
        """The bytes of fragment `index`."""
        start, end = self._span(index)
        return memoryview(self._data)[start:end]

    def verified(self) -> bytes | None:
        """The whole object if all of it is held and its digest is right, else None."""
        if not self.complete:
            return None
        if digest(self.kind, self._data) != self.digest:
            return None
        self._data = bytes(self._data)  # one copy of it for this and for whoever is told
        return self._data

    def clear(self) -> None:
        """Forget every fragment: the digest was wrong, and nothing tells which of them is to blame."""
        self.held = self.have = 0
        self.dirty.clear()
        self._equations.clear()

    def refragment(self, fragment_bytes: int) -> None:
        """Count in fragments of another length, as a sender with another MTU does.

        A new fragment is held when all of its bytes were, and dirty when some of them are: the bytes of the
        others are on the disk, under a map in the old length that promises no more than is there.
        """
        held, saved = (
            recounted(each, self.size, self.fragment_bytes, fragment_bytes)
            for each in (self.held, self.held & ~self.dirty.bits)
        )
        self._equations.clear()
        self.fragment_bytes, self.count = fragment_bytes, fragments_of(self.size, fragment_bytes)
        self.held, self.have = held, held.bit_count()
        self._all = (1 << self.count) - 1
        self.dirty = Fragments(held & ~saved)

    def _put(self, index: int, payload: bytes) -> None:
        start, end = self._span(index)
        assert not isinstance(self._data, bytes), "a fragment of an object that is whole and verified"
        self._data[start:end] = payload[: end - start]
        self.held |= 1 << index
        self.have += 1
        self.dirty.add(index)

    def _put_all(self, generation: int, solved: list[tuple[int, int]]) -> None:
        for nth, value in solved:
            self._put(generation * GENERATION + nth, value.to_bytes(self.fragment_bytes, "little"))

    def _span(self, index: int) -> tuple[int, int]:
        start = index * self.fragment_bytes
        return start, min(start + self.fragment_bytes, self.size)


def _zeros(size: int) -> bytearray | mmap.mmap:
    """A buffer of zeros, which takes memory page by page as it is written. Raises MemoryError."""
    if size < _LARGE_BYTES:
        return bytearray(size)
    try:
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from None
