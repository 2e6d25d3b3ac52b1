"""A file as its difference from another one, in chunks: what two versions of a network's weights share costs
no radio.

The delta is the new file's size (u64), and for each CHUNK_BYTES of it a u32 length and so many bytes of zlib
(RFC 1950). Inflated they are the chunk xor the old file's bytes at the same place (zeros behind its end),
in four planes: bytes 0, 4, 8, ..., then 1, 5, 9, ..., and so on. Of float32 weights that moved little the
planes of sign, exponent and first bits are zeros. Both ends hold one chunk at a time."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

CHUNK_BYTES = 2**18
_SIZE, _LENGTH = struct.Struct(">Q"), struct.Struct(">I")
_PLANES = 4
_MOST_PACKED_BYTES = 2 * CHUNK_BYTES  # zlib adds some bytes to what it cannot pack, never so many
_LEVEL = 6


def made(old: BinaryIO, new: BinaryIO, size: int, delta: BinaryIO) -> Iterator[int]:
    """Writes the delta of the `size` bytes of `new` against `old`; yields its bytes so far."""
    written = delta.write(_SIZE.pack(size))
    while chunk := new.read(CHUNK_BYTES):
        packed = zlib.compress(_planes(_xor(chunk, old.read(len(chunk)))), _LEVEL)
        written += delta.write(_LENGTH.pack(len(packed)) + packed)
        yield written


def applied(old: BinaryIO, delta: BinaryIO, new: BinaryIO) -> Iterator[int]:
    """Writes the new file that `made` took apart; yields its bytes so far. Raises ValueError for what is no
    delta; a delta against another file gives another file."""
    size, done = _SIZE.unpack(_exactly(delta, _SIZE.size))[0], 0
    while done < size:
        length = min(CHUNK_BYTES, size - done)
        (packed_bytes,) = _LENGTH.unpack(_exactly(delta, _LENGTH.size))
        if packed_bytes > _MOST_PACKED_BYTES:
            raise ValueError(f"a chunk of {packed_bytes} B")
        inflate = zlib.decompressobj()
        try:
            planes = inflate.decompress(_exactly(delta, packed_bytes), length)
        except zlib.error as error:
            raise ValueError(f"a chunk that does not inflate: {error}") from None
        if len(planes) != length:
            raise ValueError(f"a chunk of {len(planes)} B, not {length}")
        done += new.write(_xor(_whole(planes), old.read(length)))
        yield done


def _exactly(file: BinaryIO, length: int) -> bytes:
    found = file.read(length)
    if len(found) != length:
        raise ValueError("it ends in the middle")
    return found


def _xor(chunk: bytes, other: bytes) -> bytes:
    mixed = int.from_bytes(chunk, "little") ^ int.from_bytes(other[: len(chunk)], "little")
    return mixed.to_bytes(len(chunk), "little")


def _planes(chunk: bytes) -> bytes:
    return b"".join(chunk[plane::_PLANES] for plane in range(_PLANES))


def _whole(planes: bytes) -> bytes:
    chunk, at = bytearray(len(planes)), 0
    for plane in range(_PLANES):
        count = len(range(plane, len(planes), _PLANES))
        chunk[plane::_PLANES] = planes[at : at + count]
        at += count
    return bytes(chunk)
