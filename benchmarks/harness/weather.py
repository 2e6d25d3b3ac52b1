"""What the air makes of frames in bad times, each for a while."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from firmware_sim.world.channel import Side


@dataclass(frozen=True, slots=True)
class Trouble:
    """For `duration_s`, the share of frames that each thing happens to; `killed`: that end is off meanwhile,
    and with `power_cut` its disk as well; `syncs_left`: its power goes at that sync of its own."""

    duration_s: float
    drop: float
    double: float
    flip: float
    truncate: float
    replay: float
    killed: Side | None
    power_cut: bool
    syncs_left: int | None


class LinkWeather:
    """What the air makes of each frame under the present trouble; remembers frames to replay."""

    def __init__(self, source: random.Random, tally: Counter[str]) -> None:
        self.trouble: Trouble | None = None
        self._random, self._tally = source, tally
        self._old: list[bytes] = []

    def __call__(self, wire: bytes, now: float) -> list[bytes]:
        trouble, rnd = self.trouble, self._random
        if len(self._old) < 2000:
            self._old.append(wire)
        if trouble is None:
            return [wire]
        heard = wire
        if rnd.random() < trouble.flip:
            at = rnd.randrange(8 * len(wire))
            flipped = bytearray(heard)
            flipped[at // 8] ^= 1 << at % 8
            heard = bytes(flipped)
        if rnd.random() < trouble.truncate:
            heard = heard[: rnd.randrange(len(heard))]
        copies = [] if rnd.random() < trouble.drop else [heard]
        if rnd.random() < trouble.double:
            copies *= 2
        if rnd.random() < trouble.replay:
            copies.append(rnd.choice(self._old))
            self._tally["frames replayed"] += 1
        return copies
