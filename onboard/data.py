"""Loads labelled images from where they lie, in the shape a model takes, or says in one line what is missing.

A source is a name or a place:

- `digits`: scikit-learn's 1,797 digits brought to 28x28 as MNIST was: 20x20, centred (extra `sim`)
- `mnist`, `eurosat`, `eurosat-full`: files in the data folder (`--data-dir` or SPACEDML_DATA); `eurosat` is
  the subset of 2,500 images where that is there, else the full set of 27,000
- `npz:PATH`: arrays `x` uint8 (N, C, H, W) or (N, H, W), `y` whole numbers (N), `classes` names if there are
  any; `x_test` and `y_test` for the test part
- `folder:PATH`: one subfolder of image files a class, or `train` and `test` folders of those

Named sets and image folders are fitted to the model's shape; an npz must have it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onboard.idx import read_rows
from onboard.images import DataError, Images, Labels, Pixels, Rows, Shape, fit, order, save, shards, split

__all__ = ["DataError", "Images", "load", "save", "shards", "split"]

Part = Literal["train", "test"]
SOURCES = ("digits", "mnist", "eurosat", "eurosat-full", "npz:PATH", "folder:PATH")
FOLDER_VARIABLE = "SPACEDML_DATA"
SPLIT_SEED = 42  # of the digits' split; any constant does, and it must stay
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MNIST_HOW = "get MNIST's four files from https://storage.googleapis.com/cvdf-datasets/mnist/"
EUROSAT_FILES = {
    "eurosat": ("eurosat_rgb_2500.npz", "eurosat_rgb_full_jpeg.npz"),
    "eurosat-full": ("eurosat_rgb_full_jpeg.npz",),
}
EUROSAT_HOW = "or unpack EuroSAT_RGB.zip (https://zenodo.org/records/7711810) and use folder:PATH"


def load(
    source: str,
    shape: Shape = (1, 28, 28),
    *,
    folder: str | Path | None = None,
    part: Part = "train",
    rows: int | Sequence[int] | Rows | None = None,
    classes: int | None = None,
) -> Images:
    """The images of one part of a source, as x uint8 (N, *shape), y int64 (N).

    `folder` is the data folder of named sets (else SPACEDML_DATA). `rows` are row numbers in the part, in the
    order wanted, or how many from its start; every part but an npz's is in a random order, so its start is a
    fair sample. `classes` is how many the model tells apart. Raises `DataError`, one line.
    """
    name, _, place = source.partition(":")
    chosen = (
        np.arange(rows) if isinstance(rows, int) else None if rows is None else np.asarray(rows, np.int64)
    )
    if source == "digits":
        images = _digits(shape, part, chosen)
    elif source == "mnist":
        images = _mnist(_data_folder("mnist", folder), shape, part, chosen)
    elif source in EUROSAT_FILES:
        path = _find(_data_folder(source, folder), "eurosat", EUROSAT_FILES[source], EUROSAT_HOW)
        images = _eurosat(path, shape, part, chosen)
    elif name == "npz" and place:
        images = _npz(Path(place), shape, part, chosen)
    elif name == "folder" and place:
        images = _image_folder(Path(place), shape, part, chosen)
    else:
        raise DataError(f"no data source {source!r}; there are {', '.join(SOURCES)}")
    if classes is not None and len(images.classes) > classes:
        raise DataError(f"{source}: has {len(images.classes)} classes, the model tells {classes} apart")
    return images


def _digits(shape: Shape, part: Part, rows: Rows | None) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits: needs scikit-learn: pip install 'spacedml-edge[sim]'") from None
    bunch = load_digits()
    small = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # 8x8 with values 0..16
    x = np.pad(fit(small, (1, 20, 20)), ((0, 0), (0, 0), (4, 4), (4, 4)))
    whole = Images(x, bunch.target.astype(np.int64), tuple("0123456789"))
    train, test = split(whole, 0.2, SPLIT_SEED)
    images = train if part == "train" else test
    images = images.take(_checked("digits", rows, len(images)))
    return Images(fit(images.x, shape), images.y, images.classes)


def _mnist(folder: Path, shape: Shape, part: Part, rows: Rows | None) -> Images:
    pictures, labels = (_find(folder, "mnist", (f"{name}.gz", name), MNIST_HOW) for name in MNIST_FILES[part])
    y = read_rows(labels, rows, axes=1)
    x = read_rows(pictures, rows, axes=3)
    return _images(labels, fit(x[:, None], shape), y, tuple("0123456789"))


def _eurosat(path: Path, shape: Shape, part: Part, rows: Rows | None) -> Images:
    arrays = _arrays(path, ["labels", "class_names", f"{part}_idx"], ["images", "jpeg", "offsets"])
    index = arrays[f"{part}_idx"].astype(np.int64)
    index = index[_checked(path, rows, len(index))]
    labels, pictures, offsets = arrays["labels"], arrays.get("images"), arrays.get("offsets")
    if index.size and not (index.min() >= 0 and index.max() < len(labels)):
        raise DataError(f"{path}: {part}_idx runs to {index.max()}, there are {len(labels)} labels")
    if pictures is not None and pictures.shape == (len(labels), *pictures.shape[1:3], 3):
        x = fit(pictures[index].transpose(0, 3, 1, 2), shape)
    elif "jpeg" in arrays and offsets is not None and offsets.shape == (len(labels) + 1,):
        joined = arrays["jpeg"]
        files = ((i, io.BytesIO(joined[offsets[i] : offsets[i + 1]].tobytes())) for i in index)
        x = _decoded(((f"{path}, image {i}", file) for i, file in files), shape)
    else:
        raise DataError(
            f"{path}: holds neither images (N, H, W, 3) nor jpeg with offsets (N + 1,), N = labels"
        )
    return _images(path, x, labels[index], tuple(map(str, arrays["class_names"])))


def _npz(path: Path, shape: Shape, part: Part, rows: Rows | None) -> Images:
    x_name, y_name = ("x", "y") if part == "train" else ("x_test", "y_test")
    arrays = _arrays(path, [x_name, y_name], ["classes"])
    x, y = arrays[x_name], arrays[y_name]
    if x.ndim == 3:
        x = x[:, None]
    if x.dtype != np.uint8 or x.shape[1:] != shape:
        need = ", ".join(map(str, shape))
        raise DataError(f"{path}: {x_name} is {x.dtype} {arrays[x_name].shape}, needs uint8 (N, {need})")
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{path}: {y_name} is {y.dtype} {y.shape}, needs whole numbers ({len(x)},)")
    top = int(y.max(initial=0))
    names = tuple(map(str, arrays["classes"])) if "classes" in arrays else tuple(map(str, range(top + 1)))
    chosen = _checked(path, rows, len(x))
    return _images(path, x[chosen], y[chosen], names)


def _image_folder(path: Path, shape: Shape, part: Part, rows: Rows | None) -> Images:
    parts = [path / "train", path / "test"]
    if all(each.is_dir() for each in parts):
        inside = path / part
    elif part == "test":
        raise DataError(
            f"{path}: no test part: needs the folders train and test, with one subfolder a class in each"
        )
    else:
        parts, inside = [path], path
    classes = sorted({each.name for top in parts if top.is_dir() for each in top.iterdir() if each.is_dir()})
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((inside / name).glob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{inside}: no images: needs one subfolder a class, with files such as CLASS/1.png in it"
        )
    shuffled = order(len(files), SPLIT_SEED)
    chosen = [files[i] for i in shuffled[_checked(path, rows, len(files))]]
    x = _decoded(((str(file), file) for file, _ in chosen), shape)
    return _images(path, x, np.array([label for _, label in chosen]), tuple(classes))


def _decoded(files: Iterable[tuple[str, Any]], shape: Shape) -> Pixels:
    """Image files (what to call each, and its path or bytes) decoded with Pillow and fitted: (N, *shape)."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("image files need Pillow: pip install 'spacedml-edge[sim]'") from None
    found = []
    for called, file in files:
        try:
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("L" if shape[0] == 1 else "RGB"))
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as error:  # Pillow raises all four
            raise DataError(f"{called}: not a readable image: {error}") from None
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        found.append(fit(planes[None], shape)[0])
    return np.stack(found) if found else np.empty((0, *shape), np.uint8)


def _arrays(path: Path, needed: Sequence[str], possible: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The named arrays of an npz, without ever unpickling."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [name for name in needed if name not in archive]:
                raise DataError(
                    f"{path}: holds {', '.join(archive) or 'nothing'}; needs {', '.join(missing)} too"
                )
            return {name: archive[name] for name in (*needed, *possible) if name in archive}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except Exception as error:  # on damaged bytes zipfile, zlib and numpy raise a dozen kinds between them
        raise DataError(f"{path}: not a readable npz: {error}") from None


def _data_folder(source: str, folder: str | Path | None) -> Path:
    place = folder or os.environ.get(FOLDER_VARIABLE)
    if not place:
        raise DataError(f"{source}: no data folder: give --data-dir or set {FOLDER_VARIABLE}")
    return Path(place)


def _find(folder: Path, subfolder: str, names: Sequence[str], how: str) -> Path:
    """The first of these files in the folder or its subfolder."""
    for name in names:
        for path in (folder / subfolder / name, folder / name):
            if path.is_file():
                return path
    places = f"{folder / subfolder} or {folder}"
    raise DataError(f"{subfolder}: no {' or '.join(names)} in {places}; {how}")


def _checked(where: str | Path, rows: Rows | None, count: int) -> Rows:
    """The rows asked for, or all."""
    if rows is None:
        return np.arange(count)
    if len(rows) and not (rows.min() >= 0 and rows.max() < count):
        raise DataError(f"{where}: has {count} rows, was asked for row {rows.max()}")
    return rows


def _images(where: Path, x: Pixels, y: NDArray[Any], classes: tuple[str, ...]) -> Images:
    """The checked value, with the file's name put before what is wrong with it."""
    labels: Labels = y.astype(np.int64)
    try:
        return Images(x, labels, classes)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
