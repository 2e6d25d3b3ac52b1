"""What a node has to train or to test on, in one line: so that nobody has to find out from a bad accuracy.

The value is a message between processes, and this file needs no numpy until it is asked to look.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

from onboard.console.log import say
from onboard.data.levels import Levels, doubts, refusal

if TYPE_CHECKING:
    from onboard.data.loading import Range, Survey
    from onboard.data.shard import Shard

log = logging.getLogger(__name__)

SHOWN = 40  # classes in a line
JUDGED_FROM = 10  # images: fewer may well be unlike all others


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """A set, looked at from its first label to its last pixel. `classes`: images of each; `named`: whether
    the set names them; `passed`: what was passed over, by reason; `low`, `high`, `mean` of all pixels;
    `blank`: images of one value all over; `load_bytes`: what the images take in memory; `levels` of each
    channel, and those `expected`; `compared`: whether the classes are the mission's, as far as is known."""

    source: str
    shape: tuple[int, int, int]
    images: int
    classes: dict[str, int]
    named: bool
    passed: dict[str, int]
    low: int
    high: int
    mean: float
    blank: int
    load_bytes: int
    levels: Levels
    expected: Levels | None = None
    compared: bool = True

    @property
    def empty(self) -> tuple[str, ...]:
        """Classes without images."""
        return tuple(name for name, count in self.classes.items() if not count)

    @property
    def warnings(self) -> list[str]:
        """What may well be wrong."""
        found = []
        if self.low == self.high:
            found.append(f"all pixels are {self.low}")
        elif self.high <= 1:
            found.append(f"pixels run {self.low}..{self.high}, of 0..255")
        elif self.blank:
            found.append(f"{self.blank} of the images are of one value all over")
        elif self.expected is not None and self.images >= JUDGED_FROM:
            found += doubts(self.levels, self.expected)
        if self.empty:
            found.append(f"no images of {', '.join(self.empty[:SHOWN])}")
        if self.passed:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.passed.items()))
            found.append(f"{sum(self.passed.values())} passed over ({reasons})")
        if not self.named and [*self.classes] != [str(label) for label in range(len(self.classes))]:
            found.append("its labels have no names and are taken as places in the mission's list")
        if not self.compared:
            found.append(
                "[data] has no classes, so what labels mean is compared with the first task: copy classes "
                "from mission.toml"
            )
        return found

    def line(self) -> str:
        """All of it for a person."""
        counts = ", ".join(f"{name}: {count}" for name, count in [*self.classes.items()][:SHOWN])
        more = f" and {len(self.classes) - SHOWN} more" if len(self.classes) > SHOWN else ""
        warnings = "".join(f"; WARNING: {each}" for each in self.warnings)
        return (
            f"{self.images} images of {self.shape} in {self.source}, {self.load_bytes / 2**20:.0f} MB; "
            f"pixels {self.low}..{self.high}, mean {self.mean:.1f}; classes {counts}{more}{warnings}"
        )

    def tell(self) -> None:
        """Logs all of it."""
        told: dict[str, Any] = {
            "images": self.images,
            "classes": self.classes,
            "low": self.low,
            "high": self.high,
        }
        told |= {"mean": round(self.mean, 1), "load_mb": round(self.load_bytes / 2**20, 1)}
        level = logging.WARNING if self.warnings else logging.INFO
        say(log, "data", level=level, **told, warnings=self.warnings)


def inspect(shard: Shard, classes: int | None = None) -> Inspection:
    """Looks at every image of a node and keeps none; the budget is checked first. `classes`: how many the
    model tells apart, where that is known. Raises DataError."""
    from onboard.data import loading

    source, expected, budget_bytes = shard.source, shard.levels, shard.budget_bytes
    seen = loading.survey(source, shard.shape, classes=classes, names=shard.classes, **shard.place())
    if budget_bytes is not None and seen.load_bytes > budget_bytes:
        raise loading.DataError(
            f"{source}: its {len(seen)} images take {seen.load_bytes / 2**20:.0f} MB, the budget is "
            f"{budget_bytes / 2**20:.0f} MB: take fewer by data.rows, or raise budget.memory_mb"
        )
    pixels = loading.measure(source, shard.shape, **shard.place())
    if expected is not None and len(seen) >= JUDGED_FROM:
        why = refusal(pixels.levels, expected, pixels.high)
        if why:
            raise loading.DataError(f"{source}: {why}")
    compared = shard.classes is not None or not shard.tasked
    return msgspec.structs.replace(inspection(seen, pixels), expected=expected, compared=compared)


def inspection(seen: Survey, pixels: Range) -> Inspection:
    """Both in one."""
    return Inspection(
        source=seen.source,
        shape=seen.shape,
        images=len(seen),
        classes=seen.counts,
        named=seen.named,
        passed=dict(seen.passed),
        low=pixels.low,
        high=pixels.high,
        mean=pixels.mean,
        blank=pixels.blank,
        load_bytes=seen.load_bytes,
        levels=pixels.levels,
    )


def most_classes(shape: tuple[int, int, int]) -> int:
    """How many classes a shipped model tells apart at most that takes images of this shape.

    Raises DataError where none takes them."""
    from onboard.data.images import DataError
    from onboard.learn.networks import NETWORKS

    if not (fitting := [each.classes for each in NETWORKS.values() if each.input_shape == shape]):
        takes = ", ".join(f"{name} {each.input_shape}" for name, each in NETWORKS.items())
        raise DataError(f"no model takes images of {shape}; there are {takes}")
    return max(fitting)
