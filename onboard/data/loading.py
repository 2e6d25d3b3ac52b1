"""Loads labelled images in the shape a model takes, with labels that mean what the mission's mean, or says in
one line what is wrong. `onboard.data.sources` lists the sources.

Labels are checked before any pixel is read, and pixels come a block at a time: what is taken is all that a
set costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onboard.data import labels
from onboard.data.images import (
    CHUNK,
    DataError,
    Images,
    Labels,
    MissingDataError,
    Pixels,
    Rows,
    Shape,
    save,
    shards,
    split,
)
from onboard.data.levels import Levels
from onboard.data.sources import FOLDER_VARIABLE, KNOWN_CLASSES, OpenedSource, Part, check_source, opened

__all__ = [
    "FOLDER_VARIABLE", "KNOWN_CLASSES", "DataError", "Images", "MissingDataError", "Range", "Survey",
    "check_source", "load", "measure", "range_of", "save", "shards", "split", "survey",
]  # fmt: skip

JUDGED_FROM = 10  # images: fewer may well be all dark
WORKING_BYTES = 4 << 20  # of a block of images in work; a camera's picture adds its own


@dataclass(frozen=True)
class Survey:
    """What a part of a source holds, before any pixel is read. `y` int64 (N) in 0..len(classes)-1; `named`:
    whether the set names its classes; `passed`: entries that were passed over, by reason; `load_bytes`: what
    `load` takes at its peak."""

    source: str
    shape: Shape
    y: Labels
    classes: labels.Names
    named: bool
    passed: Mapping[str, int]
    load_bytes: int

    def __len__(self) -> int:
        return len(self.y)

    @property
    def counts(self) -> dict[str, int]:
        """Images of each class."""
        counts = np.bincount(self.y, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    @property
    def empty(self) -> tuple[str, ...]:
        """Classes without images."""
        return tuple(name for name, count in self.counts.items() if not count)


@dataclass(frozen=True)
class Range:
    """The pixels of a part: least, largest, mean and spread of each channel, and how many images are of one
    value all over."""

    low: int
    high: int
    levels: Levels
    blank: int

    @property
    def mean(self) -> float:
        """Of all pixels."""
        return self.levels.mean


def load(
    source: str,
    shape: Shape = (1, 28, 28),
    *,
    folder: str | Path | None = None,
    part: Part = "train",
    rows: int | Sequence[int] | Rows | None = None,
    classes: int | None = None,
    names: Sequence[str] | None = None,
) -> Images:
    """The images of one part of a source, as x uint8 (N, *shape), y int64 (N).

    `folder` is the data folder of named sets (else SPACEDML_DATA). `rows` are row numbers in the part, in the
    order wanted, or how many from its start; every part but an npz's is in a random order, so its start is a
    fair sample. `classes` is how many the model tells apart. `names` are the mission's classes in its order:
    a set's own are brought to them by name, and the labels of one that names none are places in them.
    Raises `DataError`, one line.
    """
    found = opened(source, shape, folder, part)
    seen, chosen = _surveyed(found, source, shape, rows, classes, names)
    x = np.empty((len(chosen), *shape), np.uint8)
    for places, pixels in found.blocks(chosen):
        x[places] = pixels
    _check_range(found.where, int(x.max(initial=0)), len(x))
    try:
        return Images(x, seen.y, seen.classes, seen.named)
    except DataError as error:
        raise DataError(f"{found.where}: {error}") from None


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
    """What `load` would give, by its labels alone: no pixel is read. Raises `DataError`."""
    found = opened(source, shape, folder, part)
    return _surveyed(found, source, shape, rows, classes, names)[0]


def measure(
    source: str,
    shape: Shape = (1, 28, 28),
    *,
    folder: str | Path | None = None,
    part: Part = "train",
    rows: int | Sequence[int] | Rows | None = None,
) -> Range:
    """Decodes every image that `load` would take, and keeps none. Raises `DataError`."""
    found = opened(source, shape, folder, part)
    chosen = _chosen(found, rows)
    seen = range_of(pixels for _, pixels in found.blocks(chosen))
    _check_range(found.where, seen.high, len(chosen))
    return seen


def range_of(blocks: Iterable[Pixels]) -> Range:
    """Of images that come some at a time, uint8 (N, C, H, W)."""
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
    return Range(low, high, Levels(means=tuple(means.tolist()), stds=tuple(stds.tolist())), blank)


def _surveyed(
    found: OpenedSource,
    source: str,
    shape: Shape,
    rows: int | Sequence[int] | Rows | None,
    classes: int | None,
    names: Sequence[str] | None,
) -> tuple[Survey, Rows]:
    """Labels checked and brought to the mission's classes, and the rows that are taken."""
    own, mission = found.classes, labels.checked(source, names) if names is not None else None
    if own is None:
        y = labels.whole(found.where, found.label, found.y, classes if mission is None else len(mission))
        if mission is not None:
            labels.check_ends(found.where, found.label, y, mission)
        told = mission or labels.numbered(int(y.max(initial=0)) + 1)
    else:
        y = labels.whole(found.where, found.label, found.y, len(own))
        told = own
    if own is not None and mission is not None:
        y, told = labels.places(found.where, own, np.unique(y).tolist(), mission)[y], mission
    if classes is not None and len(told) > classes:
        raise DataError(
            f"{source}: has {len(told)} classes, the model tells {classes} apart ({labels.listed(told)})"
        )
    chosen = _chosen(found, rows)
    if not len(chosen):
        raise DataError(f"{found.where}: there are no images, need at least one")
    size = len(chosen) * (math.prod(shape) + 8) + 3 * found.y.nbytes + WORKING_BYTES
    return Survey(source, shape, y[chosen], told, own is not None, found.passed, size), chosen


def _chosen(found: OpenedSource, rows: int | Sequence[int] | Rows | None) -> Rows:
    """The rows asked for, or all."""
    count = len(found.y)
    if rows is None:
        return np.arange(count)
    chosen = np.arange(rows) if isinstance(rows, int) else np.asarray(rows, np.int64)
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < count):
        raise DataError(f"{found.where}: has {count} rows, was asked for row {chosen.max()}")
    return chosen


def _check_range(where: str | Path, high: int, count: int) -> None:
    """Pixels of 0 and 1 in bytes were 0..1 once, and lost what was between."""
    if high == 1 and count >= JUDGED_FROM:
        raise DataError(
            f"{where}: pixels run 0..1, need 0..255: multiply by 255 before they become whole numbers"
        )
