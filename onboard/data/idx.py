"""Reads chosen rows of an IDX file (MNIST's form), gzipped or not, holding no more than those rows.

Form: two zero bytes, the type (8: uint8), the number of axes, each axis's length as a big-endian uint32, then
the values in C order (LeCun, Cortes, Burges: "The MNIST database of handwritten digits", file formats).
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from onboard.data.images import DataError, Pixels, Rows

UINT8 = 8
BUFFER_BYTES = 1 << 18
MAX_BYTES = 1 << 30  # of rows asked for: MNIST's are 47 MB; a damaged header must not take the memory


def read_rows(path: Path, rows: Rows | None, axes: int) -> Pixels:
    """uint8 (len(rows), ...): these rows in this order, or all of them; `axes` counts the file's axes.

    Raises `DataError` naming the file when it is damaged, of another kind, or lacks a row.
    """
    shape = form(path, axes)
    row_bytes, count = math.prod(shape[1:]), shape[0] if rows is None else len(rows)
    if not 0 < row_bytes * max(count, 1) <= MAX_BYTES:
        raise DataError(f"{path}: header says {shape}: {count} such rows are not 1 to {MAX_BYTES} bytes")
    found = np.empty((count, *shape[1:]), np.uint8)
    for places, values in blocks(path, np.arange(count) if rows is None else rows, axes):
        found[places] = values
    return found


def form(path: Path, axes: int) -> tuple[int, ...]:
    """The shape that the file's header tells. Raises `DataError`."""
    with _opened(path) as file:
        return _header(path, file, axes)


def blocks(path: Path, rows: Rows, axes: int) -> Iterator[tuple[Rows, Pixels]]:
    """These rows in the order of the file, some at a time; each block with its places in `rows`.

    Raises `DataError` as `read_rows`.
    """
    with _opened(path) as file:
        shape = _header(path, file, axes)
        if len(rows) and not (rows.min() >= 0 and rows.max() < shape[0]):
            raise DataError(f"{path}: has {shape[0]} rows, was asked for row {rows.max()}")
        yield from _gather(path, file, shape, rows)


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _header(path: Path, file: BufferedIOBase, axes: int) -> tuple[int, ...]:
    head = file.read(4 + 4 * axes)
    if len(head) < 4 + 4 * axes or head[:4] != bytes([0, 0, UINT8, axes]):
        raise DataError(
            f"{path}: starts with {head[:4].hex() or 'nothing'}, need IDX of uint8 with {axes} axes"
        )
    return tuple(int(length) for length in np.frombuffer(head, ">u4", offset=4))


def _gather(
    path: Path, file: BufferedIOBase, shape: tuple[int, ...], rows: Rows
) -> Iterator[tuple[Rows, Pixels]]:
    """Streams through the file up to the last row asked for; behind the file's last row, checks its end."""
    row_bytes = math.prod(shape[1:])
    by_row = np.argsort(rows, kind="stable")
    ascending = rows[by_row]
    at_once = max(1, BUFFER_BYTES // row_bytes)
    done = 0
    for start in range(0, int(ascending[-1]) + 1 if len(rows) else 0, at_once):
        count = min(at_once, shape[0] - start)
        block = file.read(count * row_bytes)
        if len(block) < count * row_bytes:
            raise DataError(f"{path}: ends in row {start + len(block) // row_bytes} of {shape[0]}")
        end = int(np.searchsorted(ascending, start + count))
        if end > done:
            values = np.frombuffer(block, np.uint8).reshape(count, *shape[1:])
            yield by_row[done:end], values[ascending[done:end] - start]
        done = end
        if start + count == shape[0] and file.read(1):  # reading on also makes gzip compare its checksum
            raise DataError(f"{path}: goes on after its {shape[0]} rows")
