"""Copies images to a file in which they lie as a model takes them, for sets that are larger than the memory.

What lies so already (an IDX file, an array of an npz, neither compressed) is read from its own file. The copy
is in the board's state folder, is made once, and is made anew when its source changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2s
from pathlib import Path

import numpy as np

from onboard.data.arrays import Block
from onboard.data.images import DataError, Rows, Shape, StoredImages
from onboard.storage.files import of_any_size, remove_file, replacing

LEFT_BYTES = 64 << 20  # of the disk at least, when a copy is made: for checkpoints and what arrives


def copied(
    folder: Path, key: bytes, count: int, shape: Shape, blocks: Iterable[Block]
) -> StoredImages | None:
    """Finds the copy named by `key` of `count` images in a folder, or makes it of `blocks`, in place of any
    other; None if there is no folder, or no room for it on the disk."""
    path = folder / f"images-{key.hex()}.raw"
    size = int(np.prod(shape))
    with suppress(OSError):
        if path.stat().st_size == count * size:
            return StoredImages(path)
    try:
        for other in folder.glob("images-*.raw*"):
            remove_file(other)
        if shutil.disk_usage(folder).free < count * size + LEFT_BYTES:
            return None
        with of_any_size(), replacing(path) as file:
            for places, pixels in blocks:
                for place, image in zip(places.tolist(), pixels, strict=True):
                    os.pwrite(file.fileno(), np.ascontiguousarray(image).data, place * size)
    except OSError:
        return None
    return StoredImages(path)


def key_of(files: Sequence[Path], form: object, rows: Rows) -> bytes:
    """Returns 8 bytes that differ where a copy of these rows of these files, in that form, would. Raises
    DataError."""
    key = blake2s(repr(form).encode(), digest_size=8)
    key.update(np.ascontiguousarray(rows).data)
    for path in files:
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        key.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())
    return key.digest()
