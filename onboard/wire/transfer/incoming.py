"""One object that is being received: its bytes, the fragments held, and when a REPORT on it is due.

It takes the size in its OFFER, which the inbox bounds, at most as much again for sums, and a few bits a
fragment. The bytes of a large object take memory only where fragments came, as OFFERs are cheap."""

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
"""The most sums of one object that are held: each costs 250 B beside its bytes, and an honest sender has no
more than a generation or two in flight. A dropped one is repaired or sent again later."""
_RECUTS, _RECUT_S = 8, 5.0  # refragmentations at once (there are 8 lengths), then one every 5 s


@dataclass(frozen=True, slots=True)
class Partial:
    """A half-received object as a spool keeps it. `held`: bit i is set when fragment i is held, and `data`,
    of `size` bytes, valid there. `deadline_s`: seconds of contact that its last OFFER left it, 0 for none."""

    digest: bytes
    kind: int
    size: int
    fragment_bytes: int
    held: int
    data: Buffer
    deadline_s: int = 0


class Incoming:
    """An object that is being received. It owns `data`, the `size` bytes to resume in. `dirty`: the fragments
    stored since the spool last cleared it. `object_id`: 0 where the peer offers it under none in this epoch.
    `report_at`: when a REPORT may leave, inf for never. `gap_s`: the least pause between the last REPORT and
    the next that is polled for. `corrupt`: how often the digest was wrong. `came_at`: the time of its first
    OFFER in this run, or of its last new fragment."""

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
        self._recuts, self._recut_at = 0.0, -math.inf  # decays by one every _RECUT_S

    @classmethod
    def of(cls, partial: Partial) -> Incoming:
        """Resume the object that `partial` holds. Raises ValueError where it contradicts itself."""
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
        """Return what `of` resumes from, without copying the data."""
        return Partial(
            self.digest, self.kind, self.size, self.fragment_bytes, self.held, self._data, self.deadline_s
        )

    def end_by(self, deadline_s: int, now: float) -> None:
        self.deadline_s = deadline_s
        self.deadline = now + deadline_s if deadline_s else math.inf

    # -- its fragments ---------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return fragments_of(self.size, self.fragment_bytes)

    @property
    def have(self) -> int:
        return self.held.bit_count()

    @property
    def complete(self) -> bool:
        """Whether every fragment is held; the digest is not yet checked."""
        return self.have == self.count

    @property
    def equations(self) -> tuple[tuple[int, int], ...]:
        """The generations with unsolved sums, and the number of these."""
        return tuple((generation, of.rank) for generation, of in sorted(self._equations.items()) if of.rank)

    def fragment(self, index: int) -> memoryview:
        return memoryview(self._data)[self._span(index)]

    def store(self, index: int, payload: bytes) -> bool:
        """Store fragment `index`; True when it was missing. Raises BadMessage and changes nothing."""
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
        """Take in a sum sent as (epoch, seq); True when it was new. Raises BadMessage and changes nothing."""
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
        """Return the whole object if all of it is held and its digest is right, else None."""
        if not self.complete or digest(self.kind, self._data) != self.digest:
            return None
        self._data = bytes(self._data)  # one copy, shared with the application
        return self._data

    def clear(self) -> None:
        """Drop every fragment: the digest was wrong, and nothing tells which one is to blame."""
        self.held = self.dirty = 0
        self._equations.clear()

    def refragment(self, fragment_bytes: int) -> None:
        """Count in fragments of another length, as a sender with another MTU does. A new fragment is held
        when all of its bytes are, and dirty unless the spool's map, in the old length, covers it."""
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
        self.meet(IncomingEvent.BOUND)
        self.object_id = object_id

    def unbind(self) -> None:
        self.meet(IncomingEvent.UNBOUND)
        self.object_id, self.report_at = 0, math.inf

    def report_by(self, at: float, pause_s: float = -math.inf, *, asked: bool = False) -> None:
        """Let a REPORT leave at `at`, or `pause_s` after the last if later. Broadcasts must be polled for."""
        if asked or self.object_id < GROUP_ID:
            self.report_at = min(self.report_at, max(at, self._reported_at + pause_s))

    def reported(self, end: float, gap_s: float) -> None:
        self.report_at, self._reported_at, self.gap_s = math.inf, end, gap_s

    @property
    def arrived(self) -> bool:
        """Whether the application has the object and has not accepted it yet."""
        return self.state is IncomingState.ARRIVED

    def meet(self, event: IncomingEvent) -> None:
        after = INCOMING[self.state].get(event)
        assert after is not None, f"{event.name} in state {self.state.name}"
        self.state = after

    def may_recut(self, now: float) -> bool:
        """Whether to follow an OFFER with another fragment length: each loses some of what came in."""
        if self._recuts:
            self._recuts = max(0.0, self._recuts - (now - self._recut_at) / _RECUT_S)
        self._recut_at = now
        if self._recuts > _RECUTS - 1:
            return False
        self._recuts += 1
        return True


def _zeros(size: int) -> bytearray | mmap.mmap:
    """Return a buffer of zeros that takes memory page by page as it is written. Raises MemoryError."""
    if size < _LARGE_BYTES:
        return bytearray(size)
    try:
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from None
