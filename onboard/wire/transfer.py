"""One object on its way: what of it was sent, what is held, and nothing is sent twice without a reason.

The receiver owns the list of holes (`Incoming.held`), the sender learns it from REPORTs. A fragment goes
out again only when its last transmission is at or below the highest seq that the receiver heard and the
receiver does not hold it; there is no retry limit. At an object's end, where waiting for the REPORT on the
last fragments would leave the air idle, REPAIRs go out for as many as the link is likely to have lost.
Sets of fragments are Python integers, bit i for fragment i: the operations that a REPORT needs on 65,535 of
them take a few microseconds.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass

from onboard.wire import repair
from onboard.wire.messages import MAX_FRAGMENTS, Reason, digest, fragments_of
from onboard.wire.recount import recounted
from onboard.wire.repair import GENERATION, Equations
from onboard.wire.report import PREFIX_BYTES, Report


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
    data: bytes | bytearray
    deadline_s: int = 0


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
        self.deadline_s, self.deadline = 0, math.inf
        self._data = bytearray(size)
        self._all = (1 << self.count) - 1
        self._equations: dict[int, Equations] = {}  # by generation; in memory only

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
        payload = bytes(self._data)
        return payload if digest(self.kind, payload) == self.digest else None

    def clear(self) -> None:
        """Forget every fragment: the digest was wrong, and nothing tells which of them is to blame."""
        self.held = self.have = 0
        self.dirty.clear()
        self._equations.clear()

    def refragment(self, fragment_bytes: int) -> None:
        """Count in fragments of another length, as a sender with another MTU does.

        A new fragment is held when all of its bytes were; all held ones are dirty then, because the
        spool's map counts in the old length.
        """
        count = fragments_of(self.size, fragment_bytes)
        held = recounted(self.held, self.size, self.fragment_bytes, fragment_bytes)
        self._equations.clear()
        self.fragment_bytes, self.count, self.held = fragment_bytes, count, held
        self._all = (1 << count) - 1
        self.have = held.bit_count()
        self.dirty = {index for index in range(count) if held >> index & 1}

    def _put(self, index: int, payload: bytes) -> None:
        start, end = self._span(index)
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a REPORT settled: fragments found lost, in how many bursts (one after the other, as they were
    transmitted), and fragments whose fate it decided either way; of both how many were the object's last
    fragment, which is shorter than the others."""

    lost: int
    bursts: int
    settled: int
    last_lost: int = 0
    last_settled: int = 0


class Outgoing:
    """An object being sent in one epoch of the sender.

    Every fragment is in one of three states: `held` by the receiver as far as its last REPORT says, in
    flight, or to be sent. `deadline` is a time on the session's clock. `name` is the digest, where somebody
    has computed it: it takes as long as reading the whole object.
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
        name: bytes | None = None,
    ) -> None:
        self.digest = digest(kind, payload) if name is None else name
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
        self._repairs: deque[tuple[int, int]] = deque()  # (seq, generation), ascending in seq
        self._equations: dict[int, int] = {}  # sums that the receiver holds, by generation
        self._airborne: Counter[int] = Counter()  # DATA and REPAIR in flight, by generation
        self._heard = (0, 0)  # epoch and seq of the frame that brought the newest REPORT
        self.answered = False  # a REPORT came since the last OFFER
        self.withdrawn: Reason | None = None
        self.resent = self.repaired = 0

    def recut(self, fragment_bytes: int, object_id: int) -> Outgoing:
        """The same object in fragments of another length, under another id, by which its frames and their
        REPORTs are told from those before. What is known to be held is not sent again."""
        other = Outgoing(
            self.kind, self.payload, fragment_bytes, object_id=object_id, priority=self.priority,
            deadline=self.deadline, name=self.digest,
        )  # fmt: skip
        size = len(self.payload)
        other.held, other._sent = (
            recounted(each, size, self.fragment_bytes, fragment_bytes) for each in (self.held, self._sent)
        )
        other._todo = other._all & ~other.held
        return other

    @property
    def holes(self) -> int:
        """Fragments that are to be sent again, as a set."""
        return self._todo & self._sent

    @property
    def complete(self) -> bool:
        """Whether the receiver has said that it holds every fragment."""
        return self.answered and self.held == self._all

    @property
    def in_flight(self) -> int:
        """Fragments transmitted, and repairs, of which no REPORT has spoken yet."""
        return len(self._flight) + len(self._repairs)

    @property
    def to_send(self) -> int:
        """Fragments that could be transmitted now, as a set."""
        return self._todo

    def next_fragment(self, loss: float = 0.0) -> int | None:
        """The first fragment to be sent, None when there is none.

        `loss`: share (0..1) of what is in flight that will be lost. Of a generation whose repairs in
        flight are likely to give what is missing nothing else is sent.
        """
        todo = self._todo
        if todo and (self._repairs or self._equations):
            for generation in {generation for _, generation in self._repairs} | self._equations.keys():
                if self._missing(generation) <= self._airborne[generation] * (1 - loss):
                    todo &= ~(_WHOLE << generation * GENERATION)
        return (todo & -todo).bit_length() - 1 if todo else None

    def lacking(self, loss: float, burst: float = 1.0) -> tuple[float, int]:
        """By how many frames what is in flight falls short of giving what is missing of the generation of
        which that is most, and which one it is; (-inf, 0) if nothing is missing.

        loss: share (0..1) of what is in flight that will be lost; burst: how many times longer losses last
        than if they were independent.
        """
        most = (-math.inf, 0)
        for generation in range(-(-self.count // GENERATION)):
            missing = self._missing(generation)
            if missing > 0:
                lacks = repair.lacks(missing, self._airborne[generation], loss, burst)
                most = max(most, (lacks, generation))
        return most

    @property
    def remaining_bytes(self) -> int:
        """Bytes that the receiver is not known to hold."""
        return max(0, len(self.payload) - self.held.bit_count() * self.fragment_bytes)

    def repair(self, generation: int, transmission: tuple[int, int]) -> bytes:
        """The payload of a REPAIR of a generation that goes out as (epoch, seq)."""
        size = repair.generation_size(self.count, generation)
        chosen = repair.mask(self.digest, transmission, generation, size)
        return repair.combine(self.payload, self.fragment_bytes, generation, chosen)

    def generation(self, number: int) -> int:
        """The fragments of a generation, as a set."""
        return self._all & _WHOLE << number * GENERATION

    @property
    def last_bytes(self) -> int:
        """Length of the last fragment."""
        return len(self.payload) - (self.count - 1) * self.fragment_bytes

    def fragment(self, index: int) -> bytes:
        """The bytes of fragment `index`."""
        start = index * self.fragment_bytes
        return self.payload[start : start + self.fragment_bytes]

    def sent(self, index: int, seq: int) -> None:
        """Fragment `index` was transmitted as frame `seq`."""
        bit = 1 << index
        self._flight.append((seq, index))
        self._todo &= ~bit
        self._airborne[index // GENERATION] += 1
        self.resent += self._sent >> index & 1
        self._sent |= bit

    def repair_sent(self, generation: int, seq: int) -> None:
        """A repair of the generation was transmitted as frame `seq`."""
        self._repairs.append((seq, generation))
        self._airborne[generation] += 1
        self.repaired += 1

    def unknown(self) -> None:
        """The receiver knows no such object (any more): what it holds has to be learnt again."""
        self.answered = False

    def report(self, report: Report, *, heard: tuple[int, int], epoch: int, slack: int = 0) -> Verdict | None:
        """Take in what the receiver holds; None, and no change, if the report is not about this object,
        or older than one taken before.

        heard: epoch and seq of the frame that brought it. epoch: ours; a report from before this end's
        restart may count in fragments of another length. slack: frames that may overtake one another.
        """
        if report.unknown or report.epoch != epoch or report.prefix != self.digest[:PREFIX_BYTES]:
            return None
        if heard <= self._heard or report.held & ~self._all:
            return None
        told = self._all & ((1 << report.covered) - 1)
        self._heard = heard
        self.answered = True
        self.held = self.held & ~told | report.held & told
        self._told |= told
        highest = report.seq - slack
        lost = bursts = settled = last_lost = last_settled = 0
        last = self.count - 1
        in_burst = False
        still: deque[tuple[int, int]] = deque()
        flying = 0
        for seq, index in self._flight:
            if self.held >> index & 1:
                settled += 1
                last_settled += index == last
                in_burst = False
            elif seq <= highest and told >> index & 1:
                settled += 1
                lost += 1
                last_settled += index == last
                last_lost += index == last
                bursts += not in_burst
                in_burst = True
            else:
                still.append((seq, index))
                flying |= 1 << index
        self._flight = still
        self._equations = dict(report.equations)
        self._repairs = deque(entry for entry in self._repairs if entry[0] > highest)
        self._airborne = Counter(index // GENERATION for _, index in still)
        self._airborne.update(generation for _, generation in self._repairs)
        # Of what no REPORT spoke yet (one that was cut to fit its frame) nothing is known: it may be
        # held since before a restart of ours, so it waits for the report that reaches so far.
        self._todo = (self._told | self._sent) & ~self.held & ~flying
        return Verdict(lost, bursts, settled, last_lost, last_settled)

    def _missing(self, generation: int) -> int:
        """Frames of a generation that the receiver yet has to hear, had none been sent since its REPORT."""
        first = generation * GENERATION
        holes = (self._all & ~self.held) >> first & _WHOLE
        return max(holes.bit_count() - self._equations.get(generation, 0), 1) if holes else 0


_WHOLE = (1 << GENERATION) - 1
