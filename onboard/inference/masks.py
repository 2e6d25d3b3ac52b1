"""Masks as PNG files: the value of a pixel is its class, and a palette makes the classes visible."""

from __future__ import annotations

import colorsys
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onboard.storage.files import replacing

_TURN = 0.61803398875  # of the circle of hues, a class: the golden ratio keeps neighbours apart


class MaskFolder:
    """Writes one mask an image into a folder. Images of the same place get a number behind their name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken = set[Path]()

    def write(self, place: Path, mask: NDArray[np.uint8], size: tuple[int, int]) -> str:
        """Writes labels uint8 (H, W) for the image at `place`, a path in the folder, enlarged to its `size`
        (height, width) by the nearest pixel; returns the file's path. Raises OSError."""
        from PIL import Image

        stem = self._folder / place.with_suffix("")
        numbered = (stem.with_name(f"{stem.name}-{number}.png") for number in itertools.count(2))
        free = itertools.chain([stem.with_name(f"{stem.name}.png")], numbered)
        path = next(path for path in free if path not in self._taken)
        self._taken.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(mask)
        picture.putpalette(_palette())
        height, width = size
        with replacing(path) as file:
            picture.resize((width, height), Image.Resampling.NEAREST).save(file, "PNG")
        return str(path)


def _palette() -> list[int]:
    colours = [(0.0, 0.0, 0.0)] + [colorsys.hsv_to_rgb(at * _TURN % 1, 0.75, 0.95) for at in range(255)]
    return [round(255 * part) for colour in colours for part in colour]
