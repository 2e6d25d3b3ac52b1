"""Loads images in a model's shape, with the mission's labels, or says in one line what is wrong.

Every kind of source (`onboard.data.sources`) opens into one value with only its labels read; they are checked
before any pixel is, and pixels and masks come a block at a time: a set costs no more memory than the images
that are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from onboard.data import labels
from onboard.data.arrays import Block
from onboard.data.images import (
    CHUNK,
    DataError,
    Images,
    Part,
    Rows,
    Shape,
    StoredPixels,
    fit_masks,
    unlabelled,
)
from onboard.data.inspection import JUDGED_FROM, Inspection, Levels
from onboard.data.sources import OpenedSource, opened
from onboard.data.stored import copied, key_of
from onboard.learn.objectives import FORMS, Objective

P = ParamSpec("P")
WORKING_BYTES = 4 << 20  # of a block of images in work; a camera's picture adds its own


@dataclass(frozen=True)
class Survey:
    """What a part of a source holds, before any pixel is read."""

    source: str
    shape: Shape
    objective: Objective
    y: NDArray[Any]  # as `Images.y`; (N, 0) in place of masks
    classes: labels.Names
    found: OpenedSource
    rows: Rows  # those that are taken, by their places in the part
    part: Part

    def __len__(self) -> int:
        return len(self.y)

    @property
    def named(self) -> bool:
        return self.found.classes is not None and self.objective.has_classes

    @property
    def load_bytes(self) -> int:
        """The memory that `load` takes at its peak."""
        mask_bytes = math.prod(self.shape[1:]) if self.objective.kind == "segment" else 0
        labels_bytes = 2 * mask_bytes + 8  # with those that a task's names are brought to
        return self.pixel_bytes + len(self) * labels_bytes + 3 * self.found.y.nbytes + WORKING_BYTES

    @property
    def pixel_bytes(self) -> int:
        return len(self) * math.prod(self.shape)

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each class, with `classify`; what else there is needs more than a look."""
        if self.objective.kind != "classify":
            return {}
        counts = np.bincount(self.y, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def of(self, chosen: NDArray[np.bool_]) -> Survey:
        """The same of some of the images, bool (N)."""
        return replace(self, y=self.y[chosen], rows=self.rows[chosen])

    def load(self, *, beyond_bytes: int | None = None, copies: Path | None = None) -> Images:
        """Reads the images: x uint8 (N, *shape), with labels or masks. Pixels of more than `beyond_bytes`
        stay on the disk: in their file, or in a copy in the folder `copies` if it has room. Masks do not.
        Raises DataError."""
        x: Any = None
        y = self.y
        if beyond_bytes is not None and self.pixel_bytes > beyond_bytes:
            x = self._stored(copies)
        if x is None:
            x = np.empty((len(self), *self.shape), np.uint8)
            for places, pixels in self.found.blocks(self.rows):
                x[places] = pixels
            self._check_range(int(x.max(initial=0)))
        if self.objective.kind == "segment":
            y = np.empty((len(self), *self.shape[1:]), np.uint8)
            for places, masks in self._masks():
                y[places] = masks
        return Images(x, y, self.classes, self.named, self.objective.ignore)

    def _stored(self, copies: Path | None) -> StoredPixels | None:
        if self.found.stored is not None:
            x = StoredPixels(self.found.stored, self.shape, self.rows)
        elif copies is None or not self.found.files:
            return None
        else:
            key = key_of(self.found.files, (self.part, *self.shape), self.rows)
            copy = copied(copies, key, len(self), self.shape, self.found.blocks(self.rows))
            if copy is None:
                return None
            x = StoredPixels(copy, self.shape, np.arange(len(self)))
        self._check_range(int(x[:JUDGED_FROM].max(initial=0)))
        return x

    def inspect(self, images: Images | None = None) -> Inspection:
        """Looks at the images, decoding those that are not loaded, and keeps none. Raises DataError."""
        decoded = (pixels for _, pixels in self.found.blocks(self.rows))
        low, high, blank, levels = _range_of(decoded if images is None else [images.x])
        self._check_range(high)
        counts = self.counts
        if self.objective.kind == "segment":
            masks = (masks for _, masks in self._masks())
            counts = self._pixels(masks if images is None else [images.y])
        return Inspection(
            source=self.source, shape=self.shape, images=len(self), classes=counts, named=self.named,
            passed=dict(self.found.passed), low=low, high=high, blank=blank, load_bytes=self.load_bytes,
            levels=levels, kind=self.objective.kind,
        )  # fmt: skip

    def _masks(self) -> Iterator[Block]:
        """Yields masks of the mission's labels in the model's size."""
        assert self.found.masks is not None, "a source without masks"
        own, mission, ignore = self.found.classes, self.classes, self.objective.ignore
        for places, masks in self.found.masks(self.rows):
            told = labels.brought_masks(self.found.where, masks, own, mission, ignore)
            yield places, fit_masks(told, self.shape)

    def _pixels(self, masks: Iterable[NDArray[np.uint8]]) -> dict[str, int]:
        """Counts the pixels of each class."""
        counts = sum((np.bincount(block.ravel(), minlength=256) for block in masks), np.zeros(256, np.int64))
        if self.objective.ignore is not None:
            counts[self.objective.ignore] = 0
        told = dict(zip(self.classes, counts.tolist(), strict=False))
        if self.named or self.objective.outputs is not None:
            return told
        return {name: count for name, count in told.items() if count}  # how many there are is not known

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
    objective: Objective = Objective(),  # noqa: B008 - it is frozen
    names: Sequence[str] | None = None,
) -> Survey:
    """Looks at the labels of one part of a source. Raises DataError.

    `folder` is the data folder of named sets (else SPACEDML_DATA). `rows` are row numbers in the part, in the
    order wanted, or a count from its start, which is a fair sample: all but an npz are in random order.
    `objective` is the model's. `names` are the mission's classes in order: a set's own are matched by name,
    and the labels of a set without names are places among them."""
    found = opened(source, shape, folder, part, objective.kind)
    if objective.kind not in (found.kind, "reconstruct"):
        why = f"holds {FORMS[found.kind]}, and {objective.kind!r} needs {FORMS[objective.kind]}"
        raise DataError(f"{source}: {why}")
    y, told = _labelled(source, found, objective, names)
    if rows is None or isinstance(rows, int):
        rows = np.arange(len(y) if rows is None else rows)
    chosen = np.asarray(rows, np.int64)
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(y)):
        raise DataError(f"{found.where}: has {len(y)} rows, was asked for row {chosen.max()}")
    if not len(chosen):
        raise DataError(f"{found.where}: there are no images, need at least one")
    return Survey(source, shape, objective, y[chosen], told, found, chosen, part)


def _labelled(
    source: str, found: OpenedSource, objective: Objective, names: Sequence[str] | None
) -> tuple[NDArray[Any], labels.Names]:
    """Returns the labels as the mission means them, (N, 0) in place of masks, and the classes. Raises
    DataError."""
    y, outputs = found.y, objective.outputs
    if objective.kind == "reconstruct":
        return unlabelled(len(y)), ()
    if objective.kind == "regress":
        if outputs not in (None, y.shape[1]):
            here = f"{found.label} has {y.shape[1]} numbers an image"
            raise DataError(f"{found.where}: {here}, the model answers with {outputs}")
        return y, ()
    mission = labels.checked(source, names) if names is not None else None
    if objective.kind == "segment":
        told = mission or found.classes or labels.numbered(outputs or 256)
    elif mission is not None:
        y, told = labels.brought(found.where, found.label, y, found.classes, mission), mission
    elif found.classes is not None:
        y, told = labels.whole(found.where, found.label, y, len(found.classes)), found.classes
    else:
        y = labels.whole(found.where, found.label, y, outputs)
        told = labels.numbered(int(y.max(initial=0)) + 1)
    if outputs is not None and len(told) > outputs:
        apart = f"the model tells {outputs} apart ({labels.listed(told)})"
        raise DataError(f"{source}: has {len(told)} classes, {apart}")
    return y, told


def _loaded(look: Callable[P, Survey]) -> Callable[P, Images]:
    def load(*args: P.args, **kwargs: P.kwargs) -> Images:
        return look(*args, **kwargs).load()

    return load


load = _loaded(survey)
"""The images of one part of a source, chosen as by `survey`. Raises DataError."""


def _range_of(blocks: Iterable[NDArray[np.uint8]]) -> tuple[int, int, int, Levels]:
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
