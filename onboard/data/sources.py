"""Opens each kind of source of images: only its labels are read, and its pixels come a block at a time.

A source is a name or a place:

- `digits`: scikit-learn's 1,797 digits brought to 28x28 as MNIST was: 20x20, centred (extra `sim`)
- `mnist`, `eurosat`, `eurosat-full`: files in the data folder (`--data-dir` or SPACEDML_DATA); `eurosat` is
  the subset of 2,500 images if that is there, else the full set of 27,000
- `eurosat-water`: the same photographs with masks of water and vegetation that `onboard.data.cover` makes
- `npz:PATH`: arrays `x` uint8 (N, C, H, W) or (N, H, W); `y`, which is whole numbers (N) for `classify` and
  (N, H, W) for `segment`, and numbers (N, K) or (N) for `regress`; `classes`, names, if there are any;
  `x_test` and `y_test` for the test part. PATH is an npz, or a folder with a npy file for each
- `folder:PATH`: one subfolder of image files a class; for `segment` the folders `images` and `masks`, and for
  `reconstruct` any images; or `train` and `test` folders of those, without which a fifth of every class is
  the test part

Whatever has images serves `reconstruct`. Named sets and folders are fitted to the model's shape; an npz must
have it."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onboard.console.extras import unusable
from onboard.data import labels
from onboard.data.arrays import ArrayFile, Block, Form, idx_array, npz_array, npz_file, npz_names, rows_of
from onboard.data.cover import CLASSES as COVER
from onboard.data.cover import land_cover
from onboard.data.images import (
    DataError,
    MissingDataError,
    Part,
    Rows,
    Shape,
    StoredImages,
    fit,
    split_rows,
    unlabelled,
)
from onboard.data.pictures import decoded, decoded_mask, find, find_all, find_pairs
from onboard.learn.objectives import Kind

SOURCES = ("digits", "mnist", "eurosat", "eurosat-full", "eurosat-water", "npz:PATH", "folder:PATH")
FOLDER_VARIABLE = "SPACEDML_DATA"
DIGITS = labels.numbered(10)
EUROSAT = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
    "Residential", "River", "SeaLake",
)  # fmt: skip
KNOWN_CLASSES: dict[str, labels.Names] = {
    "digits": DIGITS, "mnist": DIGITS, "eurosat": EUROSAT, "eurosat-full": EUROSAT, "eurosat-water": COVER,
}  # fmt: skip
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
EUROSAT_SHAPE = (3, 64, 64)
EUROSAT_FILES = {
    "eurosat": ("eurosat_rgb_2500.npz", "eurosat_rgb_full_jpeg.npz"),
    "eurosat-full": ("eurosat_rgb_full_jpeg.npz",),
    "eurosat-water": ("eurosat_rgb_2500.npz", "eurosat_rgb_full_jpeg.npz"),
}
EUROSAT_HOW = "or unpack EuroSAT_RGB.zip (https://zenodo.org/records/7711810) and use folder:PATH/EuroSAT_RGB"


@dataclass(frozen=True)
class OpenedSource:
    """One part of a source. `label` names the array `y` in `where`; `blocks` reads rows' images, fitted, some
    at a time with their places, and `masks` their masks as the source has them, if it has any: then `y` is
    (N, 0). `passed` counts entries passed over by reason. `files` hold the images, and `stored` says where
    they lie as the model takes them, if they do."""

    where: str | Path
    y: NDArray[Any]
    label: str
    classes: labels.Names | None  # None: the set names none
    blocks: Callable[[Rows], Iterator[Block]]
    passed: Mapping[str, int] = field(default_factory=dict)
    masks: Callable[[Rows], Iterator[Block]] | None = None
    files: Sequence[Path] = ()
    stored: StoredImages | None = None

    @property
    def kind(self) -> Kind:
        """What its labels are for."""
        if self.masks is not None:
            return "segment"
        if self.y.ndim == 2:
            return "regress" if self.y.shape[1] else "reconstruct"
        return "classify"


def check_source(source: str) -> None:
    """Raises DataError if the form of `source` is not known."""
    name, _, place = source.partition(":")
    if source not in KNOWN_CLASSES and not (name in ("npz", "folder") and place):
        raise DataError(f"no data source {source!r}; there are {', '.join(SOURCES)}")


def opened(source: str, shape: Shape, folder: str | Path | None, part: Part, kind: Kind) -> OpenedSource:
    """Opens a part of a source and reads its labels, in the form of that kind of task where the source can
    have several. Raises DataError."""
    check_source(source)
    name, _, place = source.partition(":")
    if name == "npz":
        return _npz(Path(place), shape, part, kind)
    if name == "folder":
        return _image_folder(Path(place), shape, part, kind)
    if source == "digits":
        return _digits(shape, part)
    if source == "mnist":
        return _mnist(folder, shape, part)
    path = _find(source, folder, EUROSAT_FILES[source], EUROSAT_HOW)
    found = _eurosat(path, shape, part)
    if source == "eurosat-water":  # masks of the photographs as they are, and not as they are fitted
        return _covered(found, _eurosat(path, EUROSAT_SHAPE, part))
    return found


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
        stored = _stored(pictures, images, shape)

    def blocks(rows: Rows) -> Iterator[Block]:
        for places, x in rows_of(idx_array(pictures, axes=3), rows):
            yield places, fit(x[:, None], shape)

    return OpenedSource(answers, y, "label", DIGITS, blocks, files=(pictures,), stored=stored)


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
    return OpenedSource(path, y[index], "labels", labels.checked(path, titles), blocks, files=(path,))


def _covered(found: OpenedSource, photographs: OpenedSource) -> OpenedSource:
    def masks(rows: Rows) -> Iterator[Block]:
        for places, x in photographs.blocks(rows):
            yield places, land_cover(x)

    return replace(found, y=unlabelled(len(found.y)), classes=COVER, masks=masks)


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


def _npz(path: Path, shape: Shape, part: Part, kind: Kind) -> OpenedSource:
    x_name, y_name = ("x_test", "y_test") if part == "test" else ("x", "y")
    held = _needed(path, x_name, *(() if kind == "reconstruct" else (y_name,)))
    with npz_array(path, x_name) as images:
        form, dtype, stored = images.shape, images.dtype, _stored(npz_file(path, x_name), images, shape)
    if dtype != np.uint8 or (form[1:] != shape and (1, *form[1:]) != shape):
        need = f"uint8 (N, {', '.join(map(str, shape))}){_advice(form, dtype, shape)}"
        raise DataError(f"{path}: {x_name} is {dtype} {form}, needs {need}")
    y, masks = unlabelled(form[0]), None
    if kind == "segment":
        masks = _npz_masks(path, y_name, (form[0], *shape[1:]))
    elif kind != "reconstruct":
        y = _npz_labels(path, y_name, form[0], kind)
    titles = labels.checked(path, _array(path, "classes").reshape(-1)) if "classes" in held else None
    for name in held:
        # Labels that nobody compares would be taken as places in the mission's list.
        if titles is None and "".join(filter(str.isalpha, name.casefold())) in TITLES:
            raise DataError(f"{path}: holds {name}, which is not read: call the names of classes `classes`")

    def blocks(rows: Rows) -> Iterator[Block]:
        for places, x in rows_of(npz_array(path, x_name), rows):
            yield places, x.reshape(len(x), *shape)

    unread = {f"array {name!r}": 1 for name in held if name not in NPZ_ARRAYS}
    files = tuple({npz_file(path, name): None for name in (x_name, y_name) if name in held})
    return OpenedSource(path, y, y_name, titles, blocks, unread, masks, files, stored)


def _stored(path: Path, images: ArrayFile, shape: Shape) -> StoredImages | None:
    as_they_are = images.shape[1:] == shape or (1, *images.shape[1:]) == shape
    if images.offset is None or images.dtype != np.uint8 or not as_they_are:
        return None
    return StoredImages(path, images.offset)


def _npz_masks(path: Path, name: str, needed: tuple[int, ...]) -> Callable[[Rows], Iterator[Block]]:
    form, dtype = _form(path, name)
    if form != needed or not np.issubdtype(dtype, np.integer):
        raise DataError(f"{path}: {name} is {dtype} {form}, needs whole numbers {needed}, one for each pixel")
    return lambda rows: rows_of(npz_array(path, name), rows)


def _npz_labels(path: Path, name: str, count: int, kind: Kind) -> NDArray[Any]:
    form, dtype = _form(path, name)
    is_whole = np.issubdtype(dtype, np.integer)
    if kind == "classify":
        if form != (count,) or not is_whole:
            raise DataError(f"{path}: {name} is {dtype} {form}, needs whole numbers ({count},)")
        return _array(path, name)
    if form[:1] != (count,) or len(form) > 2 or not (is_whole or np.issubdtype(dtype, np.floating)):
        raise DataError(f"{path}: {name} is {dtype} {form}, needs numbers ({count}, K)")
    y = _array(path, name).astype(np.float32).reshape(count, -1)
    if (wrong := np.argwhere(~np.isfinite(y))).size:
        raise DataError(f"{path}: {name}[{wrong[0][0]}] is {y[tuple(wrong[0])]}, needs finite numbers")
    return y


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


def _image_folder(path: Path, shape: Shape, part: Part, kind: Kind) -> OpenedSource:
    y: NDArray[Any]
    classes, masks = None, None
    if kind == "classify":
        files, y, classes, passed = find(path, part)
    elif kind == "segment":
        pairs, passed = find_pairs(path, part)
        files, y = [image for image, _ in pairs], unlabelled(len(pairs))
        masks = partial(_decoded_masks, pairs)
    elif kind == "reconstruct":
        files, passed = find_all(path, part)
        y = unlabelled(len(files))
    else:
        raise DataError(f"folder:{path}: images alone say no numbers; {kind!r} needs npz:PATH with y (N, K)")

    def blocks(rows: Rows) -> Iterator[Block]:
        for place, row in enumerate(rows):
            yield np.array([place]), fit(decoded(str(files[row]), files[row], shape[0])[None], shape)

    return OpenedSource(path, y, "label", classes, blocks, passed, masks, files)


def _decoded_masks(pairs: Sequence[tuple[Path, Path]], rows: Rows) -> Iterator[Block]:
    for place, row in enumerate(rows):
        image, mask = pairs[row]
        yield np.array([place]), decoded_mask(mask, image)[None]


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
