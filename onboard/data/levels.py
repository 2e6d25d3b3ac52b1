"""Whether a node's pixels are of the kind that the mission is tested on: their means and spreads tell of
images that are inverted, scaled otherwise, or in another order of channels.

`init` measures the test data and writes what it found into NODE.toml. What can hardly be meant is refused;
what may well be meant, as a board sees other places than the others, is a warning.
"""

from __future__ import annotations

import math

import msgspec

FAR = 48.0  # of 0..255: classes of EuroSAT are up to 36 from the mean of all
CLOSER = 4  # times: how much better images must fit turned round than as they are
SPREAD = 1.5  # times: the spread of inverted images is that of the others
FAINT = 8  # times: a brightest pixel so far below what is usual is of another scale
FLAT = 3  # times: a spread that deserves a warning
TINTED = 4.0  # of 0..255, between red and blue: with less nobody can tell the order
CURE = "delete channel_means and channel_stds from [data] if they are meant so"


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """Of each channel the mean and the standard deviation of all pixels, 0 to 255."""

    means: tuple[float, ...]
    stds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of all channels."""
        return sum(self.means) / len(self.means)

    @property
    def std(self) -> float:
        """Of all channels together."""
        squares = sum(std**2 + mean**2 for mean, std in zip(self.means, self.stds, strict=True))
        return math.sqrt(max(0.0, squares / len(self.means) - self.mean**2))

    def __str__(self) -> str:
        return f"mean {', '.join(f'{mean:.0f}' for mean in self.means)}, std {self.std:.0f}"


def refusal(here: Levels, there: Levels, high: int) -> str:
    """Why images of these levels, the largest pixel `high`, cannot be of the mission's kind; else empty."""
    if _inverted(here, there):
        return f"pixels look inverted: {_both(here, there)}; x = 255 - x, or {CURE}"
    if high * FAINT <= there.mean + 2 * there.std:
        return f"pixels run to {high} and look scaled: {_both(here, there)}; bring them to 0..255, or {CURE}"
    return ""


def doubts(here: Levels, there: Levels) -> list[str]:
    """What may be wrong."""
    if _reversed(here, there):
        return [f"the channels may be in another order (BGR for RGB): {_both(here, there)}"]
    spread = FLAT * here.std < there.std or here.std > FLAT * there.std
    if spread or abs(here.mean - there.mean) > FAR:
        return [f"pixels are unlike those that the mission is tested on: {_both(here, there)}"]
    return []


def _both(here: Levels, there: Levels) -> str:
    return f"{here} here, {there} in the mission's test data"


def _inverted(here: Levels, there: Levels) -> bool:
    gap, turned = abs(here.mean - there.mean), abs(255 - here.mean - there.mean)
    alike = there.std <= SPREAD * here.std and here.std <= SPREAD * there.std
    # Snow is as bright as inverted land, but not red where that is blue.
    against = sum(a * b for a, b in zip(_tint(here), _tint(there), strict=True)) <= 0
    return gap >= FAR and CLOSER * turned <= gap and alike and against


def _reversed(here: Levels, there: Levels) -> bool:
    ours, theirs = _tint(here), _tint(there)
    if len(theirs) != 3 or abs(theirs[0] - theirs[2]) < TINTED:
        return False
    return CLOSER * math.dist(ours[::-1], theirs) < math.dist(ours, theirs)


def _tint(levels: Levels) -> tuple[float, ...]:
    """How far each channel is from grey."""
    return tuple(mean - levels.mean for mean in levels.means)
