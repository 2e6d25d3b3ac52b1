"""Loads labelled images in a model's shape, with the mission's labels, or says in one line what is wrong.

Labels are checked before any pixel is read, and pixels come a block at a time: a set costs no more memory
than the images that are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

import numpy as np
from numpy.typing import NDArray

from onboard.data import labels
from onboard.data.images import CHUNK, DataError, Images, Labels, Part, Pixels, Rows, Shape
from onboard.data.inspection import JUDGED_FROM, Inspection, Levels
from onboard.data.sources import OpenedSource, opened

P = ParamSpec("P")
WORKING_BYTES = 4 << 20  # of a block of images in work; a camera's picture adds its own


@dataclass(frozen=True)
class Survey:
    """What a part of a source holds, before any pixel is read. `y` int64 (N) in 0..len(classes)-1."""

    source: str
    shape: Shape
    y: Labels
    classes: labels.Names
    found: OpenedSource
    rows: Rows
    """The rows that are taken, by their places in the part."""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def named(self) -> bool:
        return self.found.classes is not None

    @property
    def load_bytes(self) -> int:
        """The memory that `load` takes at its peak."""
        return len(self) * (math.prod(self.shape) + 8) + 3 * self.found.y.nbytes + WORKING_BYTES

    @property
    def counts(self) -> dict[str, int]:
        counts = np.bincount(self.y, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def load(self) -> Images:
        """Reads the images: x uint8 (N, *shape). Raises DataError."""
        x = np.empty((len(self), *self.shape), np.uint8)
        for places, pixels in self.found.blocks(self.rows):
            x[places] = pixels
        self._check_range(int(x.max(initial=0)))
        return Images(x, self.y, self.classes, self.named)

    def inspect(self, images: Images | None = None) -> Inspection:
        """Looks at the images, decoding those that are not loaded, and keeps none. Raises DataError."""
        decoded = (pixels for _, pixels in self.found.blocks(self.rows))
        low, high, blank, levels = _range_of(decoded if images is None else [images.x])
        self._check_range(high)
        return Inspection(
            source=self.source, shape=self.shape, images=len(self), classes=self.counts, named=self.named,
            passed=dict(self.found.passed), low=low, high=high, blank=blank, load_bytes=self.load_bytes,
            levels=levels,
        )  # fmt: skip

    def _check_range(self, high: int) -> None:
        """Bytes of 0 and 1 were floats of 0..1 once, and lost what was between."""
        if high == 1 and len(self) >= JUDGED_FROM:
            why = "pixels run 0..1, need 0..255: multiply by 255 before they become whole numbers"
            raise DataError(f"{self.found.where}: {why}")


def survey(
    source: str,
    shape: Shape = (1, 28, 28),
    *,
    folder: str | Path | None = None,
    part: Part = "train",
    rows: int | Sequence[int] | Rows | None = None,
    classes: int | None = None,
    names: Sequence[str] | None = None,
) -> Survey:
    """Looks at the labels of one part of a source. Raises DataError.

    `folder` is the data folder of named sets (else SPACEDML_DATA). `rows` are row numbers in the part, in the
    order wanted, or a count from its start, which is a fair sample: all but an npz are in random order.
    `classes` is how many the model tells apart. `names` are the mission's classes in order: a set's own are
    matched by name, and the labels of a set without names are places among them."""
    found = opened(source, shape, folder, part)
    mission = labels.checked(source, names) if names is not None else None
    if mission is not None:
        y, told = labels.brought(found.where, found.label, found.y, found.classes, mission), mission
    elif found.classes is not None:
        y, told = labels.whole(found.where, found.label, found.y, len(found.classes)), found.classes
    else:
        y = labels.whole(found.where, found.label, found.y, classes)
        told = labels.numbered(int(y.max(initial=0)) + 1)
    if classes is not None and len(told) > classes:
        raise DataError(
            f"{source}: has {len(told)} classes, the model tells {classes} apart ({labels.listed(told)})"
        )
    if rows is None or isinstance(rows, int):
        rows = np.arange(len(y) if rows is None else rows)
    chosen = np.asarray(rows, np.int64)
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(y)):
        raise DataError(f"{found.where}: has {len(y)} rows, was asked for row {chosen.max()}")
    if not len(chosen):
        raise DataError(f"{found.where}: there are no images, need at least one")
    return Survey(source, shape, y[chosen], told, found, chosen)


def _loaded(look: Callable[P, Survey]) -> Callable[P, Images]:
    def load(*args: P.args, **kwargs: P.kwargs) -> Images:
        return look(*args, **kwargs).load()

    return load


load = _loaded(survey)
"""The images of one part of a source, chosen as by `survey`. Raises DataError."""


def _range_of(blocks: Iterable[Pixels]) -> tuple[int, int, int, Levels]:
    """Returns the least and largest pixel, the number of blank images, and the channels' levels."""
    low, high, blank = 255, 0, 0
    counts: NDArray[np.float64] | None = None  # (C, 256): how often each channel has each value
    for block in blocks:
        for pixels in np.array_split(block, range(CHUNK, len(block), CHUNK)):
            least, most = pixels.min(axis=(1, 2, 3)), pixels.max(axis=(1, 2, 3))
            low, high = min(low, int(least.min())), max(high, int(most.max()))
            blank += int((least == most).sum())
            planes = [np.bincount(pixels[:, c].ravel(), minlength=256) for c in range(pixels.shape[1])]
            counts = np.array(planes, np.float64) if counts is None else counts + planes
    assert counts is not None, "a set without images"
    values, shares = np.arange(256), counts / counts.sum(axis=1, keepdims=True)
    means = shares @ values
    stds = np.sqrt(np.maximum(shares @ values**2 - means**2, 0))
    return low, high, blank, Levels(means=tuple(means.tolist()), stds=tuple(stds.tolist()))
