"""Where labelled images lie: every kind of source opens into the same value, with only its labels read.

A source is a name or a place:

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
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onboard.console.extras import unusable
from onboard.data import labels
from onboard.data.arrays import Block, Form, idx_array, npz_array, npz_names, rows_of
from onboard.data.images import DataError, MissingDataError, Part, Rows, Shape, fit, split_rows
from onboard.data.pictures import decoded, find

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
    """One part of a source, of which only the labels are read. `label` names the array `y` in `where`;
    `blocks` reads rows' images, fitted, some at a time with their places; `passed` counts entries passed over
    by reason."""

    where: str | Path
    y: NDArray[Any]
    label: str
    classes: labels.Names | None  # None: the set names none
    blocks: Callable[[Rows], Iterator[Block]]
    passed: Mapping[str, int] = field(default_factory=dict)


def check_source(source: str) -> None:
    """Raises DataError if the form of `source` is not known."""
    name, _, place = source.partition(":")
    if source not in KNOWN_CLASSES and not (name in ("npz", "folder") and place):
        raise DataError(f"no data source {source!r}; there are {', '.join(SOURCES)}")


def opened(source: str, shape: Shape, folder: str | Path | None, part: Part) -> OpenedSource:
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
        return _mnist(_data_folder("mnist", folder), shape, part)
    path = _find(_data_folder(source, folder), "eurosat", EUROSAT_FILES[source], EUROSAT_HOW)
    return _eurosat(path, shape, part)


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


def _mnist(folder: Path, shape: Shape, part: Part) -> OpenedSource:
    files = MNIST_FILES["test" if part == "test" else "train"]
    pictures, answers = (_find(folder, "mnist", (f"{name}.gz", name), MNIST_HOW) for name in files)
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
        raise DataError(
            f"{path}: holds neither images (N, H, W, 3) nor jpeg with offsets (N + 1,), N = labels"
        )
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
        need = ", ".join(map(str, shape))
        raise DataError(
            f"{path}: {x_name} is {dtype} {form}, needs uint8 (N, {need}){_advice(form, dtype, shape)}"
        )
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


def _data_folder(source: str, folder: str | Path | None) -> Path:
    place = folder or os.environ.get(FOLDER_VARIABLE)
    if not place:
        raise MissingDataError(f"{source}: no data folder: give --data-dir or set {FOLDER_VARIABLE}")
    return Path(place)


def _find(folder: Path, subfolder: str, names: Sequence[str], how: str) -> Path:
    for name in names:
        for path in (folder / subfolder / name, folder / name):
            if path.is_file():
                return path
    places = f"{folder / subfolder} or {folder}"
    raise MissingDataError(f"{subfolder}: no {' or '.join(names)} in {places}; {how}")
