"""One object on its way: what of it was sent, what is held, and nothing is sent twice without a reason.

The receiver owns the list of holes (`Incoming.held`), the sender learns it from REPORTs. A fragment goes
out again only when its last transmission is at or below the highest seq that the receiver heard and the
receiver does not hold it; there is no retry limit. Sets of fragments are Python integers, bit i for
fragment i: the operations that a REPORT needs on 65,535 of them take a few microseconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from onboard.wire.messages import MAX_FRAGMENTS, Reason, digest, fragments_of
from onboard.wire.report import PREFIX_BYTES, Report


class BadFragment(ValueError):  # noqa: N818 - "bad" says error already
    """A fragment that the object cannot have: an index out of range, or a wrong length."""


@dataclass(frozen=True, slots=True)
class Partial:
    """A half-received object as a spool keeps it.

    `held`: bit i is set when fragment i is held. `data`: `size` bytes, of which only the held fragments
    mean anything.
    """

    digest: bytes
    kind: int
    size: int
    fragment_bytes: int
    held: int
    data: bytes | bytearray


class Incoming:
    """An object being received. `dirty` holds the fragments stored since whoever spools it cleared it."""

    def __init__(self, digest: bytes, kind: int, size: int, fragment_bytes: int) -> None:
        if fragment_bytes < 1 or size < 0 or fragments_of(size, fragment_bytes) > MAX_FRAGMENTS:
            raise ValueError(f"an object of {size} B in fragments of {fragment_bytes} B")
        self.digest, self.kind, self.size, self.fragment_bytes = digest, kind, size, fragment_bytes
        self.count = fragments_of(size, fragment_bytes)
        self.held = 0
        self.have = 0
        self.dirty: set[int] = set()
        self.deadline = math.inf
        self._data = bytearray(size)
        self._all = (1 << self.count) - 1

    @classmethod
    def of(cls, partial: Partial) -> Incoming:
        """The object as `partial` left it. Raises ValueError where it contradicts itself."""
        incoming = cls(partial.digest, partial.kind, partial.size, partial.fragment_bytes)
        if len(partial.data) != partial.size or partial.held & ~incoming._all or partial.held < 0:
            raise ValueError(
                f"partial {partial.digest.hex()} of {partial.size} B has {len(partial.data)} B of data "
                f"and holds up to fragment {partial.held.bit_length() - 1} of {incoming.count}"
            )
        incoming._data = bytearray(partial.data)
        incoming.held = partial.held
        incoming.have = partial.held.bit_count()
        return incoming

    def partial(self) -> Partial:
        """What to keep so that `of` can go on from here. The data is not copied."""
        return Partial(self.digest, self.kind, self.size, self.fragment_bytes, self.held, self._data)

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
        self._data[start:end] = payload
        self.held |= 1 << index
        self.have += 1
        self.dirty.add(index)
        return True

    def fragment(self, index: int) -> memoryview:
        """The bytes of fragment `index`."""
        start, end = self._span(index)
        return memoryview(self._data)[start:end]

    def verified(self) -> bytes | None:
        """The whole object if all of it is held and its digest is right, else None."""
        if not self.complete:
            return None
        payload = bytes(self._data)
        return payload if digest(self.kind, payload) == self.digest else None

    def clear(self) -> None:
        """Forget every fragment: the digest was wrong, and nothing tells which of them is to blame."""
        self.held = self.have = 0
        self.dirty.clear()

    def refragment(self, fragment_bytes: int) -> None:
        """Count in fragments of another length, as a sender with another MTU does.

        A new fragment is held when all of its bytes were; all held ones are dirty then, because the
        spool's map counts in the old length.
        """
        old, count = self, fragments_of(self.size, fragment_bytes)
        held = 0
        for index in range(count):
            first = index * fragment_bytes // old.fragment_bytes
            last = (min((index + 1) * fragment_bytes, self.size) - 1) // old.fragment_bytes
            span = (1 << last - first + 1) - 1
            if old.held >> first & span == span:
                held |= 1 << index
        self.fragment_bytes, self.count, self.held = fragment_bytes, count, held
        self._all = (1 << count) - 1
        self.have = held.bit_count()
        self.dirty = {index for index in range(count) if held >> index & 1}

    def _span(self, index: int) -> tuple[int, int]:
        start = index * self.fragment_bytes
        return start, min(start + self.fragment_bytes, self.size)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a REPORT settled: fragments found lost, and fragments whose fate it decided either way."""

    lost: int
    settled: int


class Outgoing:
    """An object being sent in one epoch of the sender.

    Every fragment is in one of three states: `held` by the receiver as far as its last REPORT says, in
    flight, or to be sent. `deadline` is a time on the session's clock; `order` breaks ties by age.
    """

    def __init__(
        self,
        kind: int,
        payload: bytes,
        fragment_bytes: int,
        *,
        object_id: int = 1,
        priority: int = 4,
        deadline: float = math.inf,
    ) -> None:
        self.digest = digest(kind, payload)
        self.kind, self.payload, self.fragment_bytes = kind, payload, fragment_bytes
        self.object_id, self.priority, self.deadline = object_id, priority, deadline
        self.count = fragments_of(len(payload), fragment_bytes)
        if self.count > MAX_FRAGMENTS:
            raise ValueError(f"{len(payload)} B in fragments of {fragment_bytes} B: {self.count} fragments")
        self._all = (1 << self.count) - 1
        self.held = 0
        self._todo = self._all
        self._told = 0  # fragments of which some REPORT spoke
        self._sent = 0  # fragments transmitted at least once
        self._flight: deque[tuple[int, int]] = deque()  # (seq, fragment), ascending in seq
        self._heard = (0, 0)  # epoch and seq of the frame that brought the newest REPORT
        self.answered = False  # a REPORT came since the last OFFER
        self.withdrawn: Reason | None = None
        self.resent = 0

    @property
    def complete(self) -> bool:
        """Whether the receiver has said that it holds every fragment."""
        return self.answered and self.held == self._all

    @property
    def in_flight(self) -> int:
        """Fragments transmitted of which no REPORT has spoken yet."""
        return len(self._flight)

    @property
    def to_send(self) -> int:
        """Fragments that could be transmitted now, as a set."""
        return self._todo

    @property
    def remaining_bytes(self) -> int:
        """Bytes that the receiver is not known to hold."""
        return max(0, len(self.payload) - self.held.bit_count() * self.fragment_bytes)

    def next_fragment(self) -> int | None:
        """The first fragment to be sent, None when there is none."""
        todo = self._todo
        return (todo & -todo).bit_length() - 1 if todo else None

    def fragment(self, index: int) -> bytes:
        """The bytes of fragment `index`."""
        start = index * self.fragment_bytes
        return self.payload[start : start + self.fragment_bytes]

    def sent(self, index: int, seq: int) -> None:
        """Fragment `index` was transmitted as frame `seq`."""
        bit = 1 << index
        self._flight.append((seq, index))
        self._todo &= ~bit
        self.resent += self._sent >> index & 1
        self._sent |= bit

    def unknown(self) -> None:
        """The receiver knows no such object (any more): what it holds has to be learnt again."""
        self.answered = False

    def report(self, report: Report, *, heard: tuple[int, int], epoch: int, slack: int = 0) -> Verdict | None:
        """Take in what the receiver holds; None, and no change, if the report is not about this object,
        or older than one taken before.

        heard: epoch and seq of the frame that brought it. epoch: ours; a report that has not heard of it
        yet settles the fate of no transmission. slack: frames that may overtake one another.
        """
        if report.unknown or report.prefix != self.digest[:PREFIX_BYTES]:
            return None
        if heard <= self._heard or report.held & ~self._all:
            return None
        told = self._all & ((1 << report.covered) - 1)
        self._heard = heard
        self.answered = True
        self.held = self.held & ~told | report.held & told
        self._told |= told
        highest = report.seq - slack if report.epoch == epoch else -1
        lost = settled = 0
        still: deque[tuple[int, int]] = deque()
        flying = 0
        for seq, index in self._flight:
            if self.held >> index & 1:
                settled += 1
            elif seq <= highest and told >> index & 1:
                settled += 1
                lost += 1
            else:
                still.append((seq, index))
                flying |= 1 << index
        self._flight = still
        # Of what no REPORT spoke yet (one that was cut to fit its frame) nothing is known: it may be
        # held since before a restart of ours, so it waits for the report that reaches so far.
        self._todo = (self._told | self._sent) & ~self.held & ~flying
        return Verdict(lost, settled)
