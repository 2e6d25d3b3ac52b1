"""Loads labelled images in a model's shape, with the mission's labels, or says in one line what is wrong.

Every kind of source opens into one value with only its labels read; they are checked before any pixel is, and
pixels come a block at a time: a set costs no more memory than the images that are taken. A source is a name
or a place:

- `digits`: scikit-learn's 1,797 digits brought to 28x28 as MNIST was: 20x20, centred (extra `sim`)
- `mnist`, `eurosat`, `eurosat-full`: files in the data folder (`--data-dir` or SPACEDML_DATA); `eurosat` is
  the subset of 2,500 images if that is there, else the full set of 27,000
- `npz:PATH`: arrays `x` uint8 (N, C, H, W) or (N, H, W), `y` whole numbers (N), `classes` names if there are
  any; `x_test` and `y_test` for the test part
- `folder:PATH`: one subfolder of image files a class, or `train` and `test` folders of those; without these,
  a fifth of every class is the test part

Named sets and image folders are fitted to the model's shape; an npz must have it."""

from __future__ import annotations

import gzip
import importlib.util
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from onboard.console.extras import unusable
from onboard.data import labels
from onboard.data.arrays import Block, Form, idx_array, npz_array, npz_names, rows_of
from onboard.data.images import CHUNK, DataError, Images, MissingDataError, Part, Rows, Shape, fit, split_rows
from onboard.data.inspection import JUDGED_FROM, Inspection, Levels
from onboard.data.pictures import decoded, find

P = ParamSpec("P")
WORKING_BYTES = 4 << 20  # of a block of images in work; a camera's picture adds its own
SOURCES = ("digits", "mnist", "eurosat", "eurosat-full", "npz:PATH", "folder:PATH")
FOLDER_VARIABLE = "SPACEDML_DATA"
DIGITS = labels.numbered(10)
EUROSAT = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
    "Residential", "River", "SeaLake",
)  # fmt: skip
KNOWN_CLASSES = {"digits": DIGITS, "mnist": DIGITS, "eurosat": EUROSAT, "eurosat-full": EUROSAT}
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MNIST_HOW = "get MNIST's four files from https://storage.googleapis.com/cvdf-datasets/mnist/"
NPZ_ARRAYS = frozenset({"x", "y", "x_test", "y_test", "classes"})
TITLES = frozenset(
    {
        "class", "classes", "classname", "classnames", "classlabels", "classlist", "labelnames", "names",
        "labelsnames", "targetnames", "categories", "categorynames", "classtoidx", "labelmap", "idxtoclass",
    }
)  # fmt: skip
"""What others call an array of class names: its letters alone, in lower case."""
EUROSAT_FILES = {
    "eurosat": ("eurosat_rgb_2500.npz", "eurosat_rgb_full_jpeg.npz"),
    "eurosat-full": ("eurosat_rgb_full_jpeg.npz",),
}
EUROSAT_HOW = "or unpack EuroSAT_RGB.zip (https://zenodo.org/records/7711810) and use folder:PATH/EuroSAT_RGB"


@dataclass(frozen=True)
class OpenedSource:
    """One part of a source. `label` names the array `y` in `where`; `blocks` reads rows' images, fitted, some
    at a time with their places; `passed` counts entries passed over by reason."""

    where: str | Path
    y: NDArray[Any]
    label: str
    classes: labels.Names | None  # None: the set names none
    blocks: Callable[[Rows], Iterator[Block]]
    passed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Survey:
    """What a part of a source holds, before any pixel is read."""

    source: str
    shape: Shape
    y: NDArray[np.int64]  # in 0..len(classes)-1
    classes: labels.Names
    found: OpenedSource
    rows: Rows  # those that are taken, by their places in the part

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
    found = _opened(source, shape, folder, part)
    mission = labels.checked(source, names) if names is not None else None
    if mission is not None:
        y, told = labels.brought(found.where, found.label, found.y, found.classes, mission), mission
    elif found.classes is not None:
        y, told = labels.whole(found.where, found.label, found.y, len(found.classes)), found.classes
    else:
        y = labels.whole(found.where, found.label, found.y, classes)
        told = labels.numbered(int(y.max(initial=0)) + 1)
    if classes is not None and len(told) > classes:
        apart = f"the model tells {classes} apart ({labels.listed(told)})"
        raise DataError(f"{source}: has {len(told)} classes, {apart}")
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


def check_source(source: str) -> None:
    """Raises DataError if the form of `source` is not known."""
    name, _, place = source.partition(":")
    if source not in KNOWN_CLASSES and not (name in ("npz", "folder") and place):
        raise DataError(f"no data source {source!r}; there are {', '.join(SOURCES)}")


def _opened(source: str, shape: Shape, folder: str | Path | None, part: Part) -> OpenedSource:
    """Opens a part of a source and reads its labels. Raises DataError."""
    check_source(source)
    name, _, place = source.partition(":")
    if name == "npz":
        return _npz(Path(place), shape, part)
    if name == "folder":
        return _image_folder(Path(place), shape, part)
    if source == "digits":
        return _digits(shape, part)
    if source == "mnist":
        return _mnist(folder, shape, part)
    return _eurosat(_find(source, folder, EUROSAT_FILES[source], EUROSAT_HOW), shape, part)


def _digits(shape: Shape, part: Part) -> OpenedSource:
    handwritten, answers = _handwritten()
    small = np.rint(handwritten * (255 / 16)).astype(np.uint8)[:, None]  # 8x8 with values 0..16
    x = np.pad(fit(small, (1, 20, 20)), ((0, 0), (0, 0), (4, 4), (4, 4)))
    chosen = split_rows(answers.astype(np.int64))[part == "test"]
    x, y = x[chosen], answers[chosen]

    def blocks(rows: Rows) -> Iterator[Block]:
        yield np.arange(len(rows)), fit(x[rows], shape)

    return OpenedSource("digits", y, "y", DIGITS, blocks)


def _handwritten() -> tuple[NDArray[Any], NDArray[Any]]:
    """Reads scikit-learn's table (10 ms), as importing the package takes a second and 100 MB."""
    try:
        package = importlib.util.find_spec("sklearn")
        for folder in (package.submodule_search_locations or []) if package else []:
            table = Path(folder) / "datasets" / "data" / "digits.csv.gz"
            if table.is_file():
                with gzip.open(table, "rt") as lines:
                    values = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
                return values[:, :-1].reshape(-1, 8, 8), values[:, -1]
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDataError(f"digits: {unusable('sklearn', error)}") from None
    bunch = load_digits()
    return bunch.images, bunch.target


def _mnist(folder: str | Path | None, shape: Shape, part: Part) -> OpenedSource:
    files = MNIST_FILES["test" if part == "test" else "train"]
    pictures, answers = (_find("mnist", folder, (f"{name}.gz", name), MNIST_HOW) for name in files)
    with idx_array(pictures, axes=3) as images, idx_array(answers, axes=1) as given:
        if images.shape[0] != given.shape[0]:
            lack = f"has {images.shape[0]} images, and {answers.name} has {given.shape[0]} labels"
            raise DataError(f"{pictures}: {lack}")
        y = given.whole()

    def blocks(rows: Rows) -> Iterator[Block]:
        for places, x in rows_of(idx_array(pictures, axes=3), rows):
            yield places, fit(x[:, None], shape)

    return OpenedSource(answers, y, "label", DIGITS, blocks)


def _eurosat(path: Path, shape: Shape, part: Part) -> OpenedSource:
    name = "test_idx" if part == "test" else "train_idx"
    held = _needed(path, "labels", "class_names", name)
    y, titles, index = _array(path, "labels"), _array(path, "class_names"), _array(path, name)
    index = index.astype(np.int64)
    if index.size and not (index.min() >= 0 and index.max() < len(y)):
        raise DataError(f"{path}: {name} runs to {index.max()}, there are {len(y)} labels")
    form = _form(path, "images")[0] if "images" in held else ()
    if len(form) == 4 and form[0] == len(y) and form[3] == 3:
        blocks = partial(_planes, path, shape, index)
    elif {"jpeg", "offsets"} <= {*held} and _form(path, "offsets")[0] == (len(y) + 1,):
        blocks = partial(_jpegs, path, _array(path, "offsets").astype(np.int64), shape, index)
    else:
        need = "neither images (N, H, W, 3) nor jpeg with offsets (N + 1,), N = labels"
        raise DataError(f"{path}: holds {need}")
    return OpenedSource(path, y[index], "labels", labels.checked(path, titles), blocks)


def _planes(path: Path, shape: Shape, index: Rows, rows: Rows) -> Iterator[Block]:
    for places, x in rows_of(npz_array(path, "images"), index[rows]):
        yield places, fit(x.transpose(0, 3, 1, 2), shape)


def _jpegs(path: Path, offsets: Rows, shape: Shape, index: Rows, rows: Rows) -> Iterator[Block]:
    """JPEG files lie one after the other in an array of bytes, image i from offsets[i] on."""
    if offsets.size and (offsets[0] < 0 or np.any(np.diff(offsets) < 0)):
        raise DataError(f"{path}: offsets do not ascend from 0")
    wanted = index[rows]
    with npz_array(path, "jpeg") as joined:
        at, last, picture = 0, -1, np.empty(0, np.uint8)
        for place in np.argsort(wanted, kind="stable"):
            image = int(wanted[place])
            if image != last:
                joined.skip(int(offsets[image]) - at)
                file = io.BytesIO(joined.bytes(int(offsets[image + 1] - offsets[image])))
                at, last = int(offsets[image + 1]), image
                picture = fit(decoded(f"{path}, image {image}", file, shape[0])[None], shape)
            yield np.array([place]), picture


def _npz(path: Path, shape: Shape, part: Part) -> OpenedSource:
    x_name, y_name = ("x_test", "y_test") if part == "test" else ("x", "y")
    held = _needed(path, x_name, y_name)
    form, dtype = _form(path, x_name)
    if dtype != np.uint8 or (form[1:] != shape and (1, *form[1:]) != shape):
        need = f"uint8 (N, {', '.join(map(str, shape))}){_advice(form, dtype, shape)}"
        raise DataError(f"{path}: {x_name} is {dtype} {form}, needs {need}")
    y_form, y_dtype = _form(path, y_name)
    if y_form != form[:1] or not np.issubdtype(y_dtype, np.integer):
        raise DataError(f"{path}: {y_name} is {y_dtype} {y_form}, needs whole numbers ({form[0]},)")
    titles = labels.checked(path, _array(path, "classes").reshape(-1)) if "classes" in held else None
    for name in held:
        # Labels that nobody compares would be taken as places in the mission's list.
        if titles is None and "".join(filter(str.isalpha, name.casefold())) in TITLES:
            raise DataError(f"{path}: holds {name}, which is not read: call the names of classes `classes`")

    def blocks(rows: Rows) -> Iterator[Block]:
        for places, x in rows_of(npz_array(path, x_name), rows):
            yield places, x.reshape(len(x), *shape)

    unread = {f"array {name!r}": 1 for name in held if name not in NPZ_ARRAYS}
    return OpenedSource(path, _array(path, y_name), y_name, titles, blocks, unread)


def _advice(form: tuple[int, ...], dtype: np.dtype[Any], shape: Shape) -> str:
    if len(form) == 4 and (form[3], *form[1:3]) == shape:
        return "; its channels come last: np.moveaxis(x, -1, 1)"
    if np.issubdtype(dtype, np.floating):
        return "; floats of 0..1 become pixels by np.rint(x * 255).astype(np.uint8)"
    if dtype == np.uint16:
        return "; 16 bits become 8 by np.rint(x / 257).astype(np.uint8)"
    return ""


def _needed(path: Path, *names: str) -> tuple[str, ...]:
    held = npz_names(path)
    if missing := [name for name in names if name not in held]:
        raise DataError(f"{path}: holds {', '.join(held) or 'nothing'}; needs {', '.join(missing)} too")
    return held


def _form(path: Path, name: str) -> Form:
    with npz_array(path, name) as array:
        return array.shape, array.dtype


def _array(path: Path, name: str) -> NDArray[Any]:
    with npz_array(path, name) as array:
        return array.whole()


def _image_folder(path: Path, shape: Shape, part: Part) -> OpenedSource:
    files, y, classes, passed = find(path, part)

    def blocks(rows: Rows) -> Iterator[Block]:
        for place, row in enumerate(rows):
            yield np.array([place]), fit(decoded(str(files[row]), files[row], shape[0])[None], shape)

    return OpenedSource(path, y, "label", classes, blocks, passed)


def _find(source: str, folder: str | Path | None, names: Sequence[str], how: str) -> Path:
    place = folder or os.environ.get(FOLDER_VARIABLE)
    if not place:
        raise MissingDataError(f"{source}: no data folder: give --data-dir or set {FOLDER_VARIABLE}")
    top, subfolder = Path(place), source.partition("-")[0]
    for name in names:
        for path in (top / subfolder / name, top / name):
            if path.is_file():
                return path
    raise MissingDataError(f"{subfolder}: no {' or '.join(names)} in {top / subfolder} or {top}; {how}")
