"""An infer graph with its weights inside: one ONNX file that any runtime runs on images alone.

The graph's bytes are taken apart and put together as Protocol Buffers (protobuf.dev, "Encoding"; numbers of
fields from onnx.proto, ONNX 1.17): each weight becomes an initializer and is no input any more. Nothing else
changes, and the package `onnx` is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 2**31 - 1  # of a message of Protocol Buffers
GRAPH, METADATA_PROPS = 7, 14  # of ModelProto
INITIALIZER, INPUT = 5, 11  # of GraphProto
VALUE_NAME = 1  # of ValueInfoProto
DIMS, DATA_TYPE, TENSOR_NAME, RAW_DATA = 1, 2, 8, 9  # of TensorProto
KEY, VALUE = 1, 2  # of StringStringEntryProto
FLOAT = 1  # TensorProto.DataType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def with_weights(
    infer: bytes, weights: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]
) -> bytes:
    """Returns the model `infer` with these weights, one for each input but x, and more metadata. Raises
    ValueError for a graph that takes others, or a file of more than 2 GiB."""
    pieces = list[bytes]()
    for number, whole, content in fields(infer):
        pieces.append(_bytes_field(GRAPH, _graph(content, weights)) if number == GRAPH else whole)
    for key, value in metadata.items():
        entry = _bytes_field(KEY, key.encode()) + _bytes_field(VALUE, value.encode())
        pieces.append(_bytes_field(METADATA_PROPS, entry))
    model = b"".join(pieces)
    if len(model) > MOST_BYTES:
        raise ValueError(f"{len(model)} B are more than an ONNX file holds: write .safetensors")
    return model


def _graph(raw: bytes, weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    pieces, taken = list[bytes](), set[str]()
    for number, whole, content in fields(raw):
        name = _name(content) if number == INPUT else ""
        if name in weights:
            taken.add(name)
        else:
            pieces.append(whole)
    if odd := taken ^ weights.keys():
        raise ValueError(f"the graph takes no {min(odd)}")
    return b"".join(pieces + [_bytes_field(INITIALIZER, _tensor(name, weights[name])) for name in weights])


def _name(value_info: bytes) -> str:
    return next(content.decode() for number, _, content in fields(value_info) if number == VALUE_NAME)


def _tensor(name: str, value: NDArray[np.float32]) -> bytes:
    dims = b"".join(_varint(DIMS << 3 | _VARINT) + _varint(side) for side in value.shape)
    kind = _varint(DATA_TYPE << 3 | _VARINT) + _varint(FLOAT)
    raw = np.ascontiguousarray(value, "<f4").tobytes()
    return dims + kind + _bytes_field(TENSOR_NAME, name.encode()) + _bytes_field(RAW_DATA, raw)


def fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yields each field's number, its bytes with the tag before them, and its content if that is bytes, else
    b"". Raises ValueError for what is no message."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _read_varint(message, at)
        number, kind = divmod(tag, 8)
        content = b""
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _BYTES:
            length, at = _read_varint(message, at)
            content = message[at : at + length]
            at += length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"no ONNX file: wire type {kind} at byte {begin}")
        if at > len(message):
            raise ValueError(f"no ONNX file: cut off after {len(message)} B")
        yield number, message[begin:at], content


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError(f"no ONNX file: cut off after {len(message)} B")
        byte = message[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
