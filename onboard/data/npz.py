"""Reads an npz by rows, stored or compressed, holding no more than a block of them, and never unpickles.

An npz is a zip of npy files. Each begins with a header (numpy.lib.format), then come the values, so whoever
reads forward needs no more memory than what it keeps.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onboard.data.images import DataError, MissingDataError, Rows

BLOCK_BYTES = 1 << 18
MAX_WHOLE_BYTES = 1 << 28  # of an array that is read as one: labels, names, offsets

Block = tuple[Rows, NDArray[Any]]  # places among the rows asked for, and their values


class NpzMember:
    """One array of the archive, read forward. `shape`, `dtype` as stored; `fortran`: columns come first."""

    def __init__(self, file: IO[bytes], name: str, size: int) -> None:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        header = np.lib.format.read_array_header_2_0 if version == (2, 0) else header
        if header is None:
            raise DataError(f"{name} is npy of version {version[0]}.{version[1]}, needs 1.0 or 2.0")
        self.shape, self.fortran, self.dtype = header(file)
        if self.dtype.hasobject:
            raise DataError(f"{name} holds Python objects, which are not read")
        if math.prod(self.shape) * self.dtype.itemsize > size:  # before anybody makes room for it
            raise DataError(f"{name} is {self.dtype} {self.shape} by its header, and has {size} bytes")
        self._file = file

    @property
    def row_bytes(self) -> int:
        """Of one entry of the first axis."""
        return math.prod(self.shape[1:]) * int(self.dtype.itemsize)

    def skip(self, count: int) -> None:
        """Passes over so many bytes."""
        while count > 0:
            count -= len(self.bytes(min(count, BLOCK_BYTES)))

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes. Raises EOFError."""
        found = self._file.read(count)
        if len(found) < count:
            raise EOFError(f"ends {count - len(found)} bytes early")
        return found

    def end(self) -> None:
        """All was read: nothing may follow. Reading on makes zipfile compare the checksum, too."""
        if self._file.read(1):
            raise DataError(f"goes on after its {self.shape[:1]} rows")


def names(path: Path) -> tuple[str, ...]:
    """Of the arrays in the archive. Raises DataError."""
    with _opened(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist())


def form(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array, from its header alone. Raises DataError."""
    with _member(path, name) as member:
        return member.shape, member.dtype


def read(path: Path, name: str) -> NDArray[Any]:
    """A small array, whole. Raises DataError."""
    with _member(path, name) as member:
        size = math.prod(member.shape) * int(member.dtype.itemsize)
        if size > MAX_WHOLE_BYTES:
            raise DataError(f"{name} is {member.dtype} {member.shape}: more than {MAX_WHOLE_BYTES} bytes")
        values = np.frombuffer(member.bytes(size), member.dtype)
        member.end()
        return values.reshape(member.shape, order="F" if member.fortran else "C")


def rows(path: Path, name: str, wanted: Rows) -> Iterator[Block]:
    """Blocks of the rows `wanted` (in any order, repeated or not), in the order of the file; each with its
    places in `wanted`. Raises DataError."""
    with _member(path, name) as member:
        yield from _columns(member, wanted) if member.fortran else _forward(member, wanted)


@contextmanager
def forward(path: Path, name: str) -> Iterator[NpzMember]:
    """An array to read on from its start. Raises DataError, also for what the block raises in reading it."""
    with _member(path, name) as member:
        yield member


def _forward(member: NpzMember, wanted: Rows) -> Iterator[Block]:
    by_row = np.argsort(wanted, kind="stable")
    ascending = wanted[by_row]
    size, at, done = member.row_bytes, 0, 0
    at_once = max(1, BLOCK_BYTES // max(size, 1))
    while done < len(ascending):
        start = int(ascending[done])
        member.skip((start - at) * size)
        count = min(at_once, member.shape[0] - start, int(ascending[-1]) + 1 - start)
        end = int(np.searchsorted(ascending, start + count))
        values = np.frombuffer(member.bytes(count * size), member.dtype).reshape(count, *member.shape[1:])
        yield by_row[done:end], values[ascending[done:end] - start]
        at, done = start + count, end
    if at == member.shape[0]:
        member.end()


def _columns(member: NpzMember, wanted: Rows) -> Iterator[Block]:
    """An array in Fortran's order has a place of all rows, then the next: one block, at the end."""
    inner, count = member.shape[1:], member.shape[0]
    found = np.empty((math.prod(inner), len(wanted)), member.dtype)
    for column in found:
        column[:] = np.frombuffer(member.bytes(count * member.dtype.itemsize), member.dtype)[wanted]
    member.end()
    turned = found.reshape(*reversed(inner), len(wanted)).transpose()
    yield np.arange(len(wanted)), turned


@contextmanager
def _member(path: Path, name: str) -> Iterator[NpzMember]:
    with _opened(path) as archive, archive.open(f"{name}.npy") as file:
        yield NpzMember(file, name, archive.getinfo(f"{name}.npy").file_size)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        if not path.is_file() and not path.is_dir() and path.exists():
            # A pipe would be waited for, and zipfile looks for the end of /dev/zero until the memory is full.
            raise DataError(f"{path}: it is a pipe or a device, and no file")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except MemoryError:
        raise
    except DataError as error:
        if str(error).startswith(str(path)):
            raise
        raise DataError(f"{path}: not a readable npz: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # on damaged bytes zipfile, zlib and numpy raise a dozen kinds between them
        raise DataError(f"{path}: not a readable npz: {error}") from None
