"""When a low satellite is above a ground station's horizon, and what of that the radios get: seeded."""

from __future__ import annotations

import random
from collections.abc import Sequence

from onboard.wire.medium.contact_gate import Window

ORBIT_S = 95 * 60.0  # at about 500 km
LONGEST_S, SHORTEST_S = 600.0, 300.0  # above 5 degrees: overhead, and low above the horizon
_SEEN = 0.85  # share of the orbits whose ground track comes near enough
_MISSED = 0.08  # share of the passes of which nothing is heard: rain, a rotator, somebody else's pass
_CUT = 0.15  # and of which a part is not heard: a tumbling antenna, interference


def passes(source: random.Random, until_s: float) -> list[Window]:
    """The contact plan of one satellite, which is anywhere on its orbit at first."""
    windows = []
    noon = source.uniform(LONGEST_S, ORBIT_S)
    while noon + LONGEST_S < until_s:
        half_s = source.uniform(SHORTEST_S, LONGEST_S) / 2
        if source.random() < _SEEN:
            windows.append(Window(noon - half_s, noon + half_s))
        noon += ORBIT_S
    return windows


def heard(source: random.Random, plan: Sequence[Window]) -> list[tuple[float, float]]:
    """Of the planned passes, the times in which the air carries anything."""
    times: list[tuple[float, float]] = []
    for window in plan:
        dice = source.random()
        if dice < _MISSED:
            continue
        if dice < _MISSED + _CUT:
            length_s = window.set - window.rise
            begin = window.rise + source.uniform(0.1, 0.5) * length_s
            end = begin + source.uniform(0.05, 0.4) * length_s
            times += [(window.rise, begin), (end, window.set)]
        else:
            times.append((window.rise, window.set))
    return times


def gaps(plans: Sequence[Sequence[Window]], until_s: float) -> list[float]:
    """Times without any contact, one in the middle of every long gap between those of all satellites."""
    middles, free_from = [], 0.0
    for window in sorted((each for plan in plans for each in plan), key=lambda each: each.rise):
        if window.rise - free_from > LONGEST_S / 2 and window.rise < until_s:
            middles.append((free_from + window.rise) / 2)
        free_from = max(free_from, window.set)
    return middles
