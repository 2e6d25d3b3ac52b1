"""Decodes one image file into pixels of 0..255, upright and opaque, or says why it cannot, with its name.

What is done to a picture is done for every picture that needs it, and nothing is cut off:

- 16 bits a pixel are scaled by their depth (65535 becomes 255); float and 32-bit pixels, whose range nobody
  knows, are refused
- one that EXIF says is turned is turned back
- what is transparent is laid over white, as a viewer shows it
- palettes, CMYK and one bit become grey or RGB; of several frames (an animation, a TIFF's pages) none is
  chosen: such a file is refused, but for a phone's MPO, whose first picture is the photograph
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onboard.console.extras import unusable
from onboard.data.images import DataError, Pixels

# Of these Pillow decodes each that its build can; what it cannot is refused by name.
IMAGE_SUFFIXES = frozenset(
    {
        ".png", ".apng", ".avif", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
        ".pgm", ".ppm", ".pnm", ".pbm", ".gif", ".jp2", ".j2k", ".tga",
    }
)  # fmt: skip
SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")  # the depth of their whole numbers is 16, others' is unknown


def decoded(called: str, file: Path | IO[bytes], channels: int) -> Pixels:
    """The image in `file` (a path, or bytes that can be read) as uint8 (channels, H, W), or (1, H, W) where
    it has no colour.

    Raises DataError that begins with `called`.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"image files: {unusable('PIL', error)}") from None
    try:
        # By its path Pillow maps a TIFF into memory, and then forgets to turn it (13.0); and whoever cuts the
        # file meanwhile would end this program.
        with _readable(file) as opened, warnings.catch_warnings(), Image.open(opened) as picture:
            warnings.simplefilter("ignore")  # of metadata that is odd: what matters is an error
            pixels = _pixels(picture, "L" if channels == 1 else "RGB")
    except (DataError, MemoryError) as error:
        raise error if isinstance(error, MemoryError) else DataError(f"{called}: {error}") from None
    except OSError as error:
        raise DataError(f"{called}: not a readable image: {error.strerror or error}") from None
    except Exception as error:  # on damaged files Pillow raises a dozen kinds (struct, zlib, IndexError, ...)
        raise DataError(f"{called}: not a readable image: {error}") from None
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def _readable(file: Path | IO[bytes]) -> Iterator[IO[bytes]]:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            yield opened
    else:
        yield file


def _pixels(picture: Any, mode: str) -> Pixels:
    """uint8 (H, W), or (H, W, 3) for mode RGB. Raises DataError without a name, and what Pillow raises."""
    from PIL import Image, ImageOps

    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":
        raise DataError(f"has {frames} frames, needs one")
    sixteen = picture.mode == "I" and picture.format in SIXTEEN_BIT_FORMATS
    upright = picture
    ImageOps.exif_transpose(upright, in_place=True)  # else a copy, turned or not: a camera's takes 96 MB
    if upright.mode.startswith("I;16") or sixteen:
        return _scaled(np.asarray(upright))
    if upright.mode in ("I", "F"):
        kind = "float" if upright.mode == "F" else "32-bit"
        raise DataError(f"has {kind} pixels, whose range is not known; save it with 8 or 16 bits")
    if upright.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in upright.info:
        clear = upright.convert("RGBA")
        upright = Image.new("RGBA", clear.size, "white")
        upright.alpha_composite(clear)
        upright = upright.convert("RGB")
    return np.asarray(upright if upright.mode == mode else upright.convert(mode))


def _scaled(deep: NDArray[Any]) -> Pixels:
    """16 bits as 8: round(value * 255 / 65535), which is value / 257."""
    if deep.min() < 0 or deep.max() > 65535:
        raise DataError(f"has pixels of {deep.min()}..{deep.max()}, needs 16 bits")
    rounded: Pixels = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return rounded
