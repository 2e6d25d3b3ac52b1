"""Where labelled images lie: every kind of source opens into the same value, with its labels alone read.

A source is a name or a place:

- `digits`: scikit-learn's 1,797 digits brought to 28x28 as MNIST was: 20x20, centred (extra `sim`)
- `mnist`, `eurosat`, `eurosat-full`: files in the data folder (`--data-dir` or SPACEDML_DATA); `eurosat` is
  the subset of 2,500 images where that is there, else the full set of 27,000
- `npz:PATH`: arrays `x` uint8 (N, C, H, W) or (N, H, W), `y` whole numbers (N), `classes` names if there are
  any; `x_test` and `y_test` for the test part
- `folder:PATH`: one subfolder of image files a class, or `train` and `test` folders of those; without these,
  a fifth of every class is the test part

Named sets and image folders are fitted to the model's shape; an npz must have it.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onboard.console.extras import unusable
from onboard.data import folders, idx, labels, npz
from onboard.data.decode import decoded
from onboard.data.images import (
    DataError,
    Images,
    MissingDataError,
    Pixels,
    Rows,
    Shape,
    fit,
    order,
    split,
    split_rows,
)

Part = Literal["train", "test", "own"]
"""`own` is what a board trains on: the train part, or a folder without parts as a whole."""
SOURCES = ("digits", "mnist", "eurosat", "eurosat-full", "npz:PATH", "folder:PATH")
FOLDER_VARIABLE = "SPACEDML_DATA"
SPLIT_SEED = 42  # of the digits' and folders' splits; any constant does, and it must stay
TEST_SHARE = 0.2  # of both
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
"""What others call the names of classes, in small letters and without what is none."""
EUROSAT_FILES = {
    "eurosat": ("eurosat_rgb_2500.npz", "eurosat_rgb_full_jpeg.npz"),
    "eurosat-full": ("eurosat_rgb_full_jpeg.npz",),
}
EUROSAT_HOW = "or unpack EuroSAT_RGB.zip (https://zenodo.org/records/7711810) and use folder:PATH/EuroSAT_RGB"

Block = tuple[Rows, Pixels]


@dataclass(frozen=True)
class OpenedSource:
    """One part of a source, with nothing but its labels read. `y` as the file has it; `label` what to call
    that array in `where`; `blocks`: the images of these rows, fitted, some at a time with their places."""

    where: str | Path
    y: NDArray[Any]
    label: str
    classes: labels.Names | None  # None: the set names none
    blocks: Callable[[Rows], Iterator[Block]]
    passed: Mapping[str, int] = field(default_factory=dict)


def check_source(source: str) -> None:
    """Whether `source` is of a form that is known. Raises `DataError`."""
    name, _, place = source.partition(":")
    if source not in KNOWN_CLASSES and not (name in ("npz", "folder") and place):
        raise DataError(f"no data source {source!r}; there are {', '.join(SOURCES)}")


def opened(source: str, shape: Shape, folder: str | Path | None, part: Part) -> OpenedSource:
    """The source's part, of which the labels are read. Raises `DataError`."""
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
    train, test = split(Images(x, answers.astype(np.int64), DIGITS), TEST_SHARE, SPLIT_SEED)
    images = test if part == "test" else train

    def blocks(rows: Rows) -> Iterator[Block]:
        yield np.arange(len(rows)), fit(images.x[rows], shape)

    return OpenedSource("digits", images.y, "y", DIGITS, blocks)


def _handwritten() -> tuple[NDArray[Any], NDArray[Any]]:
    """scikit-learn's images (N, 8, 8) and their labels (N). To import it takes a second and 100 MB, to read
    its table 10 ms: it is imported only where the table does not lie there."""
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
    (count, *size), (held,) = idx.form(pictures, axes=3), idx.form(answers, axes=1)
    if count != held:
        raise DataError(f"{pictures}: has {count} images, and {answers.name} has {held} labels")
    if not 0 < math.prod(size) <= idx.MAX_BYTES:
        raise DataError(
            f"{pictures}: header says {(count, *size)}: such rows are not 1 to {idx.MAX_BYTES} bytes"
        )

    def blocks(rows: Rows) -> Iterator[Block]:
        for places, x in idx.blocks(pictures, rows, axes=3):
            yield places, fit(x[:, None], shape)

    return OpenedSource(answers, idx.read_rows(answers, None, axes=1), "label", DIGITS, blocks)


def _eurosat(path: Path, shape: Shape, part: Part) -> OpenedSource:
    name = "test_idx" if part == "test" else "train_idx"
    y, titles, index = (_needed(path, each) for each in ("labels", "class_names", name))
    index = index.astype(np.int64)
    if index.size and not (index.min() >= 0 and index.max() < len(y)):
        raise DataError(f"{path}: {name} runs to {index.max()}, there are {len(y)} labels")
    held = npz.names(path)
    form = npz.form(path, "images")[0] if "images" in held else ()
    if len(form) == 4 and form[0] == len(y) and form[3] == 3:
        blocks = partial(_planes, path, "images", shape, index)
    elif {"jpeg", "offsets"} <= {*held} and npz.form(path, "offsets")[0] == (len(y) + 1,):
        blocks = partial(_jpegs, path, npz.read(path, "offsets").astype(np.int64), shape, index)
    else:
        raise DataError(
            f"{path}: holds neither images (N, H, W, 3) nor jpeg with offsets (N + 1,), N = labels"
        )
    return OpenedSource(path, y[index], "labels", labels.checked(path, titles), blocks)


def _planes(path: Path, name: str, shape: Shape, index: Rows, rows: Rows) -> Iterator[Block]:
    for places, x in npz.rows(path, name, index[rows]):
        yield places, fit(x.transpose(0, 3, 1, 2), shape)


def _jpegs(path: Path, offsets: Rows, shape: Shape, index: Rows, rows: Rows) -> Iterator[Block]:
    """JPEG files that lie one after the other in an array of bytes, image i from offsets[i] on."""
    if offsets.size and (offsets[0] < 0 or np.any(np.diff(offsets) < 0)):
        raise DataError(f"{path}: offsets do not ascend from 0")
    wanted = index[rows]
    with npz.forward(path, "jpeg") as joined:
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
    held = npz.names(path)
    if missing := [name for name in (x_name, y_name) if name not in held]:
        raise DataError(f"{path}: holds {', '.join(held) or 'nothing'}; needs {', '.join(missing)} too")
    form, dtype = npz.form(path, x_name)
    if dtype != np.uint8 or (form[1:] != shape and (1, *form[1:]) != shape):
        need = ", ".join(map(str, shape))
        raise DataError(
            f"{path}: {x_name} is {dtype} {form}, needs uint8 (N, {need}){_advice(form, dtype, shape)}"
        )
    y_form, y_dtype = npz.form(path, y_name)
    if y_form != form[:1] or not np.issubdtype(y_dtype, np.integer):
        raise DataError(f"{path}: {y_name} is {y_dtype} {y_form}, needs whole numbers ({form[0]},)")
    titles = _titles(path, held)

    def blocks(rows: Rows) -> Iterator[Block]:
        for places, x in npz.rows(path, x_name, rows):
            yield places, x.reshape(len(x), *shape)

    return OpenedSource(path, npz.read(path, y_name), y_name, titles, blocks, _unread(held))


def _titles(path: Path, held: Sequence[str]) -> labels.Names | None:
    """The names of an npz's classes. Raises DataError for names under another name: labels that nobody
    compares would be taken as places in the mission's list."""
    if "classes" in held:
        return labels.checked(path, npz.read(path, "classes").reshape(-1))
    for name in held:
        if "".join(letter for letter in name.casefold() if letter.isalpha()) in TITLES:
            raise DataError(f"{path}: holds {name}, which is not read: call the names of classes `classes`")
    return None


def _unread(held: Sequence[str]) -> dict[str, int]:
    """Arrays of an npz that are for something else."""
    return {f"array {name!r}": 1 for name in held if name not in NPZ_ARRAYS}


def _advice(form: tuple[int, ...], dtype: np.dtype[Any], shape: Shape) -> str:
    """What to do with an array of another form, where that is plain."""
    if len(form) == 4 and (form[3], *form[1:3]) == shape:
        return "; its channels come last: np.moveaxis(x, -1, 1)"
    if np.issubdtype(dtype, np.floating):
        return "; floats of 0..1 become pixels by np.rint(x * 255).astype(np.uint8)"
    if dtype == np.uint16:
        return "; 16 bits become 8 by np.rint(x / 257).astype(np.uint8)"
    return ""


def _needed(path: Path, name: str) -> NDArray[Any]:
    """An array that an npz must have."""
    if name not in (held := npz.names(path)):
        raise DataError(f"{path}: holds {', '.join(held) or 'nothing'}; needs {name} too")
    return npz.read(path, name)


def _image_folder(path: Path, shape: Shape, part: Part) -> OpenedSource:
    found = folders.find(path, "test" if part == "test" else "train")
    y = np.array(found.labels, np.int64)
    places = order(len(y), SPLIT_SEED)
    if part != "own" and not found.parted:
        places = split_rows(y, TEST_SHARE, SPLIT_SEED)[part == "test"]

    def blocks(rows: Rows) -> Iterator[Block]:
        for place, row in enumerate(places[rows]):
            file = found.files[row]
            yield np.array([place]), fit(decoded(str(file), file, shape[0])[None], shape)

    return OpenedSource(path, y[places], "label", found.classes, blocks, found.passed)


def _data_folder(source: str, folder: str | Path | None) -> Path:
    place = folder or os.environ.get(FOLDER_VARIABLE)
    if not place:
        raise MissingDataError(f"{source}: no data folder: give --data-dir or set {FOLDER_VARIABLE}")
    return Path(place)


def _find(folder: Path, subfolder: str, names: Sequence[str], how: str) -> Path:
    """The first of these files in the folder or its subfolder."""
    for name in names:
        for path in (folder / subfolder / name, folder / name):
            if path.is_file():
                return path
    places = f"{folder / subfolder} or {folder}"
    raise MissingDataError(f"{subfolder}: no {' or '.join(names)} in {places}; {how}")
