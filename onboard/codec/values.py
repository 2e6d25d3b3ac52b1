"""The values at a mask's coordinates become bytes in one of four forms, and come back as float32.

docs/gossip.md says what each costs and loses. What the bytes rebuild is the same on all machines, the
sender's included."""

from __future__ import annotations

from enum import IntEnum

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

    FP32 = 0  # bit for bit
    FP16 = 1  # to the nearest
    INT8 = 2  # in blocks, whose scale is the largest magnitude over LEVELS: all scales, then codes
    ALQ = 3  # in groups of BLOCK, with coordinates of 3 bits: below 4e-6 one is 0


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
        codes = np.frombuffer(data, np.int8, -1, 4 * scales)
        if codes.min(initial=0) < -LEVELS:
            raise ValueError(f"a code of {codes.min()}, none is below -{LEVELS}")
        values, whole = codes.astype(np.float32), count - count % BLOCK
        blocks, each = values[:whole].reshape(-1, BLOCK), np.frombuffer(data, "<f4", scales)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            blocks *= each[: len(blocks), None]
            values[whole:] *= each[len(blocks) :]
    else:
        values = np.frombuffer(data, "<f4" if form is Form.FP32 else "<f2").astype(np.float32, copy=False)
    check_finite(values)
    return values


def _layout(count: int) -> Layout:
    return layout({"values": (-(-count // BLOCK), BLOCK)})
