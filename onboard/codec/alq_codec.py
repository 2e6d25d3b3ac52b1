"""ALQ's codec: a quantized model becomes bytes, each accounted for.

    offset  size
    0       1     format: 1
    1       8     digest of the layout: names, shapes and groups of the model's tensors
    9       4     length C of the coded section; all numbers are little-endian
    13      C     adaptively coded (`rangecoder`): all bit-widths, the coordinates' exponents, raw codes, and
                  of each grouped tensor one bit: 1 if its signs are deflated
    13+C    2R    step of each of the R raw tensors, float16
            M     the coordinates' mantissas, 3 bits each, highest bit first; zeros fill the last byte
            ...   each grouped tensor's signs (`signs`): one bit each (1: +1), highest bit first, in the order
                  of groups and bases, zeros fill the last byte; deflated or not

A mantissa is random and travels as it is. Decoding asks the coder for a number of symbols that the layout
bounds, and makes no array that the layout does not.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from onboard.codec import alq, signs
from onboard.codec.alq import MANTISSA_BITS, MAX_BASES, RAW_LEVELS, Bases, Quantized, Raw, rounded
from onboard.codec.layout import Floats, Layout, Tensor, Weights
from onboard.codec.model import BadPack, Budget
from onboard.codec.rangecoder import Context, Decoder, Encoder, context, tree

HEADER = struct.Struct("<B8sI")
DROPPED_BITS = 10 - MANTISSA_BITS  # of a float16's mantissa
NUMBER_BITS, SPAN_BITS = 8, 4  # of the numbers in a block at most; of how many they are
RAW_ZERO = 128  # a raw code of 0 as a number


class AlqCodec:
    """See `Codec`. Weights become binary bases (`onboard.codec.alq`)."""

    name = "quantized"

    def quantize(self, layout: Layout, weights: Weights, budget: Budget) -> Quantized:
        """See `Codec.quantize`. Bases are allocated and sketched by plain error."""
        allocation = alq.allocate(
            layout, weights, bits_per_weight=budget.bits_per_weight, max_bases=budget.max_bases
        )
        return alq.quantize(layout, weights, allocation)

    def check(self, model: Quantized, budget: Budget) -> None:
        """See `Codec.check`. No more bases in a group, and no more bits of bases and coordinates in all, than
        `alq.allocate` grants; raw tensors on the grid."""
        parameters = model.layout.parameters
        most = max((int(bases.bits.max(initial=0)) for bases in model.grouped.values()), default=0)
        if most > budget.max_bases:
            raise ValueError(f"{most} bases in a group, asked for were {budget.max_bases} at most")
        if model.budget_bits > budget.bits_per_weight * parameters:  # as `alq.allocate` keeps it, to the bit
            bits = model.budget_bits / parameters
            raise ValueError(f"{bits:.3g} bits a weight, asked for were {budget.bits_per_weight:g} at most")
        if any(np.abs(raw.codes.astype(np.int16)).max(initial=0) > RAW_LEVELS for raw in model.raw.values()):
            raise ValueError(f"biases beside the grid of {2 * RAW_LEVELS + 1} values")

    def sections(self, model: Quantized) -> dict[str, bytes]:
        """See `Codec.sections`. Errors: ValueError for coordinates that were not rounded (`alq.rounded`)."""
        layout = model.layout
        tensors = [model.grouped[t.name] for t in layout.grouped]
        raws = [model.raw[t.name] for t in layout.raw]
        alphas = [bases.alphas[bases.used] for bases in tensors]
        if not all(np.array_equal(rounded(values), values) for values in alphas):
            raise ValueError("coordinates are not rounded: both ends would rebuild different weights")
        halves = [values.astype(np.float16).view(np.uint16) >> DROPPED_BITS for values in alphas]
        coded_signs = [signs.encode(bases.signs[bases.used].ravel() > 0) for bases in tensors]
        coder = Encoder()
        for tensor, bases in zip(layout.grouped, tensors, strict=True):
            _put_widths(coder, tensor, bases.bits)
        widths_end = coder.settled
        for bases, half in zip(tensors, halves, strict=True):
            _put_numbers(coder, half >> MANTISSA_BITS, _basis_of_each(bases.bits))
        exponents_end = coder.settled
        for raw in raws:
            _put_numbers(coder, raw.codes.ravel() + np.int16(RAW_ZERO), [0] * raw.codes.size)
        for deflated, _ in coded_signs:
            coder.put(int(deflated), context())
        coded = coder.finish()
        lowest = [half & ((1 << MANTISSA_BITS) - 1) for half in halves]
        low = np.concatenate(lowest or [np.zeros(0, np.uint16)])
        mantissas = low[:, None] >> np.arange(MANTISSA_BITS - 1, -1, -1) & 1
        return {
            "header": HEADER.pack(Quantized.format, layout.digest, len(coded)),
            "widths": coded[:widths_end],
            "exponents": coded[widths_end:exponents_end],
            "raw": coded[exponents_end:] + np.array([raw.step for raw in raws], "<f2").tobytes(),
            "mantissas": np.packbits(mantissas.astype(np.bool_)).tobytes(),
            "signs": b"".join(data for _, data in coded_signs),
        }

    def unpack(self, data: bytes, layout: Layout) -> Quantized:
        """See `Codec.unpack`. Takes at most 32 bytes of memory a weight, whatever the bytes say."""
        if len(data) < HEADER.size:
            raise BadPack(f"{len(data)} bytes, a header alone has {HEADER.size}")
        _, _, coded_bytes = HEADER.unpack_from(data)
        at = HEADER.size + coded_bytes
        coder = Decoder(data[HEADER.size : at])
        widths = [_get_widths(coder, tensor) for tensor in layout.grouped]
        counts = [int(bits.sum(dtype=np.int64)) for bits in widths]
        mantissa_bytes = -(-MANTISSA_BITS * sum(counts) // 8)
        if len(data) < at + 2 * len(layout.raw) + mantissa_bytes:
            raise BadPack(f"{len(data)} bytes, the bit-widths in them ask for more")
        exponents = [_get_numbers(coder, _basis_of_each(bits)) for bits in widths]
        codes = [_get_numbers(coder, [0] * tensor.size) for tensor in layout.raw]
        deflated = [coder.get(context()) == 1 for _ in layout.grouped]
        raw, at = _raws(layout, codes, data, at)
        alphas, at = _coordinates(exponents, data, at, mantissa_bytes)
        grouped = {}
        for tensor, bits, values, shorter in zip(layout.grouped, widths, alphas, deflated, strict=True):
            try:
                ones, at = signs.decode(data, at, len(values) * tensor.group, shorter)
            except ValueError as error:
                raise BadPack(f"{tensor.name}: {error}") from None
            grouped[tensor.name] = Bases.assembled(bits, values, ones.reshape(-1, tensor.group))
        if at != len(data):
            raise BadPack(f"{len(data)} bytes, the model in them ends after {at}")
        return Quantized(layout, grouped, raw)


def _width_contexts() -> list[list[list[Context]]]:
    """contexts[left][up][j] of "one more basis after j?": groups that matter lie together, so it depends on
    how many bases the group before has in the same output, and the same group in the output before.
    """
    kinds = [0, 1] + [2] * (MAX_BASES - 1)
    contexts = [[[context() for _ in range(MAX_BASES)] for _ in range(3)] for _ in range(3)]
    return [[contexts[left][up] for up in kinds] for left in kinds]


def _put_widths(coder: Encoder, tensor: Tensor, bits: npt.NDArray[np.uint8]) -> None:
    contexts, row = _width_contexts(), tensor.groups // tensor.shape[0]
    above = [0] * row
    for output in bits.reshape(-1, row).tolist():
        for left, up, width in zip([0, *output], above, output, strict=False):
            more = contexts[left][up]
            for j in range(width):
                coder.put(1, more[j])
            if width < MAX_BASES:
                coder.put(0, more[width])
        above = output


def _get_widths(coder: Decoder, tensor: Tensor) -> npt.NDArray[np.uint8]:
    contexts, row = _width_contexts(), tensor.groups // tensor.shape[0]
    outputs = [[0] * row]
    for _ in range(tensor.shape[0]):
        output, left = [], 0
        for up in outputs[-1]:
            more, width = contexts[left][up], 0
            while width < MAX_BASES and coder.get(more[width]):
                width += 1
            output.append(left := width)
        outputs.append(output)
    return np.array(outputs[1:], np.uint8).ravel()


def _basis_of_each(bits: npt.NDArray[np.uint8]) -> list[int]:
    """Which basis of its group each coordinate is of: later ones are smaller, and get trees of their own."""
    return [j for width in bits.tolist() for j in range(width)]


def _put_numbers(coder: Encoder, values: npt.NDArray[np.integer[Any]], which: list[int]) -> None:
    """Numbers 0..255: the lowest, the bits that the highest takes above it, then each in tree which[i]."""
    if len(values) == 0:
        return
    lowest = int(values.min())
    bits = int(values.max() - lowest).bit_length()
    coder.put_numbers([lowest], NUMBER_BITS, [tree(NUMBER_BITS)])
    coder.put_numbers([bits], SPAN_BITS, [tree(SPAN_BITS)])
    trees = [tree(bits) for _ in range(max(which) + 1)]
    coder.put_numbers((values - lowest).tolist(), bits, [trees[i] for i in which])


def _get_numbers(coder: Decoder, which: list[int]) -> npt.NDArray[np.int64]:
    """As many numbers as `which` has trees. Errors: BadPack for more than 255."""
    if not which:
        return np.zeros(0, np.int64)
    [lowest] = coder.get_numbers(NUMBER_BITS, [tree(NUMBER_BITS)])
    [bits] = coder.get_numbers(SPAN_BITS, [tree(SPAN_BITS)])
    if bits > NUMBER_BITS:
        raise BadPack(f"numbers of {bits} bits, none has more than {NUMBER_BITS}")
    trees = [tree(bits) for _ in range(max(which) + 1)]
    values = lowest + np.array(coder.get_numbers(bits, [trees[i] for i in which]))
    if values.max() >= 1 << NUMBER_BITS:
        raise BadPack(f"a number of {values.max()}, none has more than {NUMBER_BITS} bits")
    return values


def _coordinates(
    exponents: list[npt.NDArray[np.int64]], data: bytes, at: int, size: int
) -> tuple[list[Floats], int]:
    """Each grouped tensor's coordinates from their exponents and the `size` bytes of mantissas at `at`."""
    counts = [len(values) for values in exponents]
    bits = np.unpackbits(np.frombuffer(data, np.uint8, size, at))
    used = MANTISSA_BITS * sum(counts)
    if bits[used:].any():
        raise BadPack("bits are set after the last mantissa")
    mantissas = bits[:used].reshape(-1, MANTISSA_BITS) @ (1 << np.arange(MANTISSA_BITS - 1, -1, -1))
    codes = np.concatenate([*exponents, np.zeros(0, np.int64)]) << MANTISSA_BITS | mantissas
    if (codes >= 31 << MANTISSA_BITS).any():  # float16's exponent of infinities; higher ones are none
        raise BadPack("a coordinate is not finite")
    alphas = (codes.astype(np.uint16) << DROPPED_BITS).view(np.float16).astype(np.float32)
    return np.split(alphas, np.cumsum(counts)[:-1]) if counts else [], at + size


def _raws(
    layout: Layout, codes: list[npt.NDArray[np.int64]], data: bytes, at: int
) -> tuple[dict[str, Raw], int]:
    """The raw tensors from their codes and the steps at `at`."""
    steps = np.frombuffer(data, "<f2", len(layout.raw), at).astype(np.float32)
    if not np.isfinite(steps).all() or np.signbit(steps).any():
        raise BadPack(f"a raw tensor's step is {steps.tolist()}")
    raw = {
        t.name: Raw((values - RAW_ZERO).astype(np.int8).reshape(t.shape), step)
        for t, values, step in zip(layout.raw, codes, steps, strict=True)
    }
    return raw, at + 2 * len(layout.raw)
