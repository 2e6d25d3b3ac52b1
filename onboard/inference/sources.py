"""The images that a command names: files, folders of them, names on standard input, or one image there."""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from onboard.data.suffixes import IMAGE_SUFFIXES, as_text, is_junk

STDIN = "-"
_IMAGES = re.compile(rb"\x89PNG|GIF8|BM|P[1-6]\s")  # whose first line has no byte that no name has


@dataclass(frozen=True)
class NamedImage:
    """An image, its name as it is told, and its place in the folder that was named."""

    name: str
    file: Path | IO[bytes]
    place: Path


def images(names: Sequence[str]) -> Iterator[NamedImage]:
    """Yields the images of these files and folders, a folder's in the order of their paths; `-` is standard
    input, an image or names, one a line, which are taken as they come."""
    for name in names:
        if name != STDIN:
            yield from _named(name)
            continue
        opened = sys.stdin.buffer
        first = opened.readline()  # of names, that is the first; an image is read as a whole
        if _is_image(first):
            yield NamedImage(STDIN, io.BytesIO(first + opened.read()), Path("stdin"))
            continue
        for line in itertools.chain([first], iter(opened.readline, b"")):
            if inner := os.fsdecode(line).strip("\r\n"):
                yield from _named(inner)


def known_count(names: Sequence[str]) -> int | None:
    """How many images they are; None where standard input will say."""
    return None if STDIN in names else sum(1 for _ in images(names))


def _named(name: str) -> Iterator[NamedImage]:
    path = Path(name)
    if not path.is_dir():
        yield NamedImage(as_text(name), path, Path(path.name))
        return
    for inside, folders, files in os.walk(path):
        folders[:] = sorted(folder for folder in folders if not is_junk(folder))
        for file in sorted(files):
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not is_junk(file):
                inner = Path(inside) / file
                if inner.exists() and not inner.is_file():  # nobody may ever write into a pipe
                    continue
                yield NamedImage(as_text(str(inner)), inner, inner.relative_to(path))


def _is_image(first: bytes) -> bool:
    """Whether standard input, whose first line this is, is an image and no list of names."""
    if any(byte < 9 for byte in first):
        return True
    return bool(_IMAGES.match(first)) and not os.path.lexists(first.strip(b"\r\n"))
