"""Says in one line what a node has to train or to test on, before a bad accuracy does.

Means and spreads of pixels reveal images that are inverted, scaled otherwise, or in another order of
channels: `init` measures the test data and writes the levels into NODE.toml. What can hardly be meant is
refused; what may be, as a board sees other places than the others, is a warning. The values are messages
between processes, and no numpy is needed until images are looked at."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from onboard.console.log import say
from onboard.learn.objectives import Kind, Objective

if TYPE_CHECKING:
    from onboard.data.images import Images
    from onboard.data.loading import Survey

log = logging.getLogger(__name__)

SHOWN = 40  # classes in a line
JUDGED_FROM = 10  # images: fewer may well be all dark, and unlike all others
FAR = 48.0  # of 0..255: classes of EuroSAT are up to 36 from the mean of all
CLOSER = 4  # times: how much better images must fit turned round than as they are
SPREAD = 1.5  # times: the spread of inverted images is that of the others
FAINT = 8  # times: a brightest pixel so far below what is usual is of another scale
FLAT = 3  # times: a spread that deserves a warning
TINTED = 4.0  # of 0..255, between red and blue: with less nobody can tell the order
STORED_BEYOND = 32 << 20  # bytes of pixels that are read into the memory; more stay on the disk
BUDGET_PARTS = 8  # and so does more than this part of the budget
CURE = "delete channel_means and channel_stds from [data] if they are meant so"


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """The mean and the standard deviation, 0 to 255, of all pixels of each channel."""

    means: tuple[float, ...]
    stds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.means) / len(self.means)

    @property
    def std(self) -> float:
        squares = sum(std**2 + mean**2 for mean, std in zip(self.means, self.stds, strict=True))
        return math.sqrt(max(0.0, squares / len(self.means) - self.mean**2))

    @property
    def tint(self) -> tuple[float, ...]:
        return tuple(mean - self.mean for mean in self.means)

    def __str__(self) -> str:
        return f"mean {', '.join(f'{mean:.0f}' for mean in self.means)}, std {self.std:.0f}"


def refusal(here: Levels, there: Levels, high: int) -> str:
    """Says why images of these levels, the largest pixel `high`, cannot be of the mission's kind; else ""."""
    both = f"{here} here, {there} in the mission's test data"
    gap, turned = abs(here.mean - there.mean), abs(255 - here.mean - there.mean)
    alike = there.std <= SPREAD * here.std and here.std <= SPREAD * there.std
    # Snow is as bright as inverted land, but not red where that is blue.
    against = sum(a * b for a, b in zip(here.tint, there.tint, strict=True)) <= 0
    if gap >= FAR and CLOSER * turned <= gap and alike and against:
        return f"pixels look inverted: {both}; x = 255 - x, or {CURE}"
    if high * FAINT <= there.mean + 2 * there.std:
        return f"pixels run to {high} and look scaled: {both}; bring them to 0..255, or {CURE}"
    return ""


def doubts(here: Levels, there: Levels) -> list[str]:
    both = f"{here} here, {there} in the mission's test data"
    ours, theirs = here.tint, there.tint
    can_tell = len(theirs) == 3 and abs(theirs[0] - theirs[2]) >= TINTED
    if can_tell and CLOSER * math.dist(ours[::-1], theirs) < math.dist(ours, theirs):
        return [f"the channels may be in another order (BGR for RGB): {both}"]
    spread = FLAT * here.std < there.std or here.std > FLAT * there.std
    if spread or abs(here.mean - there.mean) > FAR:
        return [f"pixels are unlike those that the mission is tested on: {both}"]
    return []


def passed_over(passed: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(passed.items()))
    return f"{sum(passed.values())} passed over ({reasons})"


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What every label and pixel of a set says. `classes` counts the images of each, or the pixels if there
    are masks, `passed` the entries passed over by reason; `blank` images have one value all over;
    `load_bytes` is their size in memory; `compared` is whether the classes are the mission's, as far as is
    known; `held` images are held out of training."""

    source: str
    shape: tuple[int, int, int]
    images: int
    classes: dict[str, int]
    named: bool
    passed: dict[str, int]
    low: int
    high: int
    blank: int
    load_bytes: int
    levels: Levels
    expected: Levels | None = None
    compared: bool = True
    kind: Kind = "classify"
    held: int = 0

    @property
    def warnings(self) -> list[str]:
        found = []
        if self.low == self.high:
            found.append(f"all pixels are {self.low}")
        elif self.high <= 1:
            found.append(f"pixels run {self.low}..{self.high}, of 0..255")
        elif self.blank:
            found.append(f"{self.blank} of the images are of one value all over")
        elif self.expected is not None and self.images >= JUDGED_FROM:
            found += doubts(self.levels, self.expected)
        if empty := [name for name, count in self.classes.items() if not count]:
            counted = "pixels" if self.kind == "segment" else "images"
            found.append(f"no {counted} of {', '.join(empty[:SHOWN])}")
        if self.passed:
            found.append(passed_over(self.passed))
        if not self.named and [*self.classes] != [str(label) for label in range(len(self.classes))]:
            found.append("its labels have no names and are taken as places in the mission's list")
        if self.classes and not self.compared:
            lack = "[data] has no classes, so what labels mean is compared with the first task"
            found.append(f"{lack}: copy classes from mission.toml")
        return found

    def line(self) -> str:
        counts = ", ".join(f"{name}: {count}" for name, count in [*self.classes.items()][:SHOWN])
        more = f" and {len(self.classes) - SHOWN} more" if len(self.classes) > SHOWN else ""
        of = "pixels of " if self.kind == "segment" else ""
        classes = f"; {of}classes {counts}{more}" if counts else ""
        pixels = self.images * math.prod(self.shape[1:])
        if self.kind == "segment" and (ignored := pixels - sum(self.classes.values())):
            classes += f", {ignored} count for nothing"
        warnings = "".join(f"; WARNING: {each}" for each in self.warnings)
        held = f", {self.held} of them held out of training" if self.held else ""
        return (
            f"{self.images} images of {self.shape} in {self.source}{held}, {self.load_bytes / 2**20:.0f} MB; "
            f"pixels {self.low}..{self.high}, mean {self.levels.mean:.1f}{classes}{warnings}"
        )

    def tell(self) -> None:
        warnings, load_mb = self.warnings, round(self.load_bytes / 2**20, 1)
        say(
            log, "data", level=logging.WARNING if warnings else logging.INFO, images=self.images,
            held=self.held,
            classes=self.classes, low=self.low, high=self.high, mean=round(self.levels.mean, 1),
            load_mb=load_mb, warnings=warnings,
        )  # fmt: skip


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node's own images are. `folder` holds named sets; `rows` are the first and the one after the
    last; `classes`, `levels` and `objective` are the mission's; `tasked` is whether tasks will say the
    mission's classes; the images may take `budget_bytes` at most, and what is larger than a part of that
    stays on the disk, copied into the folder `copies` if need be; the share `validation` of them is held out
    of training."""

    source: str
    folder: str | None = None
    shape: tuple[int, int, int]
    rows: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None
    levels: Levels | None = None
    tasked: bool = False
    budget_bytes: int | None = None
    objective: Objective = Objective()
    copies: str | None = None
    validation: float = 0.0

    @property
    def beyond_bytes(self) -> int:
        """Bytes of pixels beyond which they stay on the disk."""
        return (
            STORED_BEYOND
            if self.budget_bytes is None
            else min(STORED_BEYOND, self.budget_bytes // BUDGET_PARTS)
        )

    def survey(self, objective: Objective | None = None) -> Survey:
        """Looks at the labels, for the model's objective where that is known. Raises DataError."""
        from onboard.data.loading import survey

        rows = None if self.rows is None else range(*self.rows)
        return survey(
            self.source, self.shape, folder=self.folder, part="own", rows=rows,
            objective=objective or self.objective, names=self.classes,
        )  # fmt: skip

    def load(self, objective: Objective | None = None) -> Images:
        """Reads the images to train on. Raises DataError."""
        return self.load_parts(objective)[0]

    def load_parts(self, objective: Objective | None = None) -> tuple[Images, Images | None]:
        """Reads the images to train on, and those that are held out, if any are. Raises DataError."""
        from onboard.data.images import held_out

        seen, copies = self.survey(objective), None if self.copies is None else Path(self.copies)
        if not self.validation:
            return seen.load(beyond_bytes=self.beyond_bytes, copies=copies), None
        held = held_out(seen.rows, self.validation)
        if seen.pixel_bytes <= self.beyond_bytes:
            return seen.of(~held).load(), seen.of(held).load()
        whole = seen.load(beyond_bytes=self.beyond_bytes, copies=copies)  # one file has both
        return whole.take((~held).nonzero()[0]), whole.take(held.nonzero()[0])

    def inspect(self, objective: Objective | None = None) -> Inspection:
        """Checks the budget, then looks at every image and keeps none. Raises DataError."""
        from onboard.data.images import DataError, held_out

        seen, budget_bytes = self.survey(objective), self.budget_bytes
        load_bytes = seen.load_bytes
        if seen.pixel_bytes > self.beyond_bytes and (seen.found.stored or self.copies):
            load_bytes -= seen.pixel_bytes
        if budget_bytes is not None and load_bytes > budget_bytes:
            raise DataError(
                f"{self.source}: its {len(seen)} images take {load_bytes / 2**20:.0f} MB, the budget is "
                f"{budget_bytes / 2**20:.0f} MB: take fewer by data.rows, or raise budget.memory_mb"
            )
        found = seen.inspect()
        judged = self.levels if len(seen) >= JUDGED_FROM else None
        if judged is not None and (why := refusal(found.levels, judged, found.high)):
            raise DataError(f"{self.source}: {why}")
        compared = self.classes is not None or not self.tasked
        return msgspec.structs.replace(
            found, expected=self.levels, compared=compared, load_bytes=load_bytes,
            held=int(held_out(seen.rows, self.validation).sum()) if self.validation else 0,
        )  # fmt: skip
