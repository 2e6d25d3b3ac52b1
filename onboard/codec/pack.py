"""A model becomes bytes, each accounted for; hostile bytes become `BadPack` and nothing else.

A quantized model:

    offset  size
    0       1     version: 1
    1       8     digest of the layout: names, shapes and groups of the model's tensors
    9       4     length C of the coded section; all numbers are little-endian
    13      C     adaptively coded (`rangecoder`): all bit-widths, then all coordinates, then all raw codes
    13+C    2R    step of each of the R raw tensors, float16
    ...           signs, one bit each (1: +1), highest bit first, in the order of tensors, groups, bases;
                  zeros fill the last byte

A dense one has version 2, the digest, and what `codec.dense` says.

Signs are random and travel as they are; the rest is far from random. Decoding asks the coder for a number of
symbols that the layout bounds, and makes arrays for signs once the bytes for them are known to be there.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from onboard.codec import dense
from onboard.codec.alq import (
    COORDINATE_BITS,
    MANTISSA_BITS,
    MAX_BASES,
    Bases,
    Layout,
    Model,
    Quantized,
    Raw,
    Tensor,
    rounded,
)
from onboard.codec.dense import Dense
from onboard.codec.rangecoder import Context, Decoder, Encoder

VERSION, DENSE_VERSION = 1, 2
PREFIX = struct.Struct("<B8s")  # what both versions begin with
HEADER = struct.Struct("<B8sI")
WIDTH_BITS = 4  # a bit-width, 0 to MAX_BASES
DROPPED_BITS = 10 - MANTISSA_BITS
CODE_BITS = 8  # a raw tensor's int8


class BadPack(ValueError):  # noqa: N818 - "bad" says error already
    """These bytes are no packed model of this layout; says what is wrong with them."""


class _Tree:
    """Contexts for numbers of `bits` bits, highest first: each bit under all the bits before it."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.nodes = [Context() for _ in range(1 << bits)]

    def put(self, coder: Encoder, value: int) -> None:
        node = 1
        for shift in range(self.bits - 1, -1, -1):
            bit = value >> shift & 1
            coder.put(bit, self.nodes[node])
            node = node << 1 | bit

    def get(self, coder: Decoder) -> int:
        node = 1
        for _ in range(self.bits):
            node = node << 1 | coder.get(self.nodes[node])
        return node - (1 << self.bits)


def pack(model: Model, *, compress: bool = False) -> bytes:
    """The bytes of a model; `unpack` gives an equal one back.

    `compress`: a dense model by zstd, where that is installed and helps. Errors: ValueError for coordinates
    that were not rounded (`alq.rounded`), which the far end could not rebuild, and for dense weights that are
    not finite.
    """
    return b"".join(_sections(model, compress).values())


def account(model: Model, *, compress: bool = False) -> dict[str, int]:
    """Bytes of `pack(model)` by section, with nothing left out: header, widths, coordinates, raw and signs,
    or header and weights.
    """
    return {name: len(data) for name, data in _sections(model, compress).items()}


def unpack(data: bytes | memoryview, layout: Layout) -> Model:
    """The model in `data`, which must be one of this layout, whole and with nothing after it.

    Takes at most 12 bytes of memory a weight, whatever the bytes say. Errors: BadPack.
    """
    data = bytes(data)
    if len(data) < PREFIX.size:
        raise BadPack(f"{len(data)} bytes, a header alone has {PREFIX.size} or more")
    version, digest = PREFIX.unpack_from(data)
    if version not in (VERSION, DENSE_VERSION):
        raise BadPack(f"version {version}, known are {VERSION} and {DENSE_VERSION}")
    if digest != layout.digest:
        raise BadPack(f"packed for the layout {digest.hex()}, not for {layout.digest.hex()}")
    if version == VERSION:
        return _unpack_quantized(data, layout)
    try:
        return dense.decode(data[PREFIX.size :], layout)
    except ValueError as error:
        raise BadPack(str(error)) from None


def _unpack_quantized(data: bytes, layout: Layout) -> Quantized:
    if len(data) < HEADER.size:
        raise BadPack(f"{len(data)} bytes, a header alone has {HEADER.size}")
    _, _, coded_bytes = HEADER.unpack_from(data)
    coded_end = HEADER.size + coded_bytes
    signs_at = coded_end + 2 * len(layout.raw)
    coder = Decoder(data[HEADER.size : coded_end])
    widths = [_get_widths(coder, tensor) for tensor in layout.grouped]
    counts = [int(bits.sum(dtype=np.int64)) for bits in widths]
    sign_bits = sum(count * tensor.group for count, tensor in zip(counts, layout.grouped, strict=True))
    expected = signs_at + (sign_bits + 7) // 8
    if len(data) != expected:
        raise BadPack(f"{len(data)} bytes, the bit-widths in them ask for {expected}")
    alphas = [_get_coordinates(coder, count) for count in counts]
    steps = np.frombuffer(data, "<f2", len(layout.raw), coded_end).astype(np.float32)
    if not np.isfinite(steps).all() or np.signbit(steps).any():
        raise BadPack(f"a raw tensor's step is {steps.tolist()}")
    raw = {t.name: _get_raw(coder, t, step) for t, step in zip(layout.raw, steps, strict=True)}
    signs = np.unpackbits(np.frombuffer(data, np.uint8, offset=signs_at))
    if signs[sign_bits:].any():
        raise BadPack("bits are set after the last sign")
    ends = np.cumsum([0, *(count * t.group for count, t in zip(counts, layout.grouped, strict=True))])
    grouped = {
        t.name: Bases.assembled(bits, values, signs[start:end].reshape(-1, t.group))
        for t, bits, values, start, end in zip(
            layout.grouped, widths, alphas, ends[:-1], ends[1:], strict=True
        )
    }
    return Quantized(layout, grouped, raw)


def _sections(model: Model, compress: bool) -> dict[str, bytes]:
    if isinstance(model, Dense):
        return {
            "header": PREFIX.pack(DENSE_VERSION, model.layout.digest),
            "weights": dense.encode(model, compress=compress),
        }
    return _quantized_sections(model)


def _quantized_sections(quantized: Quantized) -> dict[str, bytes]:
    layout = quantized.layout
    tensors = [quantized.grouped[t.name] for t in layout.grouped]
    raws = [quantized.raw[t.name] for t in layout.raw]
    coder = Encoder()
    for bases in tensors:
        _put_widths(coder, bases.bits)
    widths_end = coder.settled
    for bases in tensors:
        _put_coordinates(coder, bases.alphas[bases.used])
    coordinates_end = coder.settled
    for raw in raws:
        _put_raw(coder, raw.codes)
    coded = coder.finish()
    steps = np.array([raw.step for raw in raws], "<f2").tobytes()
    signs = [bases.signs[bases.used].ravel() > 0 for bases in tensors]
    return {
        "header": HEADER.pack(VERSION, layout.digest, len(coded)),
        "widths": coded[:widths_end],
        "coordinates": coded[widths_end:coordinates_end],
        "raw": coded[coordinates_end:] + steps,
        "signs": np.packbits(np.concatenate(signs)).tobytes() if signs else b"",
    }


def _put_widths(coder: Encoder, bits: npt.NDArray[np.uint8]) -> None:
    trees = [_Tree(WIDTH_BITS), _Tree(WIDTH_BITS)]
    before = 0
    for width in bits.tolist():
        trees[before > 0].put(coder, width)
        before = width


def _get_widths(coder: Decoder, tensor: Tensor) -> npt.NDArray[np.uint8]:
    # Groups that matter lie together (a row, an output channel): whether the one before had a basis tells
    # something.
    trees = [_Tree(WIDTH_BITS), _Tree(WIDTH_BITS)]
    bits = np.zeros(tensor.groups, np.uint8)
    before = 0
    for group in range(tensor.groups):
        before = bits[group] = trees[before > 0].get(coder)
        if before > MAX_BASES:
            raise BadPack(f"group {group} of {tensor.name} claims {before} bases, at most {MAX_BASES} can be")
    return bits


def _put_coordinates(coder: Encoder, alphas: npt.NDArray[np.float32]) -> None:
    if not np.array_equal(rounded(alphas), alphas):
        raise ValueError("coordinates are not rounded: both ends would rebuild different weights")
    tree = _Tree(COORDINATE_BITS)
    for code in (alphas.astype(np.float16).view(np.uint16) >> DROPPED_BITS).tolist():
        tree.put(coder, code)


def _get_coordinates(coder: Decoder, count: int) -> npt.NDArray[np.float32]:
    tree = _Tree(COORDINATE_BITS)
    codes = np.array([tree.get(coder) for _ in range(count)], np.uint16)
    alphas = (codes << DROPPED_BITS).view(np.float16).astype(np.float32)
    if not np.isfinite(alphas).all():
        raise BadPack("a coordinate is not finite")
    return alphas


def _put_raw(coder: Encoder, codes: npt.NDArray[np.int8]) -> None:
    tree = _Tree(CODE_BITS)
    for code in codes.ravel().tolist():
        tree.put(coder, code + 128)


def _get_raw(coder: Decoder, tensor: Tensor, step: np.float32) -> Raw:
    tree = _Tree(CODE_BITS)
    codes = np.array([tree.get(coder) - 128 for _ in range(tensor.size)], np.int8)
    return Raw(codes.reshape(tensor.shape), step)
