"""Image files: finds those of a folder, one subfolder a class, and decodes each, upright and opaque.

What systems and tools leave behind (`.git`, `__MACOSX`, `@eaDir`, `._x.png`, `Thumbs.db`) is no class and no
image. Whatever else is not taken is counted under its reason, so that nothing goes missing in silence.

Pictures are not cropped. 16 bits become 8 by their depth (65535 becomes 255); float and 32-bit pixels, whose
range nobody knows, are refused. EXIF's rotation is undone, transparency is laid over white, and palettes,
CMYK and one bit become grey or RGB. A file of several frames (an animation, a TIFF's pages) is refused,
except a phone's MPO, whose first picture is the photograph."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from onboard.console.extras import unusable
from onboard.data import labels
from onboard.data.images import DataError, Labels, MissingDataError, Part, Pixels, order, split_rows
from onboard.data.inspection import passed_over

# Pillow decodes those that its build can; the others are refused by name.
IMAGE_SUFFIXES = frozenset(
    {
        ".png", ".apng", ".avif", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
        ".pgm", ".ppm", ".pnm", ".pbm", ".gif", ".jp2", ".j2k", ".tga",
    }
)  # fmt: skip
SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")  # the depth of their whole numbers is 16, others' is unknown
NO_IMAGES = "no images: needs one subfolder a class, with files such as CLASS/1.png in it"
JUNK = frozenset(
    {
        "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "lost+found",
        "$recycle.bin", "recycler", "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db",
        "ehthumbs_vista.db", "desktop.ini", "icon\r",
    }
)  # fmt: skip
PARTS = ("train", "test")


def is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in JUNK


def find(path: Path, asked: Part) -> tuple[list[Path], Labels, labels.Names, Mapping[str, int]]:
    """Finds a part's files with their labels, in random order; the class names of all parts; and the number
    of entries passed over, by reason. Raises DataError."""
    passed: Counter[str] = Counter()
    tops, part = _parts(path), "test" if asked == "test" else "train"
    inside = path / part if tops else path
    if tops and inside not in tops:
        raise DataError(f"{path}: no {part} part: there is {tops[0].name}, and no folder {part} beside it")
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
    places = order(len(y))
    if asked != "own" and not tops:
        places = split_rows(y)[asked == "test"]
    return [chosen[place][0] for place in places], y[places], tuple(classes), +passed


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
    found = []
    for entry in _entries(folder, passed):
        if _is_folder(entry):
            inside = sum(1 for _, _, names in os.walk(entry.path) for name in names if not is_junk(name))
            passed[f"in folders inside {folder.name!r}"] += inside
        elif reason := _no_image(entry.name) or _unusable(entry):
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
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"image files: {unusable('PIL', error)}") from None
    try:
        # Given a path, Pillow maps a TIFF into memory and forgets to turn it (13.0), and truncating the file
        # meanwhile would kill this program.
        readable = file.open("rb") if isinstance(file, Path) else nullcontext(file)
        with readable as opened, warnings.catch_warnings(), Image.open(opened) as picture:
            warnings.simplefilter("ignore")  # of metadata that is odd: what matters is an error
            pixels = _pixels(picture, "L" if channels == 1 else "RGB")
    except (DataError, MemoryError) as error:
        raise error if isinstance(error, MemoryError) else DataError(f"{called}: {error}") from None
    except OSError as error:
        raise DataError(f"{called}: not a readable image: {error.strerror or error}") from None
    except Exception as error:  # on damaged files Pillow raises a dozen kinds (struct, zlib, IndexError, ...)
        raise DataError(f"{called}: not a readable image: {error}") from None
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


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
