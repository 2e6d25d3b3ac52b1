"""Image files: finds those of a folder, with their classes or masks, and decodes each, upright and opaque.

What systems and tools leave behind (`.git`, `__MACOSX`, `@eaDir`, `._x.png`, `Thumbs.db`) is no class and no
image. Whatever else is not taken is counted under its reason, so that nothing goes missing in silence.

Pictures are not cropped. 16 bits become 8 by their depth (65535 becomes 255); float and 32-bit pixels, whose
range nobody knows, are refused. EXIF's rotation is undone, transparency is laid over white, and palettes,
CMYK and one bit become grey or RGB. A file of several frames (an animation, a TIFF's pages) is refused,
except a phone's MPO, whose first picture is the photograph.

A mask is a PNG whose values are labels: of a palette, or grey. Its pixels are never scaled or converted."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from onboard.console.extras import unusable
from onboard.data import labels
from onboard.data.images import (
    DataError,
    Labels,
    Masks,
    MissingDataError,
    Part,
    Pixels,
    Rows,
    order,
    split_rows,
)  # fmt: skip
from onboard.data.inspection import passed_over
from onboard.data.suffixes import IMAGE_SUFFIXES, is_junk

SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")  # the depth of their whole numbers is 16, others' is unknown
NO_IMAGES = "no images: needs one subfolder a class, with files such as CLASS/1.png in it"
PARTS = ("train", "test")
IMAGES, MASKS, MASK_SUFFIX = "images", "masks", ".png"
NO_PAIRS = "needs images/NAME.* and masks/NAME.png"
SIDEWAYS = (5, 6, 7, 8)  # EXIF's orientations that swap height and width
ORIENTATION = 0x0112


def find(path: Path, asked: Part) -> tuple[list[Path], Labels, labels.Names, Mapping[str, int]]:
    """Finds a part's files with their labels, in random order; the class names of all parts; and the number
    of entries passed over, by reason. Raises DataError."""
    passed: Counter[str] = Counter()
    tops, inside = _inside(path, asked)
    held = {top: _classes(top, passed if top == inside else Counter()) for top in tops or [path]}
    if tops:
        passed["beside train and test"] = sum(path / each.name not in tops for each in _entries(path, passed))
    files = {
        top: {name: _images(folder, passed if top == inside else Counter()) for name, folder in found.items()}
        for top, found in held.items()
    }
    used = {name for found in files.values() for name, images in found.items() if images}
    classes = labels.in_order(used)
    for name in sorted(files[inside].keys() - used):
        if not any(reason.endswith(f"inside {name!r}") for reason in passed):  # told already
            passed[f"folder {name!r} without images"] += 1
    if not any(files[inside].values()):
        deeper = list(held[inside].values()) if len(held[inside]) == 1 else []
        hint = "".join(f"; did you mean folder:{only}?" for only in deeper if _classes(only, Counter()))
        raise DataError(f"{inside}: {NO_IMAGES}{hint}{f'; {passed_over(+passed)}' if +passed else ''}")
    chosen = [(file, label) for label, name in enumerate(classes) for file in files[inside].get(name, ())]
    y = np.array([label for _, label in chosen], np.int64)
    places = _places(y, asked, is_parted=bool(tops))
    return [chosen[place][0] for place in places], y[places], tuple(classes), +passed


def find_pairs(path: Path, asked: Part) -> tuple[list[tuple[Path, Path]], Mapping[str, int]]:
    """Finds a part's images (`images/NAME.*`) with their masks (`masks/NAME.png`), in random order, and the
    number of entries passed over, by reason. Raises DataError, also for one without the other."""
    passed: Counter[str] = Counter()
    tops, inside = _inside(path, asked)
    beside = {entry.name for entry in _entries(inside, passed)}
    if missing := [name for name in (IMAGES, MASKS) if name not in beside]:
        raise MissingDataError(f"{inside}: no folder {missing[0]}; {NO_PAIRS}")
    passed["beside images and masks"] = len(beside) - 2
    images, masks = (_by_name(inside / name, passed) for name in (IMAGES, MASKS))
    for file in masks.values():
        if file.suffix.lower() != MASK_SUFFIX:
            raise DataError(f"{file}: a mask must be a {MASK_SUFFIX} file, whose values nothing has changed")
    if alone := sorted(images.keys() ^ masks.keys()):
        name = alone[0]
        if name in images:
            raise DataError(f"{images[name]}: has no mask {inside / MASKS / name}{MASK_SUFFIX}")
        raise DataError(f"{masks[name]}: is the mask of no image {inside / IMAGES / name}.*")
    if not images:
        raise DataError(f"{inside}: no images: {NO_PAIRS}")
    found = [(images[name], masks[name]) for name in sorted(images)]
    places = _places(np.zeros(len(found), np.int64), asked, is_parted=bool(tops))
    return [found[place] for place in places], +passed


def find_all(path: Path, asked: Part) -> tuple[list[Path], Mapping[str, int]]:
    """Finds all image files of a part, in whatever folders, in random order, and the number of entries passed
    over, by reason. Raises DataError."""
    passed: Counter[str] = Counter()
    tops, inside = _inside(path, asked)
    found, folders = list[Path](), [inside]
    while folders:
        entries = _entries(folders.pop(0), passed)
        folders += [Path(entry.path) for entry in entries if _is_folder(entry)]
        found += _usable([entry for entry in entries if not _is_folder(entry)], passed)
    if not found:
        told = f"; {passed_over(+passed)}" if +passed else ""
        raise DataError(f"{inside}: holds no images, nor do the folders in it{told}")
    places = _places(np.zeros(len(found), np.int64), asked, is_parted=bool(tops))
    return [found[place] for place in places], +passed


def _inside(path: Path, asked: Part) -> tuple[list[Path], Path]:
    """Returns the folders of the parts, if there are any, and the folder of this part. Raises DataError."""
    tops, part = _parts(path), "test" if asked == "test" else "train"
    inside = path / part if tops else path
    if tops and inside not in tops:
        raise DataError(f"{path}: no {part} part: there is {tops[0].name}, and no folder {part} beside it")
    return tops, inside


def _places(y: Labels, asked: Part, *, is_parted: bool) -> Rows:
    """Returns the order of a part's files, whose labels are y; of a whole, a fifth is the test part."""
    if asked == "own" or is_parted:
        return order(len(y))
    return split_rows(y)[asked == "test"]


def _by_name(folder: Path, passed: Counter[str]) -> dict[str, Path]:
    """Lists the image files of a folder by their names without suffix. Raises DataError for two of a name."""
    found: dict[str, Path] = {}
    for file in _images(folder, passed):
        if file.stem in found:
            raise DataError(f"{file}: has the name of {found[file.stem].name}, needs its own")
        found[file.stem] = file
    return found


def _parts(path: Path) -> list[Path]:
    """Finds the folders train and test: both, or one that holds folders; none where these are classes."""
    here = [path / name for name in PARTS if (path / name).is_dir()]
    if len(here) == 1 and not any(each.is_dir() and not is_junk(each.name) for each in here[0].iterdir()):
        return []
    return here


def _classes(top: Path, passed: Counter[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in _entries(top, passed):
        if not _is_folder(entry):
            passed[_no_image(entry.name) or "beside the classes' folders"] += 1
        else:
            (name,) = labels.checked(top, [entry.name])
            if name in found:
                raise DataError(f"{top}: two folders are called {name!r}, in two of Unicode's forms")
            found[name] = Path(entry.path)
    return found


def _images(folder: Path, passed: Counter[str]) -> list[Path]:
    """Lists the image files of one class by name; in folders below, nobody knows the class."""
    files = []
    for entry in _entries(folder, passed):
        if _is_folder(entry):
            inside = sum(1 for _, _, names in os.walk(entry.path) for name in names if not is_junk(name))
            passed[f"in folders inside {folder.name!r}"] += inside
        else:
            files.append(entry)
    return _usable(files, passed)


def _usable(files: Iterable[os.DirEntry[str]], passed: Counter[str]) -> list[Path]:
    found = []
    for entry in files:
        if reason := _no_image(entry.name) or _unusable(entry):
            passed[reason] += 1
        else:
            found.append(Path(entry.path))
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that lead in a circle
        return False


def _unusable(entry: os.DirEntry[str]) -> str:
    try:
        state = entry.stat()
    except OSError:  # it is gone, or links lead in a circle
        return "links that lead nowhere"
    if not stat.S_ISREG(state.st_mode):  # nobody may ever write into a pipe
        return "no regular files"
    return "" if state.st_size else "empty files"


def _entries(folder: Path, passed: Counter[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        raise MissingDataError(f"{folder}: no such folder; {NO_IMAGES}") from None
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None
    meant = [entry for entry in found if not is_junk(entry.name)]
    passed["hidden or a system's"] += len(found) - len(meant)
    return meant


def _no_image(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return "" if suffix in IMAGE_SUFFIXES else f"no image by its name ({suffix or 'no suffix'})"


def decoded(called: str, file: Path | IO[bytes], channels: int) -> Pixels:
    """Decodes the image in `file` (a path or readable bytes) to uint8 (channels, H, W), or (1, H, W) if it
    has no colour. Raises DataError that begins with `called`."""
    with _opened(called, file) as picture:
        pixels = _pixels(picture, "L" if channels == 1 else "RGB")
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decoded_mask(file: Path, image: Path) -> Masks:
    """Decodes a mask to labels uint8 (H, W), as high and wide as its image is. Raises DataError."""
    with _opened(str(image), image) as picture:
        needed = picture.size[::-1] if picture.getexif().get(ORIENTATION) in SIDEWAYS else picture.size
    with _opened(str(file), file) as picture:
        if picture.mode not in ("P", "L", "1"):
            raise DataError(f"has pixels of mode {picture.mode}, needs labels: a palette, or 8 bits of grey")
        if picture.size != needed:
            sizes = [f"{width}x{height}" for width, height in (picture.size, needed)]
            raise DataError(f"is {sizes[0]} pixels, and {image.name} is {sizes[1]}")
        return np.asarray(picture).astype(np.uint8)


@contextmanager
def _opened(called: str, file: Path | IO[bytes]) -> Iterator[Any]:
    """Opens a picture. Raises DataError that begins with `called`, also for whatever the block raises."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError(f"image files: {unusable('PIL', error)}") from None
    try:
        # Given a path, Pillow maps a TIFF into memory and forgets to turn it (13.0), and truncating the file
        # meanwhile would kill this program.
        readable = file.open("rb") if isinstance(file, Path) else nullcontext(file)
        with readable as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is odd, or of size: what matters is an error
            with Image.open(opened) as picture:
                yield picture
    except UnidentifiedImageError:  # which says how Python shows an open file
        raise DataError(f"{called}: not a readable image: its content is of no known kind") from None
    except (DataError, MemoryError) as error:
        raise error if isinstance(error, MemoryError) else DataError(f"{called}: {error}") from None
    except OSError as error:
        raise DataError(f"{called}: not a readable image: {error.strerror or error}") from None
    except Exception as error:  # on damaged files Pillow raises a dozen kinds (struct, zlib, IndexError, ...)
        raise DataError(f"{called}: not a readable image: {error}") from None


def _pixels(picture: Any, mode: str) -> Pixels:
    """Returns uint8 (H, W), or (H, W, 3) in mode RGB. Raises DataError without a name, or Pillow's errors."""
    from PIL import Image, ImageOps

    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":
        raise DataError(f"has {frames} frames, needs one")
    sixteen = picture.mode == "I" and picture.format in SIXTEEN_BIT_FORMATS
    upright = picture
    ImageOps.exif_transpose(upright, in_place=True)  # else a copy, turned or not: a camera's takes 96 MB
    if upright.mode.startswith("I;16") or sixteen:
        deep = np.asarray(upright)
        if deep.min() < 0 or deep.max() > 65535:
            raise DataError(f"has pixels of {deep.min()}..{deep.max()}, needs 16 bits")
        scaled: Pixels = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return scaled  # round(value * 255 / 65535), which is value / 257
    if upright.mode in ("I", "F"):
        kind = "float" if upright.mode == "F" else "32-bit"
        raise DataError(f"has {kind} pixels, whose range is not known; save it with 8 or 16 bits")
    if upright.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in upright.info:
        clear = upright.convert("RGBA")
        upright = Image.new("RGBA", clear.size, "white")
        upright.alpha_composite(clear)
        upright = upright.convert("RGB")
    return np.asarray(upright if upright.mode == mode else upright.convert(mode))
