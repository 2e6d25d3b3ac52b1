"""One object that is being sent: which of its fragments have left, and which the receiver holds.

The receiver owns the list of holes (`Incoming.held`); the sender learns it from REPORTs. A fragment is resent
only when its last transmission is at or below the highest seq that the receiver heard and the receiver does
not hold it; there is no retry limit. At an object's end REPAIRs go out for what is likely to be lost."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from onboard.wire.messages import MAX_FRAGMENTS, PREFIX_BYTES, Offer, Reason, Report, digest, fragments_of
from onboard.wire.transfer import fragments
from onboard.wire.transfer.fragments import GENERATION, recounted
from onboard.wire.transfer.peer import DeliveryStats
from onboard.wire.transfer.states import OUTGOING, OutgoingEvent, OutgoingState

_WHOLE = (1 << GENERATION) - 1
_SURE = 1.28  # standard deviations: 9 of 10
_LITTLE = 0.1  # a probability of a loss that is not worth a repair


def deadline_of(kind: int, priority: int, deadline_s: float | None, now: float) -> float:
    """Return when an object offered now expires, inf for never. Raises ValueError for a bad value."""
    if not 0 <= priority <= 7 or not 0 <= kind <= 255:
        raise ValueError(f"kind {kind} must be 0..255, priority {priority} 0..7")
    if deadline_s is not None and not 0 < deadline_s < 2**32:
        raise ValueError(f"deadline of {deadline_s} s must be more than 0 and less than 2^32")
    return math.inf if deadline_s is None else now + deadline_s


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """What a REPORT settled. `fates`: of fragments, by length. `bursts`: runs of losses, as transmitted."""

    fates: Mapping[int, DeliveryStats]
    bursts: int

    @property
    def lost(self) -> float:
        return sum(each.lost for each in self.fates.values())

    @property
    def settled(self) -> float:
        """The number of fragments whose fate was decided either way."""
        return self.lost + sum(each.kept for each in self.fates.values())


class Outgoing:
    """An object being sent in one epoch. `name`: its digest if known, as computing it reads the whole object.
    Every fragment is in one of three sets: `acknowledged`, which the receiver holds by its last REPORT, in
    flight, or `to_send`. `deadline` is on the session's clock; `withdrawn` is CANCEL's reason."""

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
        self.acknowledged = 0
        self.to_send = self._all
        self._reported = 0  # fragments that some REPORT covered
        self._sent = 0  # fragments transmitted at least once
        self._flight: deque[tuple[int, int]] = deque()  # (seq, fragment), ascending in seq
        self._repairs: deque[tuple[int, int]] = deque()  # (seq, generation), ascending in seq
        self._equations: dict[int, int] = {}  # sums that the receiver holds, by generation
        self._airborne: Counter[int] = Counter()  # DATA and REPAIR in flight, by generation
        self._heard = (0, 0)  # epoch and seq of the frame that brought the newest REPORT
        self.state = OutgoingState.QUEUED
        self.withdrawn: Reason | None = None
        self.resent = 0

    def recut(self, fragment_bytes: int, object_id: int) -> Outgoing:
        """Return the object in fragments of another length, without those that are known to be held. Its new
        id tells its frames and REPORTs from those before."""
        other = Outgoing(
            self.kind, self.payload, fragment_bytes, object_id=object_id, priority=self.priority,
            deadline=self.deadline, name=self.digest,
        )  # fmt: skip
        other.acknowledged, other._sent = (
            recounted(each, len(self.payload), self.fragment_bytes, fragment_bytes)
            for each in (self.acknowledged, self._sent)
        )
        other.to_send = other._all & ~other.acknowledged
        return other

    # -- its state -------------------------------------------------------------------------------------

    def withdraw(self, reason: Reason) -> None:
        self.meet(OutgoingEvent.WITHDRAW)
        self.withdrawn, self.deadline = reason, math.inf

    def meet(self, event: OutgoingEvent) -> None:
        after = OUTGOING[self.state].get(event)
        assert after is not None, f"{event.name} in state {self.state.name}"
        self.state = after

    @property
    def answered(self) -> bool:
        """Whether a REPORT came since the receiver last knew nothing of the object."""
        return self.state in (OutgoingState.SENDING, OutgoingState.WHOLE)

    @property
    def complete(self) -> bool:
        """Whether the receiver has reported every fragment held."""
        return self.state in (OutgoingState.WHOLE, OutgoingState.WITHDRAWN_WHOLE)

    # -- its fragments ---------------------------------------------------------------------------------

    @property
    def first_bytes(self) -> int:
        """The length of all fragments but the last."""
        return min(self.fragment_bytes, len(self.payload))

    @property
    def missing(self) -> int:
        """The number of fragments that the receiver is not known to hold."""
        return self.count - self.acknowledged.bit_count()

    @property
    def remaining_bytes(self) -> int:
        return max(0, len(self.payload) - self.acknowledged.bit_count() * self.fragment_bytes)

    @property
    def holes(self) -> int:
        """The set of fragments that are to be resent."""
        return self.to_send & self._sent

    @property
    def in_flight(self) -> int:
        """The number of fragments and repairs sent and not yet reported on."""
        return len(self._flight) + len(self._repairs)

    def fragment(self, index: int) -> bytes:
        start = index * self.fragment_bytes
        return self.payload[start : start + self.fragment_bytes]

    def offer(self, now: float) -> bytes:
        left_s = 0 if math.isinf(self.deadline) else max(1, math.ceil(self.deadline - now))
        return Offer(self.digest, len(self.payload), self.fragment_bytes, self.kind, left_s).encode()

    def generation(self, number: int) -> int:
        return self._all & _WHOLE << number * GENERATION

    def repair(self, generation: int, transmission: tuple[int, int]) -> bytes:
        """Return the payload of a REPAIR of a generation that leaves as (epoch, seq)."""
        chosen = fragments.mask(self.digest, transmission, generation, self.count)
        length = fragments.repair_bytes(len(self.payload), self.fragment_bytes, generation)
        summed = fragments.total(self.payload, self.fragment_bytes, generation, chosen)
        return summed.to_bytes(length, "little")

    def next_fragment(self, loss: float = 0.0) -> int | None:
        """Return the next fragment to send, if any. `loss`: the share (0..1) of what is in flight that will
        be lost; a generation that repairs in flight are likely to complete is left out."""
        todo = self.to_send
        if todo and (self._repairs or self._equations):
            for generation in {generation for _, generation in self._repairs} | self._equations.keys():
                if self._missing(generation) <= self._airborne[generation] * (1 - loss):
                    todo &= ~self.generation(generation)
        return (todo & -todo).bit_length() - 1 if todo else None

    def deficit(self, loss: float, burst: float = 1.0) -> tuple[float, int]:
        """Return how many more frames the neediest generation needs in flight, and its number; (-inf, 0) for
        none. `loss`: as in `next_fragment`; `burst`: the length of losses relative to independent ones."""
        most = (-math.inf, 0)
        for generation in range(-(-self.count // GENERATION)):
            missing = self._missing(generation)
            if missing > 0:
                most = max(most, (_lacks(missing, self._airborne[generation], loss, burst), generation))
        return most

    def _missing(self, generation: int) -> int:
        """Return the frames that the receiver needs to complete a generation, by its last REPORT."""
        holes = self.generation(generation) & ~self.acknowledged
        return max(holes.bit_count() - self._equations.get(generation, 0), 1) if holes else 0

    # -- what happened to it ---------------------------------------------------------------------------

    def sent(self, index: int, seq: int) -> None:
        bit = 1 << index
        self._flight.append((seq, index))
        self.to_send &= ~bit
        self._airborne[index // GENERATION] += 1
        self.resent += self._sent >> index & 1
        self._sent |= bit

    def repair_sent(self, generation: int, seq: int) -> None:
        self._repairs.append((seq, generation))
        self._airborne[generation] += 1

    def report(
        self, report: Report, *, heard: tuple[int, int], epoch: int, slack: int = 0
    ) -> ReportOutcome | None:
        """Take in what the receiver holds; None, with no change, for another object's or an outdated REPORT.
        `heard`: epoch and seq of its frame. `epoch`: this end's; a REPORT from before its restart may count
        in fragments of another length. `slack`: the number of frames that may be reordered."""
        if report.unknown or report.epoch != epoch or report.prefix != self.digest[:PREFIX_BYTES]:
            return None
        if heard <= self._heard or report.held & ~self._all:
            return None
        told = self._all & ((1 << report.covered) - 1)
        self._heard = heard
        self.acknowledged = self.acknowledged & ~told | report.held & told
        is_whole = self.acknowledged == self._all
        self.meet(OutgoingEvent.WHOLE_REPORTED if is_whole else OutgoingEvent.HOLES_REPORTED)
        self._reported |= told
        highest = report.seq - slack
        last = self.count - 1
        last_bytes = len(self.payload) - last * self.fragment_bytes
        lost, kept = Counter[int](), Counter[int]()  # by length
        bursts, in_burst = 0, False
        still: deque[tuple[int, int]] = deque()
        flying = 0
        for seq, index in self._flight:
            length = last_bytes if index == last else self.first_bytes
            if self.acknowledged >> index & 1:
                kept[length] += 1
                in_burst = False
            elif seq <= highest and told >> index & 1:
                lost[length] += 1
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
        # What no REPORT covered yet (one may be cut to fit its frame) is unknown: it may have been
        # held since before this end's restart, so it waits for a REPORT that covers it.
        self.to_send = (self._reported | self._sent) & ~self.acknowledged & ~flying
        lengths = last_bytes, self.first_bytes
        return ReportOutcome({each: DeliveryStats(lost[each], kept[each]) for each in lengths}, bursts)


def _lacks(missing: int, airborne: int, loss: float, burst: float) -> float:
    """Return how many more frames must be in flight for `missing`, and one for redundancy, to arrive in 9 of
    10 cases. The number that arrives is about normal; in bursts its variance is 2 burst - 1 times that of
    single losses (Gilbert 1960: the chain's correlation time)."""
    if missing == airborne and 1 - (1 - loss) ** airborne <= _LITTLE:
        return 0.0
    arrive = airborne * (1 - loss)
    return missing + 1 - (arrive - _SURE * math.sqrt(arrive * loss * (2 * burst - 1)))
