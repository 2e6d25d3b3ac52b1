"""Values with their index beside them: for whoever chose coordinates that no seed can name, as Top-K does.

The bytes are in docs/gossip.md, "With an index"; gaps are RD-PSGD's (its section 3.3)."""

from __future__ import annotations

import struct
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from onboard.codec import values as coded
from onboard.codec.layout import Floats
from onboard.codec.mask import FAR, MAX_SIZE, Indices, walked
from onboard.codec.sparse import BadExchange
from onboard.codec.values import Form

VERSION = 1
HEADER = struct.Struct("<BBBBIII")  # version, forms of index and values, 0, size, count, bytes of index


class IndexForm(IntEnum):
    """How an index travels."""

    GAPS = 0  # a byte for each distance to the next coordinate; FAR, 255, goes on by 254 and picks none
    BITMAP = 1


def encode(index: Indices, values: Floats, size: int, index_form: IndexForm, form: Form) -> bytes:
    """Encodes the values (n,) at rising coordinates (n,) of a vector of `size`. Raises ValueError for
    other coordinates, another number of values, and values that the form cannot hold."""
    if index.shape != values.shape or not 0 <= size <= MAX_SIZE:
        raise ValueError(f"{index.shape} coordinates and {values.shape} values of {size}")
    distances = np.diff(index, prepend=np.int32(-1))
    if len(index) and (distances.min() < 1 or index[-1] >= size):
        raise ValueError(f"an index must rise and end below {size}")
    if index_form is IndexForm.GAPS:
        packed = _gaps(distances)
    else:
        bits = np.zeros(size, np.bool_)
        bits[index] = True
        packed = np.packbits(bits, bitorder="little").tobytes()
    head = HEADER.pack(VERSION, index_form, form, 0, size, len(index), len(packed))
    return head + packed + coded.encode(values, form)


def decode(data: bytes | memoryview, size: int) -> tuple[Indices, Floats]:
    """Decodes coordinates and values of a vector of `size`. No index is made before the values are known to
    be there: at most 13 bytes of memory a coordinate, or 10 a byte of gaps. Raises BadExchange."""
    if len(data) < HEADER.size:
        raise BadExchange(f"{len(data)} bytes, a header alone has {HEADER.size}")
    version, index_form, form, zero, own_size, count, length = HEADER.unpack_from(data)
    if (version, zero, own_size) != (VERSION, 0, size):
        raise BadExchange(f"version {version}, {own_size} coordinates; known is {VERSION}, expected {size}")
    if form not in Form.__members__.values() or index_form not in IndexForm.__members__.values():
        raise BadExchange(f"values of the form {form}, index of the form {index_form}: not known")
    body = memoryview(data)[HEADER.size :]
    if length > len(body) or count > size:
        raise BadExchange(f"{count} values of {size}, and {length} bytes of index in {len(body)}")
    try:
        values = coded.decode(body[length:], count, Form(form))
        packed = np.frombuffer(body[:length], np.uint8)
        index = _from_gaps(packed, size) if index_form == IndexForm.GAPS else _from_bitmap(packed, size)
        if len(index) != count:
            raise ValueError(f"an index of {len(index)} coordinates for {count} values")
    except ValueError as error:
        raise BadExchange(str(error)) from None
    return index, values


def _gaps(distances: Indices) -> bytes:
    far = (distances - 1) // (FAR - 1)
    steps = np.full(len(distances) + int(far.sum(dtype=np.int64)), FAR, np.uint8)
    steps[np.cumsum(far + 1, dtype=np.int64) - 1] = distances - far * (FAR - 1)
    return steps.tobytes()


def _from_gaps(packed: npt.NDArray[np.uint8], size: int) -> Indices:
    if len(packed) and (packed.min() == 0 or packed[-1] == FAR):
        raise ValueError("gaps of 0, or that end with a step that picks none")
    if int(packed.sum(dtype=np.int64)) - np.count_nonzero(packed == FAR) > size:
        raise ValueError(f"gaps that lead past {size} coordinates")
    return walked(packed.copy(), -1, np.empty(len(packed), np.int32))[0]


def _from_bitmap(packed: npt.NDArray[np.uint8], size: int) -> Indices:
    if len(packed) != -(-size // 8):
        raise ValueError(f"a bitmap of {len(packed)} bytes for {size} coordinates")
    bits = np.unpackbits(packed, bitorder="little")
    if bits[size:].any():
        raise ValueError("bits are set after the last coordinate")
    return np.flatnonzero(bits).astype(np.int32)
