"""The values at a mask's coordinates become bytes in one of four forms, and come back as float32.

    fp32  float32 each: bit for bit
    fp16  float16 each, to the nearest; values must be below 65,520
    int8  in blocks of 256: a float32 scale for every block, the largest magnitude over 127; then all codes,
          int8, value over scale to the nearest. 1.016 bytes a value.
    ALQ   in groups of 256 with 4 bases each (`codec.alq`), packed (`codec.pack`); zeros fill the last group.
          0.51 bytes a value; loses 2.5 % of the energy of Gaussian values, int8 0.005 %. A coordinate is a
          float16 of 3 bits: below 4e-6 it is 0.

All numbers are little-endian. What the bytes rebuild is the same on all machines, the sender's included.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from onboard.codec import alq
from onboard.codec.layout import Floats, Layout, check_finite, layout
from onboard.codec.pack import pack, unpack
from onboard.codec.quantized import Quantized

BLOCK = 256  # values with one int8 scale, or in an ALQ group: the scale then costs 0.016 bytes a value
LEVELS = 127
ALQ_BASES = 4


class Form(IntEnum):
    """How values travel."""

    FP32 = 0
    FP16 = 1
    INT8 = 2
    ALQ = 3


def encode(values: Floats, form: Form) -> bytes:
    """Encodes values (n,). Raises ValueError for values that are not finite, or too large for fp16."""
    check_finite(values)
    if form is Form.FP32:
        return values.astype("<f4", copy=False).tobytes()
    if form is Form.FP16:
        with np.errstate(over="ignore"):  # what overflows is refused below
            halves = values.astype("<f2")
        if not np.isfinite(halves).all():
            raise ValueError(f"{np.abs(values).max()} is too large for fp16")
        return halves.tobytes()
    blocks = np.zeros((-(-len(values) // BLOCK), BLOCK), np.float32)
    blocks.ravel()[: len(values)] = values
    if form is Form.ALQ:
        bases = np.full(len(blocks), ALQ_BASES, np.uint8)
        return pack(alq.quantize(_layout(len(values)), {"values": blocks}, {"values": bases}))
    scales: Floats = np.abs(blocks).max(axis=1) / np.float32(LEVELS)
    scaled = np.divide(blocks, scales[:, None], out=np.zeros_like(blocks), where=scales[:, None] > 0)
    codes = np.clip(np.rint(scaled), -LEVELS, LEVELS).astype(np.int8)
    return scales.astype("<f4", copy=False).tobytes() + codes.ravel()[: len(values)].tobytes()


def decode(data: bytes | memoryview, count: int, form: Form) -> Floats:
    """Decodes exactly `count` values to float32 (count,), perhaps a view. Makes no array before the size is
    known to fit; ALQ takes at most 32 bytes of memory a value. Raises ValueError unless all are finite."""
    if form is Form.ALQ:
        model = unpack(data, _layout(count))
        if not isinstance(model, Quantized):
            raise ValueError("a dense model where ALQ's bases should be")
        values = model.reconstruct()["values"].ravel()[:count]
        check_finite(values)
        return values
    scales = -(-count // BLOCK) if form is Form.INT8 else 0
    size = 4 * scales + count * {Form.FP32: 4, Form.FP16: 2, Form.INT8: 1}[form]
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes of values, {count} in {form.name} take {size}")
    if form is Form.INT8:
        values = _from_codes(np.frombuffer(data, "<f4", scales), np.frombuffer(data, np.int8, -1, 4 * scales))
    else:
        values = np.frombuffer(data, "<f4" if form is Form.FP32 else "<f2").astype(np.float32, copy=False)
    check_finite(values)
    return values


def _from_codes(scales: Floats, codes: np.ndarray[Any, np.dtype[np.int8]]) -> Floats:
    if codes.min(initial=0) < -LEVELS:
        raise ValueError(f"a code of {codes.min()}, none is below -{LEVELS}")
    values = codes.astype(np.float32)
    whole = len(codes) // BLOCK
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
        blocks = values[: whole * BLOCK].reshape(whole, BLOCK)
        blocks *= scales[:whole, None]
        values[whole * BLOCK :] *= scales[whole:]
    return values


def _layout(count: int) -> Layout:
    return layout({"values": (-(-count // BLOCK), BLOCK)})
