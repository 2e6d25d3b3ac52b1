"""Reads chosen rows of an array in an npz or IDX file, holding no more than a block of them.

An npz is a zip of npy files, each with a header (numpy.lib.format) before its values; it is never unpickled.
A folder of npy files is read as the npz that it would be.
IDX is MNIST's form, gzipped or not: two zero bytes, the type (8: uint8), the number of axes, each axis's
length as a big-endian uint32, then the values in C order (LeCun, Cortes, Burges)."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onboard.data.images import DataError, MissingDataError, Rows

BLOCK_BYTES = 1 << 18
MAX_WHOLE_BYTES = 1 << 28  # of an array that is read as one: labels, names, offsets
MAX_ROW_BYTES = 1 << 30  # a damaged header must not take the memory
IDX_UINT8 = 8
_LOCAL_HEADER = struct.Struct("<26xHH")

Block = tuple[Rows, NDArray[Any]]  # places among the rows asked for, and their values
Form = tuple[tuple[int, ...], np.dtype[Any]]  # shape and dtype


class ArrayFile:
    """One array, read forward. `shape` and `dtype` are as stored; `fortran` means that columns come first;
    `offset` is where its values begin in their file, None where they are compressed."""

    def __init__(
        self, file: IO[bytes] | BufferedIOBase, form: Form, *, fortran: bool = False, offset: int | None
    ) -> None:
        self._file, self.fortran, self.offset = file, fortran, offset
        self.shape, self.dtype = form
        self.row_bytes = math.prod(self.shape[1:]) * int(self.dtype.itemsize)

    def skip(self, count: int) -> None:
        while count > 0:
            count -= len(self.bytes(min(count, BLOCK_BYTES)))

    def bytes(self, count: int) -> bytes:
        """Reads the next `count` bytes. Raises DataError."""
        found = self._file.read(count)
        if len(found) < count:
            raise DataError(f"ends {count - len(found)} bytes early")
        return found

    def whole(self) -> NDArray[Any]:
        if (size := math.prod(self.shape) * int(self.dtype.itemsize)) > MAX_WHOLE_BYTES:
            raise DataError(f"header says {self.dtype} {self.shape}: more than {MAX_WHOLE_BYTES} bytes")
        values = np.frombuffer(self.bytes(size), self.dtype)
        self._end()
        return values.reshape(self.shape, order="F" if self.fortran else "C")

    def rows(self, wanted: Rows) -> Iterator[Block]:
        """Yields blocks of rows in the file's order, each with its places in `wanted`. Raises DataError."""
        if self.fortran:
            yield self._columns(wanted)
            return
        by_row = np.argsort(wanted, kind="stable")
        ascending = wanted[by_row]
        at_once = max(1, BLOCK_BYTES // max(self.row_bytes, 1))
        at = done = 0
        while done < len(ascending):
            start = int(ascending[done])
            self.skip((start - at) * self.row_bytes)
            count = min(at_once, self.shape[0] - start, int(ascending[-1]) + 1 - start)
            end = int(np.searchsorted(ascending, start + count))
            block = np.frombuffer(self.bytes(count * self.row_bytes), self.dtype)
            yield by_row[done:end], block.reshape(count, *self.shape[1:])[ascending[done:end] - start]
            at, done = start + count, end
        if at == self.shape[0]:
            self._end()

    def _columns(self, wanted: Rows) -> Block:
        """Fortran's order holds one place of all rows, then the next: one block, complete at the end only."""
        inner, count = self.shape[1:], self.shape[0]
        found = np.empty((math.prod(inner), len(wanted)), self.dtype)
        for column in found:
            column[:] = np.frombuffer(self.bytes(count * self.dtype.itemsize), self.dtype)[wanted]
        self._end()
        return np.arange(len(wanted)), found.reshape(*reversed(inner), len(wanted)).transpose()

    def _end(self) -> None:
        """Checks that nothing follows; reading on also makes zipfile and gzip compare the checksum."""
        if self._file.read(1):
            raise DataError(f"goes on after its {self.shape[0] if self.shape else 1} rows")


def npz_names(path: Path) -> tuple[str, ...]:
    if path.is_dir():
        return tuple(sorted(file.stem for file in path.glob("*.npy")))
    with _named(path, "npz"), zipfile.ZipFile(_regular(path)) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist())


@contextmanager
def npz_array(path: Path, name: str) -> Iterator[ArrayFile]:
    """Opens an array of an npz. Raises DataError, also for whatever the block raises while it reads."""
    with _named(npz_file(path, name), "npz"), _npy(path, name) as (file, size, begins):
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise DataError(f"{name} is npy of version {version[0]}.{version[1]}, needs 1.0 or 2.0")
        shape, fortran, dtype = readers[version](file)
        if dtype.hasobject:
            raise DataError(f"{name} holds Python objects, which are not read")
        if math.prod(shape) * dtype.itemsize > size:  # before anybody makes room for it
            raise DataError(f"{name} is {dtype} {shape} by its header, and has {size} bytes")
        offset = None if fortran or begins is None else begins + file.tell()
        yield ArrayFile(file, (shape, dtype), fortran=fortran, offset=offset)


def npz_file(path: Path, name: str) -> Path:
    """Returns the file that holds an array: the npz itself, or one in its folder."""
    return path / f"{name}.npy" if path.is_dir() else path


@contextmanager
def _npy(path: Path, name: str) -> Iterator[tuple[IO[bytes], int, int | None]]:
    """Opens an npy file; how many bytes it has, and where they begin in `npz_file`, None if compressed."""
    if path.is_dir():
        with _regular(npz_file(path, name)).open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size, 0
        return
    with zipfile.ZipFile(_regular(path)) as archive, archive.open(f"{name}.npy") as member:
        info = archive.getinfo(f"{name}.npy")
        stored = info.compress_type == zipfile.ZIP_STORED
        yield member, info.file_size, _member_offset(path, info) if stored else None


@contextmanager
def idx_array(path: Path, axes: int) -> Iterator[ArrayFile]:
    """Opens an IDX file with `axes` axes. Raises DataError, also for whatever the block raises."""
    with _named(path, "IDX"), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(4 + 4 * axes)
        if len(head) < 4 + 4 * axes or head[:4] != bytes([0, 0, IDX_UINT8, axes]):
            starts = head[:4].hex() or "nothing"
            raise DataError(f"starts with {starts}, need IDX of uint8 with {axes} axes")
        shape = tuple(int(length) for length in np.frombuffer(head, ">u4", offset=4))
        if not 0 < math.prod(shape[1:]) <= MAX_ROW_BYTES:
            raise DataError(f"header says {shape}: such rows are not 1 to {MAX_ROW_BYTES} bytes")
        offset = None if path.suffix == ".gz" else len(head)
        yield ArrayFile(file, (shape, np.dtype(np.uint8)), offset=offset)


def rows_of(opened: AbstractContextManager[ArrayFile], wanted: Rows) -> Iterator[Block]:
    with opened as array:
        yield from array.rows(wanted)


def _member_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its own header (PKWARE's APPNOTE.TXT, 4.3.7), whose name and extra
    field may be of another length than in the archive's directory."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return info.header_offset + _LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)


def _regular(path: Path) -> Path:
    if not path.is_file() and not path.is_dir() and path.exists():
        # A pipe would be waited for, and zipfile looks for the end of /dev/zero until the memory is full.
        raise DataError(f"{path}: it is a pipe or a device, and no file")
    return path


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    """Turns every failure into a DataError of one line that begins with the file's name."""
    try:
        yield
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except MemoryError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # on damaged bytes zipfile, zlib and numpy raise a dozen kinds between them
        if isinstance(error, DataError) and str(error).startswith(str(path)):
            raise
        raise DataError(f"{path}: not a readable {kind}: {error}") from None
