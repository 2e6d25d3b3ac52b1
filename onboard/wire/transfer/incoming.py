"""One object that is being received: its bytes, which of its fragments are held, sums that may give more, and
what is owed to the peer about it.

What it takes of memory follows from the size that its OFFER says, which the inbox bounds before this is
made: the bytes once, at most as much again for sums, and a few bits a fragment. The bytes of a large one take
memory only where a fragment has come, as an OFFER alone is cheap and may come 20 times a second. Sets of
fragments are Python integers, bit i for fragment i.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

from onboard.wire.framing.frame import GROUP_ID
from onboard.wire.messages import MAX_FRAGMENTS, BadMessage, digest, fragments_of
from onboard.wire.transfer import fragments
from onboard.wire.transfer.fragments import GENERATION, Buffer, Equations, recounted
from onboard.wire.transfer.states import INCOMING, IncomingEvent, IncomingState

_LARGE_BYTES = 2**18
_MOST_SUMS = 2048
"""Sums of an object that are held at a time. Each costs some 250 B beside its bytes, and an honest sender has
no more than a generation or two of them on the way; what is not held is repaired or sent again later."""
_RECUTS, _RECUT_S = 8, 5.0  # it may be cut anew 8 times at once, and then every 5 s: there are 8 lengths


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
    """An object being received. data: `size` bytes to go on in, which are this object's from then on.

    `held`: the fragments that are here; `dirty`: those stored since whoever spools it cleared it.
    `object_id`: by which the peer names the object, 0 where it is not offered in the peer's present epoch.
    `report_at`: when a REPORT is to leave, inf where none is owed. `gap_s`: the pause after the last REPORT,
    before the next one that is asked for. `corrupt`: how many times the digest was wrong. `came_at`: when its
    first OFFER of this run came, or its last new fragment.
    """

    def __init__(
        self, digest: bytes, kind: int, size: int, fragment_bytes: int, data: bytearray | None = None
    ) -> None:
        if fragment_bytes < 1 or size < 0 or fragments_of(size, fragment_bytes) > MAX_FRAGMENTS:
            raise ValueError(f"an object of {size} B in fragments of {fragment_bytes} B")
        self.digest, self.kind, self.size, self.fragment_bytes = digest, kind, size, fragment_bytes
        self.held = self.dirty = 0
        self.deadline_s, self.deadline = 0, math.inf
        self._data: Buffer = _zeros(size) if data is None else data
        self._equations: dict[int, Equations] = {}  # by generation; in memory only
        self.state = IncomingState.RESTING
        self.object_id = self.corrupt = 0
        self.report_at, self.came_at = math.inf, -math.inf
        self._reported_at, self.gap_s = -math.inf, 0.0
        self._recuts, self._recut_at = 0.0, -math.inf  # of late: one less after every _RECUT_S

    @classmethod
    def of(cls, partial: Partial) -> Incoming:
        """The object as `partial` left it. Raises ValueError where it contradicts itself."""
        data = partial.data if isinstance(partial.data, bytearray) else bytearray(partial.data)
        incoming = cls(partial.digest, partial.kind, partial.size, partial.fragment_bytes, data)
        if len(data) != partial.size or partial.held >> incoming.count:
            raise ValueError(
                f"partial {partial.digest.hex()} of {partial.size} B has {len(data)} B of data "
                f"and holds up to fragment {partial.held.bit_length() - 1} of {incoming.count}"
            )
        incoming.held, incoming.deadline_s = partial.held, partial.deadline_s
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

    # -- its fragments ---------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of fragments that the object has."""
        return fragments_of(self.size, self.fragment_bytes)

    @property
    def have(self) -> int:
        """The number of fragments that are held."""
        return self.held.bit_count()

    @property
    def complete(self) -> bool:
        """Whether every fragment is held; the digest has yet to say whether they are right."""
        return self.have == self.count

    @property
    def equations(self) -> tuple[tuple[int, int], ...]:
        """Generations of which sums are held that do not yet give fragments, and how many each."""
        return tuple((generation, of.rank) for generation, of in sorted(self._equations.items()) if of.rank)

    def fragment(self, index: int) -> memoryview:
        """The bytes of fragment `index`."""
        return memoryview(self._data)[self._span(index)]

    def store(self, index: int, payload: bytes) -> bool:
        """Keep fragment `index`; True when it was missing. Raises BadMessage and changes nothing."""
        if not 0 <= index < self.count:
            raise BadMessage(f"fragment {index} of {self.count}")
        span = self._span(index)
        if len(payload) != span.stop - span.start:
            raise BadMessage(f"fragment {index} with {len(payload)} B, not {span.stop - span.start}")
        if self.held >> index & 1:
            return False
        self._put(index, payload)
        generation, nth = divmod(index, GENERATION)
        if (equations := self._equations.get(generation)) is not None:
            self._put_all(generation, equations.know(nth, int.from_bytes(payload, "little")))
        return True

    def repair(self, transmission: tuple[int, int], generation: int, payload: bytes) -> bool:
        """Take a sum of fragments, sent as (epoch, seq); True when it told anything new. Raises BadMessage
        and changes nothing."""
        chosen = fragments.mask(self.digest, transmission, generation, self.count)
        if not chosen:
            raise BadMessage(f"repair of generation {generation} of {self.count} fragments")
        length = fragments.repair_bytes(self.size, self.fragment_bytes, generation)
        if len(payload) != length:
            raise BadMessage(f"repair of generation {generation} with {len(payload)} B, not {length}")
        known = self.held >> generation * GENERATION & chosen
        if chosen == known:
            return False
        summed = int.from_bytes(payload, "little")
        summed ^= fragments.total(self._data, self.fragment_bytes, generation, known)
        equations = self._equations.setdefault(generation, Equations())
        if sum(each.rank for each in self._equations.values()) >= _MOST_SUMS:
            return False
        before = self.have + equations.rank
        self._put_all(generation, equations.add(chosen ^ known, summed))
        return self.have + equations.rank > before

    def verified(self) -> bytes | None:
        """The whole object if all of it is held and its digest is right, else None."""
        if not self.complete or digest(self.kind, self._data) != self.digest:
            return None
        self._data = bytes(self._data)  # one copy of it for this and for whoever is told
        return self._data

    def clear(self) -> None:
        """Forget every fragment: the digest was wrong, and nothing tells which of them is to blame."""
        self.held = self.dirty = 0
        self._equations.clear()

    def refragment(self, fragment_bytes: int) -> None:
        """Count in fragments of another length, as a sender with another MTU does.

        A new fragment is held when all of its bytes were, and dirty when some of them are: the bytes of the
        others are on the disk, under a map in the old length that promises no more than is there.
        """
        self.held, saved = (
            recounted(each, self.size, self.fragment_bytes, fragment_bytes)
            for each in (self.held, self.held & ~self.dirty)
        )
        self.dirty = self.held & ~saved
        self._equations.clear()
        self.fragment_bytes = fragment_bytes

    def _put(self, index: int, payload: bytes) -> None:
        span = self._span(index)
        assert not isinstance(self._data, bytes), "a fragment of an object that is whole and verified"
        self._data[span] = payload[: span.stop - span.start]
        self.held |= 1 << index
        self.dirty |= 1 << index

    def _put_all(self, generation: int, solved: list[tuple[int, int]]) -> None:
        for nth, value in solved:
            self._put(generation * GENERATION + nth, value.to_bytes(self.fragment_bytes, "little"))

    def _span(self, index: int) -> slice:
        start = index * self.fragment_bytes
        return slice(start, min(start + self.fragment_bytes, self.size))

    # -- what is owed about it -------------------------------------------------------------------------

    def bind(self, object_id: int) -> None:
        """The peer names the object by this id."""
        self.meet(IncomingEvent.BOUND)
        self.object_id = object_id

    def unbind(self) -> None:
        """The id means nothing any more, and nothing is owed until the object is offered again."""
        self.meet(IncomingEvent.UNBOUND)
        self.object_id, self.report_at = 0, math.inf

    def report_by(self, at: float, pause_s: float = -math.inf, *, asked: bool = False) -> None:
        """A REPORT may leave at `at`, and so long after the last one. About a broadcast it has to be asked
        for."""
        if asked or self.object_id < GROUP_ID:
            self.report_at = min(self.report_at, max(at, self._reported_at + pause_s))

    def reported(self, end: float, gap_s: float) -> None:
        """The REPORT that was owed leaves, its last bit at `end`."""
        self.report_at, self._reported_at, self.gap_s = math.inf, end, gap_s

    @property
    def arrived(self) -> bool:
        """Whether the application has the object, and has not accepted it yet."""
        return self.state is IncomingState.ARRIVED

    def meet(self, event: IncomingEvent) -> None:
        """Something that the object's state follows from has happened, see `states`."""
        after = INCOMING[self.state].get(event)
        assert after is not None, f"{event.name} in state {self.state.name}"
        self.state = after

    def may_recut(self, now: float) -> bool:
        """Whether an OFFER is followed that cuts the object anew. Each time some of what came in is lost, and
        all of it is counted anew; no honest sender does it so often, and offers it again."""
        if self._recuts:
            self._recuts = max(0.0, self._recuts - (now - self._recut_at) / _RECUT_S)
        self._recut_at = now
        if self._recuts > _RECUTS - 1:
            return False
        self._recuts += 1
        return True


def _zeros(size: int) -> bytearray | mmap.mmap:
    """A buffer of zeros, which takes memory page by page as it is written. Raises MemoryError."""
    if size < _LARGE_BYTES:
        return bytearray(size)
    try:
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from None
