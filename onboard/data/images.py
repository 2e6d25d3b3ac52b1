"""Images with their labels as one value, and what is done to them before training: fit, split, shard, save.

Every random choice comes from a seed and is the same on every platform and numpy version, so that a shard can
be named by (source, seed, index) and need not travel."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onboard.learn.objectives import Kind
from onboard.storage.files import replacing

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Masks = NDArray[np.uint8]
Rows = NDArray[np.int64]
Shape = tuple[int, int, int]  # channels, height, width
Part = Literal["train", "test", "own"]
"""`own` is what a board trains on: the train part, or the whole of a folder without parts."""

SPLIT_SEED = 42  # of the digits' and folders' splits; any constant does, and it must stay
TEST_SHARE = 0.2  # of both
VALIDATION_SEED = 43  # of what is held out; it must stay: a model would be judged by what taught it
# Luma of ITU-R BT.601-7, section 2.5.1, as Pillow's "L" mode takes it.
LUMA = np.array([0.299, 0.587, 0.114])
CHUNK = 256  # images resampled at a time: a 64x64 RGB chunk is 25 MB of float64
LARGE_PIXELS = 1 << 18  # a larger image is resampled in strips of this size


class DataError(ValueError):
    """A data set is missing, damaged or of another form; one line says where, what, and what is needed."""


class MissingDataError(DataError):
    """The files of a set are not here (yet)."""


@dataclass(frozen=True)
class StoredImages:
    """A file in which images uint8 lie one after the other, in the shape that is asked for, from `offset`."""

    path: Path
    offset: int = 0


class StoredPixels:
    """Images that stay on the disk: an array uint8 (N, C, H, W) of the `rows` of those in a file, as far as a
    training needs one. Who takes some reads these alone. They are read and not mapped, so that what was read
    is nobody's memory, and a file that was cut short is a DataError and no SIGBUS."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, stored: StoredImages, shape: tuple[int, ...], rows: Rows) -> None:
        self._stored, self._rows = stored, rows
        self.shape: tuple[int, ...] = (len(rows), *shape)
        try:
            self._file = stored.path.open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{stored.path}: {error.strerror}") from None
        with suppress(OSError):  # batches are drawn at random: what lies beside an image is not wanted
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, rows: Rows) -> StoredPixels:
        """Returns some of these images, which stay on the disk."""
        return StoredPixels(self._stored, self.shape[1:], self._rows[rows])

    def __getitem__(self, wanted: slice | Rows) -> Pixels:
        rows = self._rows[wanted]
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        size = int(np.prod(self.shape[1:]))
        for image, row in zip(found, rows.tolist(), strict=True):
            try:
                got = os.preadv(self._file.fileno(), [image.data], self._stored.offset + row * size)
            except OSError as error:
                raise DataError(f"{self._stored.path}: {error.strerror}") from None
            if got < size:
                raise DataError(f"{self._stored.path}: ends {size - got} bytes early, in image {row}")
        return found


@dataclass(frozen=True, eq=False)
class Images:
    """N images x uint8 (N, C, H, W), and labels y whose form tells the kind of task that they are for:

    - `classify`: int64 (N) in 0..len(classes)-1
    - `segment`: masks uint8 (N, H, W) of such labels, or of `ignore`, which counts for nothing
    - `regress`: numbers float32 (N, K), K >= 1
    - `reconstruct`: none, float32 (N, 0), as the images themselves are the target

    `named` is whether the set named its classes; else the labels are their names. Raises DataError if N is 0
    or fields disagree."""

    x: Pixels  # or `StoredPixels`, which has as much of an array as a training needs
    y: NDArray[Any]
    classes: tuple[str, ...]
    named: bool = True
    ignore: int | None = None

    def __post_init__(self) -> None:
        if self.x.dtype != np.uint8 or self.x.ndim != 4:
            raise DataError(f"images are {self.x.dtype} {self.x.shape}, need uint8 (N, C, H, W)")
        needed = {1: np.int64, 2: np.float32, 3: np.uint8}.get(self.y.ndim)
        if self.y.dtype != needed or (self.y.ndim == 3 and self.y.shape[1:] != self.x.shape[2:]):
            need = "int64 (N,), masks uint8 (N, H, W) or numbers float32 (N, K)"
            raise DataError(f"labels are {self.y.dtype} {self.y.shape}, need {need}")
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} images have {len(self.y)} labels")
        if len(self.y) == 0:
            raise DataError("there are no images, need at least one")
        if self.y.ndim == 2:
            return
        last = len(self.classes) - 1
        for start in range(0, len(self.y), CHUNK):
            part = self.y[start : start + CHUNK]
            wrong = (part < 0) | (part > last)
            if self.ignore is not None:
                wrong &= part != self.ignore
            if wrong.any():
                at = np.argwhere(wrong)[0]
                place = ", ".join(map(str, [start + at[0], *at[1:]]))
                found = f"y[{place}] is {part[tuple(at)]}"
                raise DataError(f"labels run {self.y.min()}..{self.y.max()}, need 0..{last}: {found}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> Shape:
        channels, height, width = self.x.shape[1:]
        return channels, height, width

    @property
    def kind(self) -> Kind:
        if self.y.ndim == 2:
            return "regress" if self.y.shape[1] else "reconstruct"
        return "classify" if self.y.ndim == 1 else "segment"

    def take(self, rows: Rows) -> Images:
        x = self.x.part(rows) if isinstance(self.x, StoredPixels) else self.x[rows]
        return replace(self, x=x, y=self.y[rows])

    def without_labels(self) -> Images:
        """The same images for `reconstruct`, whatever their labels are."""
        return replace(self, y=unlabelled(len(self)), classes=(), named=False, ignore=None)


def unlabelled(count: int) -> NDArray[np.float32]:
    """Returns the labels of images that have none."""
    return np.empty((count, 0), np.float32)


def order(count: int, seed: int = SPLIT_SEED) -> Rows:
    """Returns a permutation of 0..count-1, int64 (count,), by sorting raw bits of Philox, which numpy keeps
    from version to version, unlike what `permutation` makes of them."""
    drawn = np.random.Philox(key=np.array([seed, count], dtype=np.uint64)).random_raw(count)
    return np.argsort(drawn, kind="stable").astype(np.int64)


def split_rows(y: Labels, fraction: float = TEST_SHARE, seed: int = SPLIT_SEED) -> tuple[Rows, Rows]:
    """Splits rows with labels y into (rest, part) in random order; part takes `fraction` of each class."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction {fraction} is not between 0 and 1")
    shuffled = order(len(y), seed)
    labels = y[shuffled]
    inside = np.zeros(len(y), dtype=bool)
    for label in range(int(labels.max(initial=-1)) + 1):
        places = np.flatnonzero(labels == label)
        inside[places[: round(len(places) * fraction)]] = True
    return shuffled[~inside], shuffled[inside]


def shards(images: Images, n: int, seed: int) -> list[Images]:
    """Splits images at random into n shards, whose sizes differ by one at most."""
    if not 1 <= n <= len(images):
        raise DataError(f"{len(images)} images cannot make {n} shards")
    return [images.take(rows) for rows in np.array_split(order(len(images), seed), n)]


def held_out(rows: Rows, share: float) -> NDArray[np.bool_]:
    """Says which rows of a part are held out of training, bool (N): each by its own draw, so that rows that
    come to the set change nothing for those that are there, and a larger share holds the same and more. Of
    two rows or more one at least is held out, and one is not. Raises DataError for a single row."""
    if len(rows) < 2:
        raise DataError(f"validation: {share:g} of {len(rows)} images cannot be held out, needs two or more")
    key = np.array([VALIDATION_SEED, 0], dtype=np.uint64)
    drawn = np.random.Philox(key=key).random_raw(int(rows.max()) + 1)[rows]
    held: NDArray[np.bool_] = drawn < np.uint64(share * 2.0**64)
    held[np.argmin(drawn)], held[np.argmax(drawn)] = True, False
    return held


def hold_out(images: Images, share: float) -> tuple[Images, Images | None]:
    """Splits a set into the images to train on and, with a share, those held out. Raises DataError."""
    if not share:
        return images, None
    held = held_out(np.arange(len(images)), share)
    return images.take((~held).nonzero()[0]), images.take(held.nonzero()[0])


def fit(x: Pixels, shape: Shape) -> Pixels:
    """Brings images (N, C, H, W) of any size to this (C, H, W): uint8 (N, *shape). An axis shrinks by
    averaging areas and grows by linear interpolation; RGB becomes grey by its luma, grey RGB by repetition.
    Raises DataError for other channels."""
    channels, height, width = shape
    if x.shape[1:] == shape:
        return np.ascontiguousarray(x)
    if x.shape[1] != channels and {x.shape[1], channels} != {1, 3}:
        raise DataError(f"images have {x.shape[1]} channels, need {channels}")
    down, across = _resampling(x.shape[2], height), _resampling(x.shape[3], width).T
    result = np.empty((len(x), *shape), dtype=np.uint8)
    if x.shape[2] * x.shape[3] > LARGE_PIXELS:
        for image, fitted in zip(x, result, strict=True):
            fitted[:] = np.rint(down @ _narrowed(image, channels, across))
        return result
    for start in range(0, len(x), CHUNK):
        part = _channels(x[start : start + CHUNK].astype(np.float64), channels)
        result[start : start + CHUNK] = np.rint(down @ part @ across)  # one channel repeats into three
    return result


def fit_masks(masks: Masks, shape: Shape) -> Masks:
    """Brings masks (N, H, W) to the height and width of this (C, H, W) by their nearest labels, as there is
    no class between two: uint8 (N, *shape[1:])."""
    rows, columns = (
        ((np.arange(needed) + 0.5) * (size / needed)).astype(np.int64)
        for needed, size in zip(shape[1:], masks.shape[1:], strict=True)
    )
    return np.ascontiguousarray(masks[:, rows[:, None], columns])


def _narrowed(image: Pixels, channels: int, across: NDArray[np.float64]) -> NDArray[np.float64]:
    """Resamples in strips: a camera's 12 million pixels as float64 are more than a small board has."""
    at_once = max(1, LARGE_PIXELS // image.shape[2])
    strips = [
        _channels(image[None, :, top : top + at_once].astype(np.float64), channels)[0] @ across
        for top in range(0, image.shape[1], at_once)
    ]
    return np.concatenate(strips, axis=1)


def _channels(part: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    return np.tensordot(LUMA, part, axes=(0, 1))[:, None] if channels == 1 and part.shape[1] == 3 else part


def save(path: Path, images: Images) -> None:
    """Writes a shard as an npz that `npz:PATH` reads. Raises OSError, and leaves the old file whole."""
    arrays: dict[str, Any] = {"x": images.x}
    if images.kind != "reconstruct":
        arrays["y"] = images.y
    if images.named:
        arrays["classes"] = np.array(images.classes, dtype=np.str_)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def _resampling(size: int, needed: int) -> NDArray[np.float64]:
    """(needed, size): each row holds the weights of one new pixel, which sum to 1."""
    scale = size / needed
    new, old = np.arange(needed)[:, None], np.arange(size)[None, :]
    if needed < size:  # the share of the new pixel's area that each old one covers
        overlap = np.minimum(old + 1, (new + 1) * scale) - np.maximum(old, new * scale)
        weights = np.maximum(overlap, 0.0) / scale
    else:  # linear between the old pixels' centres, constant outside them
        centre = np.clip((new + 0.5) * scale - 0.5, 0, size - 1)
        weights = np.maximum(1.0 - np.abs(centre - old), 0.0)
    return np.asarray(weights, dtype=np.float64)
