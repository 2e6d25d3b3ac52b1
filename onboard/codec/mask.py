"""Draws the same sparse mask at both ends of an edge from a seed, on any machine: no index travels.

RD-PSGD (Meng et al., "Decentralized Distributed Deep Learning with Low-Bandwidth Consumption for Smart
Constellations", 2021) mixes models at random coordinates, each picked with probability p. Here runs of
consecutive coordinates are picked so: a coordinate has the same probability, and a run is copied where single
coordinates would each be looked up (`RUN`). Runs of one coordinate are the paper's masks.

The distance from one picked run to the next is geometric, P(g) = p (1-p)^(g-1), and drawing distances is less
work than asking for every run (its section 3.3).

Words are SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
which mixes a counter, so that any block can be drawn alone. A table turns 16 bits into a distance; where they
do not decide it, 48 more bits do. Everything is integer arithmetic; docs/gossip.md gives every step."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2s

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]

ALL = 1 << 16  # the share that is every coordinate: p = 1
MAX_SIZE = 1 << 30  # coordinates: an index and a block's overshoot fit into an int32
RUN = 256  # coordinates, 1 KiB in fp32; docs/gossip.md has the costs of others
FAR = 255  # a step that goes on by FAR - 1 coordinates and picks none: geometric distances have no memory
WORDS = 1 << 14  # in a block at most: its buffers stay in a cache of 1 MiB
GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment: 2^64 over the golden ratio, odd
U64 = (1 << 64) - 1
IDENTITY = struct.Struct("<QIIHBIII")


@dataclass(frozen=True, slots=True)
class Draw:
    """What both ends have to agree on: seed (64 bits), round (32 bits), edge, and p = share / 65536.

    `edge` is two node numbers (32 bits) in any order; None draws one mask for all edges. `run` coordinates, 1
    to 65,535, are picked together. Raises ValueError for what does not fit."""

    seed: int
    round: int
    edge: tuple[int, int] | None
    share: int
    run: int = RUN

    def __post_init__(self) -> None:
        if not (0 <= self.seed <= U64 and 0 <= self.round < 1 << 32):
            raise ValueError(f"seed {self.seed} and round {self.round} must fit into 64 and 32 bits")
        if not 1 <= self.share <= ALL:
            raise ValueError(f"a share of {self.share} in {ALL} is none: must be 1 to {ALL}")
        if not 1 <= self.run < 1 << 16:
            raise ValueError(f"runs of {self.run} coordinates, must be 1 to {(1 << 16) - 1}")
        if self.edge is not None:
            low, high = sorted(self.edge)
            if not 0 <= low < high < 1 << 32:
                raise ValueError(f"{self.edge} is no edge between two nodes of 32 bits")

    def keys(self, size: int) -> tuple[int, int, bytes]:
        """Returns both streams' keys, and 4 bytes that differ where two ends would draw different masks."""
        low, high = sorted(self.edge or (0, 0))
        one_edge = self.edge is not None
        identity = IDENTITY.pack(self.seed, self.round, self.share, self.run, one_edge, low, high, size)
        digest = blake2s(identity, digest_size=20).digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"), digest[16:]


def share_of(p: float) -> int:
    """Returns the share nearest to a probability p. Raises ValueError unless 2^-17 < p <= 1."""
    if not (p <= 1 and round(p * ALL) >= 1):
        raise ValueError(f"p is {p}, must be at least 1/{ALL} and at most 1")
    return round(p * ALL)


@dataclass(frozen=True, eq=False)
class Mask:
    """Coordinates of a vector (size,), as `blocks` of rising numbers of runs: run k begins at coordinate k *
    run. A whole mask has no blocks; `tail` tells of a shorter last run. It takes 4 bytes a run and 0.3 MB."""

    draw: Draw
    size: int
    blocks: tuple[Indices, ...]
    count: int

    @property
    def whole(self) -> bool:
        return self.draw.share == ALL

    @property
    def tail(self) -> int:
        """Counts the mask's coordinates after the last whole run: all of them, or 0."""
        return self.count % self.draw.run

    @property
    def index(self) -> Indices:
        """Returns all coordinates (count,), a copy."""
        if self.whole:
            return np.arange(self.size, dtype=np.int32)
        firsts = np.concatenate((*self.blocks, np.zeros(0, np.int32))) * np.int32(self.draw.run)
        runs = firsts[:, None] + np.arange(self.draw.run, dtype=np.int32)
        return np.concatenate((runs.ravel(), np.arange(self.size - self.tail, self.size, dtype=np.int32)))


def drawn(draw: Draw, size: int) -> Mask:
    """Draws the mask of a vector (size,) in 1.2 MB of memory at most. Raises ValueError beyond MAX_SIZE."""
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"{size} coordinates, must be 0 to {MAX_SIZE}")
    if draw.share == ALL:
        return Mask(draw, size, (), size)
    blocks: list[Indices] = []
    key, further_key, _ = draw.keys(size)
    table, _ = steps_table(draw.share)
    runs, rest = divmod(size, draw.run)  # whole runs; coordinates after them, picked as one more run
    # A small vector needs few words: by 1/p runs or FAR - 1 a draw goes on, and four draws a word.
    block_words = min(WORDS, 64 + runs * draw.share // (4 * ALL) + runs // (4 * (FAR - 1)))
    counters = np.arange(1, block_words + 1, dtype=np.uint64) * np.uint64(GAMMA)
    words, spare = np.empty_like(counters), np.empty_like(counters)
    steps = np.empty(4 * block_words, np.uint8)
    # One array for all blocks, as large as they are on average: many small ones cost a page fault each page.
    room = np.empty(runs * draw.share // ALL + len(steps), np.int32)
    reached, first = -1, 0  # the last run decided on; the block's first word
    tail = 0
    while reached < (runs if rest else runs - 1):
        np.add(counters, np.uint64((key + first * GAMMA) & U64), out=words)
        _mix(words, spare)
        cells = words.astype("<u8", copy=False).view("<u2")
        np.take(table, cells, out=steps, mode="clip")  # no cell is outside; "raise" would copy `steps`
        _decide(steps, cells, draw.share, further_key, 4 * first)
        room = room if len(room) >= len(steps) else np.empty_like(steps, np.int32)
        index, reached = walked(steps, reached, room[: len(steps)])
        if reached >= runs:
            beyond = np.searchsorted(index, runs)
            tail = rest if runs in index[beyond : beyond + 1] else 0
            index = index[:beyond]
        room = room[len(index) :]
        if len(index):
            blocks.append(index)
        first += block_words
    return Mask(draw, size, tuple(blocks), draw.run * sum(map(len, blocks)) + tail)


@lru_cache(maxsize=16)
def steps_table(share: int) -> tuple[npt.NDArray[np.uint8], Words]:
    """Returns the step for each 16 bits (0 where they do not decide it) and the bounds that do, for share <
    ALL. bounds[g-1] is floor(2^64 P(distance <= g)) for g = 1 ... 254: a uniform number's step is 1 + those
    it reaches."""
    left = ALL - share
    bounds = np.array([(ALL**g - left**g << 64) // ALL**g for g in range(1, FAR)], np.uint64)
    lowest = np.arange(ALL, dtype=np.uint64) << np.uint64(48)
    highest = lowest + np.uint64((1 << 48) - 1)
    step, last = (_steps(bounds, numbers) for numbers in (lowest, highest))
    table = np.where(step == last, step, 0).astype(np.uint8)
    table.flags.writeable = bounds.flags.writeable = False
    return table, bounds


def _steps(bounds: Words, numbers: Words) -> npt.NDArray[np.uint8]:
    return (1 + np.searchsorted(bounds, numbers, side="right")).astype(np.uint8)


def _mix(words: Words, spare: Words) -> None:
    """Applies SplitMix64's mixing function (variant 13 of Stafford's) in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(words, np.uint64(shift), out=spare)
        np.bitwise_xor(words, spare, out=words)
        np.multiply(words, np.uint64(factor), out=words)
    np.right_shift(words, np.uint64(31), out=spare)
    np.bitwise_xor(words, spare, out=words)


def _decide(
    steps: npt.NDArray[np.uint8], cells: npt.NDArray[np.uint16], share: int, key: int, first: int
) -> None:
    """Fills in the steps that 16 bits left open from 48 more bits of each draw."""
    (open_,) = np.nonzero(steps == 0)
    if len(open_):
        words = (open_ + (first + 1)).astype(np.uint64) * np.uint64(GAMMA) + np.uint64(key)
        _mix(words, np.empty_like(words))
        numbers = cells[open_].astype(np.uint64) << np.uint64(48) | words >> np.uint64(16)
        steps[open_] = _steps(steps_table(share)[1], numbers)


def walked(steps: npt.NDArray[np.uint8], reached: int, out: Indices) -> tuple[Indices, int]:
    """Returns the places that steps (1 ... FAR) pick after `reached`, at the start of `out`, and the last
    place that they cover, which must be below 2^31. In `steps`, FAR becomes FAR - 1."""
    far = steps == FAR if steps.max(initial=0) == FAR else None
    if far is not None:
        steps[far] = FAR - 1
    np.cumsum(steps, dtype=np.int32, out=out)
    out += np.int32(reached)
    last = int(out[-1]) if len(out) else reached
    if far is None:
        return out, last
    picked = out[~far]
    out[: len(picked)] = picked
    return out[: len(picked)], last
