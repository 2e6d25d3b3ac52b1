"""What is watched of a contender: its way to the target, its idle links, a cut in the middle of an update."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import mean

from benchmarks.claims.peers.fleets import ClosedRound, Contender
from benchmarks.claims.peers.yard import Turns, Yard, wait

LOOK_EVERY_S = 0.25


@dataclass(frozen=True)
class BoardCost:
    """What a board's processes have used and hold."""

    cpu_s: float
    share_bytes: float  # proportional set sizes
    resident_bytes: float

    @classmethod
    def most(cls, yard: Yard) -> BoardCost:
        """The most of all boards, now."""
        kinds = (yard.cpu_s, yard.share_bytes, yard.resident_bytes)
        return cls(*(max(map(kind, yard.spec.boards)) for kind in kinds))


@dataclass(frozen=True)
class RaceSeen:
    """A contender's rounds, up to the target or its limit. Bytes are of all boards."""

    start: BoardCost  # once the boards are up and nothing is to be done
    job: BoardCost  # of the first board: CPU time of the rounds, most memory in them
    rounds: list[ClosedRound]
    seconds: float
    up_bytes: int
    down_bytes: int

    @property
    def bytes_(self) -> int:
        """Both ways."""
        return self.up_bytes + self.down_bytes

    @property
    def accuracy(self) -> float:
        """The best of its rounds."""
        return max((each.accuracy for each in self.rounds), default=0.0)


def race(yard: Yard, fleet: Contender, target: float, within_s: float) -> Turns[RaceSeen]:
    """Boots, waits until the boards are idle, goes on to the target or for `within_s`. Raises LabError."""
    yield from fleet.boot()
    yield from yard.settled()
    first, start = yard.spec.boards[0], BoardCost.most(yard)
    began_s, cpu_s = time.monotonic(), yard.cpu_s(first)
    before = yard.carried(began_s)
    fleet.begin()
    share_bytes = resident_bytes = 0.0
    rounds: list[ClosedRound] = []
    while max((each.accuracy for each in rounds), default=0.0) < target:
        if (now := time.monotonic()) > began_s + within_s:
            break
        share_bytes = max(share_bytes, yard.share_bytes(first))
        resident_bytes = max(resident_bytes, yard.resident_bytes(first))
        yield from wait(LOOK_EVERY_S)
        rounds = fleet.closed()
    else:
        now = rounds[-1].at_s
    after = yard.carried(now)
    job = BoardCost(yard.cpu_s(first) - cpu_s, share_bytes, resident_bytes)
    up, down = (sum(after[each][side] - before[each][side] for each in after) for side in ("board", "ground"))
    return RaceSeen(start, job, rounds, now - began_s, up, down)


@dataclass(frozen=True)
class IdleSeen:
    """Boards that are connected and have nothing to do after the job; means of a board and minute."""

    link_bytes: float
    cpu_s: float
    after: BoardCost


def idle(yard: Yard, after_s: float, watch_s: float) -> Turns[IdleSeen]:
    """Watches for so long, once all has been said for `after_s`."""
    yield from wait(after_s)
    began_s = time.monotonic()
    before, cpu_s = yard.carried(began_s), [yard.cpu_s(board) for board in yard.spec.boards]
    yield from wait(watch_s)
    minutes = (time.monotonic() - began_s) / 60
    after = yard.carried(time.monotonic())
    link_bytes = mean(sum(after[each].values()) - sum(before[each].values()) for each in after)
    used_s = mean(yard.cpu_s(board) for board in yard.spec.boards) - mean(cpu_s)
    return IdleSeen(link_bytes / minutes, used_s / minutes, BoardCost.most(yard))


@dataclass(frozen=True)
class CutSeen:
    """A first round whose first board lost contact in the middle of its update."""

    more_bytes: float  # that this board sent than the others did
    results: int  # updates that the round was closed with; 0 where it was not closed in time
    seconds: float


def cut_off(yard: Yard, fleet: Contender, within_s: float) -> Turns[CutSeen]:
    """Boots and waits for the first round's end, or for `within_s`. Raises LabError."""
    yield from fleet.boot()
    yield from yard.settled()
    began_s = time.monotonic()
    fleet.begin()
    while not (rounds := fleet.closed()) and time.monotonic() < began_s + within_s:
        yield from wait(LOOK_EVERY_S)
    over_s = rounds[0].at_s if rounds else time.monotonic()
    first, *others = (yard.carried(over_s)[board]["board"] for board in yard.spec.boards)
    return CutSeen(first - mean(others), rounds[0].results if rounds else 0, over_s - began_s)
