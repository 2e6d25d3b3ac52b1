"""A quantized model, as bases in memory and as bytes: adaptive loss-aware quantization (ALQ).

Qu et al. ("Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR 2020) cut a layer's weights into G
groups of n, and give every group its own number of bases I (its bit-width, 0 to 8):

    w^ = sum_j alpha_j * b_j,    b_j in {-1, +1}^n,  alpha_j >= 0                                  (eq. 1)

`alq` makes such a model of weights. Its bytes are:

    offset  size
    0       1     format: 1
    1       8     digest of the layout: names, shapes and groups of the model's tensors
    9       4     length C of the coded section; all numbers are little-endian
    13      C     adaptively coded (`rangecoder`): all bit-widths, the coordinates' exponents, raw codes, and
                  of each grouped tensor one bit: 1 if its signs are deflated
    13+C    2R    step of each of the R raw tensors, float16; where its sign bit is set, codes are the high
                  bytes of float16 values, and the step turned positive is what they are times
            H     the low bytes of these values
            M     the coordinates' mantissas, 3 bits each, highest bit first; zeros fill the last byte
            ...   each grouped tensor's signs: one bit each (1: +1), highest bit first, in the order of groups
                  and bases, zeros fill the last byte; deflated or not

A mantissa is random and travels as it is. Signs are not: a kernel's form patches, and a dense row sees the
maps of a convolution, so that eight neighbours in a byte are not alike in all 256 ways. Huffman codes for
bytes (DEFLATE, RFC 1951) take 1680 bytes for the 2165 of LeNet-5's second convolution after a first round at
0.1 bit a weight, and 1582 for 1715 after a third. A coder with two neighbours as its context would take 1411
and 1381, and ten times as long in Python."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onboard.codec import formats
from onboard.codec.layout import Floats, Layout, Tensor
from onboard.codec.rangecoder import Context, Decoder, Encoder, context, tree

Widths = Mapping[str, npt.NDArray[np.uint8]]  # bases of each group (G,), by the tensor's name

MAX_BASES = 8
# An alpha travels as a float16 without its sign and with 3 bits of mantissa. It is off by at most 1/16, which
# adds 0.4 % of a basis's energy to the error: 97.1 % on digits against 97.2 % with all 10 bits (6 rounds, two
# seeds), and 97.9 % with the bits saved spent on more bases.
MANTISSA_BITS = 3
DROPPED_BITS = 10 - MANTISSA_BITS  # of a float16's mantissa
COORDINATE_BITS = 5 + MANTISSA_BITS
HALF_MAX = float(np.finfo(np.float16).max)
HEADER = struct.Struct("<B8sI")
NUMBER_BITS, SPAN_BITS = 8, 4  # of the numbers in a block at most; of how many they are
RAW_ZERO = 128  # a raw code of 0 as a number
STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)  # the second one finds bases that are alike
BARE = -15  # DEFLATE without zlib's header and checksum, a window of 2^15 bytes


@dataclass(frozen=True, eq=False)
class Bases:
    """A grouped tensor as bases: `bits` (G,) uint8, `alphas` (G, I) float32 >= 0, `signs` (G, I, n) int8. I
    is the largest bit-width; group g uses its first bits[g] bases, and alphas and signs are 0 in the rest. In
    what travels, alphas are as `rounded` leaves them."""

    bits: npt.NDArray[np.uint8]
    alphas: Floats
    signs: npt.NDArray[np.int8]

    @classmethod
    def assembled(cls, bits: npt.NDArray[np.uint8], alphas: Floats, signs: npt.NDArray[np.uint8]) -> Bases:
        """Builds it from the bases that exist, one after the other: alphas (S,), signs (S, n) as 0 and 1."""
        shape = len(bits), int(bits.max(initial=0))
        bases = cls(bits, np.zeros(shape, np.float32), np.zeros((*shape, signs.shape[1]), np.int8))
        bases.alphas[bases.used] = alphas
        bases.signs[bases.used] = signs.astype(np.int8) * 2 - 1
        return bases

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        return np.arange(self.alphas.shape[1]) < self.bits[:, None]

    def reconstruct(self) -> Floats:
        """The groups (G, n), float32; one product, one sum at a time: IEEE 754 makes it the same anywhere."""
        groups = np.zeros((len(self.bits), self.signs.shape[2]), np.float32)
        for j in range(self.alphas.shape[1]):
            at = np.flatnonzero(self.bits > j)
            groups[at] += self.alphas[at, j, None] * self.signs[at, j]
        return groups


@dataclass(frozen=True, eq=False)
class Raw:
    """A tensor on a uniform grid: `codes` int8 in its shape, and the float32 `step` between two values."""

    codes: npt.NDArray[np.int8]
    step: np.float32

    def reconstruct(self) -> Floats:
        return self.codes.astype(np.float32) * self.step


@dataclass(frozen=True, eq=False)
class HalfPrecision:
    """A tensor of float16 `values`, each times `scale`, which a float16 can hold."""

    values: npt.NDArray[np.float16]
    scale: np.float32

    def reconstruct(self) -> Floats:
        return self.values.astype(np.float32) * self.scale


@dataclass(frozen=True, eq=False)
class Quantized:
    """A whole model as it travels: bases for the grouped tensors, a grid for the raw ones or, where these
    have to be exact, half precision, both by name."""

    format: ClassVar[int] = formats.ALQ

    layout: Layout
    grouped: Mapping[str, Bases]
    raw: Mapping[str, Raw | HalfPrecision]

    def reconstruct(self) -> dict[str, Floats]:
        return {
            t.name: (self.grouped if t.group else self.raw)[t.name].reconstruct().reshape(t.shape)
            for t in self.layout.tensors
        }

    @property
    def mean_width(self) -> float:
        """Averages the bases of a weight's group over the weights."""
        grouped = self.layout.grouped
        signs = sum(int(self.grouped[t.name].bits.sum(dtype=np.int64)) * t.group for t in grouped)
        return signs / sum(t.size for t in grouped)

    @property
    def budget_bits(self) -> int:
        """Counts bits of bases and coordinates, which `alq.allocate` keeps under its budget."""
        return budget_bits(self.layout, {name: bases.bits for name, bases in self.grouped.items()})


def budget_bits(layout: Layout, widths: Widths) -> int:
    return sum(int(widths[t.name].sum(dtype=np.int64)) * (t.group + COORDINATE_BITS) for t in layout.grouped)


def rounded(alphas: npt.NDArray[np.floating[Any]]) -> Floats:
    """Returns |alphas| as they travel: finite float16 values with MANTISSA_BITS of mantissa, as float32."""
    halves = np.minimum(np.abs(alphas), HALF_MAX).astype(np.float16).view(np.uint16).astype(np.int64)
    # A carry out of the mantissa goes on into the exponent, as it should; at infinity (exponent 31) it stops.
    codes = np.minimum(halves + (1 << DROPPED_BITS >> 1) >> DROPPED_BITS, (31 << MANTISSA_BITS) - 1)
    return _from_codes(codes)


def _from_codes(codes: npt.NDArray[np.int64]) -> Floats:
    return (codes.astype(np.uint16) << DROPPED_BITS).view(np.float16).astype(np.float32)


def sections(model: Quantized) -> dict[str, bytes]:
    """Raises ValueError for coordinates that were not `rounded`."""
    layout = model.layout
    tensors = [model.grouped[t.name] for t in layout.grouped]
    raws = [model.raw[t.name] for t in layout.raw]
    alphas = [bases.alphas[bases.used] for bases in tensors]
    if not all(np.array_equal(rounded(values), values) for values in alphas):
        raise ValueError("coordinates are not rounded: both ends would rebuild different weights")
    halves = [values.astype(np.float16).view(np.uint16) >> DROPPED_BITS for values in alphas]
    signs = [encode_signs(bases.signs[bases.used].ravel() > 0) for bases in tensors]
    coder = Encoder()
    for tensor, bases in zip(layout.grouped, tensors, strict=True):
        _put_widths(coder, tensor, bases.bits)
    widths_end = coder.settled
    for bases, half in zip(tensors, halves, strict=True):
        _put_numbers(coder, half >> MANTISSA_BITS, _basis_of_each(bases.bits))
    exponents_end = coder.settled
    steps, low_bytes = [], []
    for raw in raws:
        if isinstance(raw, Raw):
            numbers = raw.codes.ravel() + np.int16(RAW_ZERO)
            steps.append(raw.step)
        else:
            bits = raw.values.ravel().view(np.uint16)
            numbers = (bits >> 8).astype(np.int16)
            low_bytes.append(bits.astype(np.uint8).tobytes())
            steps.append(-raw.scale)
        _put_numbers(coder, numbers, [0] * numbers.size)
    for deflated, _ in signs:
        coder.put(int(deflated), context())
    coded = coder.finish()
    low = np.concatenate([np.zeros(0, np.uint16), *halves])
    mantissas = low[:, None] >> np.arange(MANTISSA_BITS - 1, -1, -1) & 1
    return {
        "header": HEADER.pack(Quantized.format, layout.digest, len(coded)),
        "widths": coded[:widths_end],
        "exponents": coded[widths_end:exponents_end],
        "raw": coded[exponents_end:] + np.array(steps, "<f2").tobytes() + b"".join(low_bytes),
        "mantissas": np.packbits(mantissas.astype(np.bool_)).tobytes(),
        "signs": b"".join(data for _, data in signs),
    }


def unpack(data: bytes, layout: Layout) -> Quantized:
    """Takes at most 32 bytes of memory a weight, as the layout bounds the symbols that it asks for."""
    if len(data) < HEADER.size:
        raise ValueError(f"{len(data)} bytes, a header alone has {HEADER.size}")
    _, _, coded_bytes = HEADER.unpack_from(data)
    steps_at = HEADER.size + coded_bytes
    low_at = steps_at + 2 * len(layout.raw)
    if len(data) < low_at:
        raise ValueError(f"{len(data)} bytes, those of the steps alone are {low_at}")
    steps = np.frombuffer(data, "<f2", len(layout.raw), steps_at).astype(np.float32)
    in_halves = np.signbit(steps)
    if not np.isfinite(steps).all() or not steps[in_halves].all():
        raise ValueError(f"a raw tensor's step is {steps.tolist()}")
    low_bytes = [t.size if exact else 0 for t, exact in zip(layout.raw, in_halves, strict=True)]
    mantissas_at = low_at + sum(low_bytes)
    coder = Decoder(data[HEADER.size : steps_at])
    widths = [_get_widths(coder, tensor) for tensor in layout.grouped]
    coordinates = sum(int(bits.sum(dtype=np.int64)) for bits in widths)
    at = mantissas_at + -(-MANTISSA_BITS * coordinates // 8)
    if len(data) < at:
        raise ValueError(f"{len(data)} bytes, the bit-widths in them ask for more")
    exponents = [_get_numbers(coder, _basis_of_each(bits)) for bits in widths]
    codes = [_get_numbers(coder, [0] * tensor.size) for tensor in layout.raw]
    deflated = [coder.get(context()) == 1 for _ in layout.grouped]
    raw: dict[str, Raw | HalfPrecision] = {}
    for tensor, numbers, step, size in zip(layout.raw, codes, steps, low_bytes, strict=True):
        if size:
            low = np.frombuffer(data, np.uint8, size, low_at)
            halves = (numbers.astype(np.uint16) << 8 | low).view(np.float16).reshape(tensor.shape)
            if not np.isfinite(halves).all():
                raise ValueError(f"{tensor.name} has values that are not finite")
            raw[tensor.name] = HalfPrecision(halves, -step)
        else:
            raw[tensor.name] = Raw((numbers - RAW_ZERO).astype(np.int8).reshape(tensor.shape), step)
        low_at += size
    alphas = _coordinates(exponents, data[mantissas_at:at])
    grouped = {}
    for tensor, bits, values, shorter in zip(layout.grouped, widths, alphas, deflated, strict=True):
        try:
            ones, at = decode_signs(data, at, len(values) * tensor.group, shorter)
        except ValueError as error:
            raise ValueError(f"{tensor.name}: {error}") from None
        grouped[tensor.name] = Bases.assembled(bits, values, ones.reshape(-1, tensor.group))
    if at != len(data):
        raise ValueError(f"{len(data)} bytes, the model in them ends after {at}")
    return Quantized(layout, grouped, raw)


def _width_contexts() -> list[list[list[Context]]]:
    """Returns contexts[left][up][j] of "one more basis after j?": groups that matter lie together, so it
    depends on the group before in the same output, and the same group in the output before."""
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
    """Later bases of a group are smaller, and get trees of their own."""
    return [j for width in bits.tolist() for j in range(width)]


def _put_numbers(coder: Encoder, values: npt.NDArray[np.integer[Any]], which: list[int]) -> None:
    """Puts 0..255: the lowest, the bits that the highest takes above it, then each in tree which[i]."""
    if len(values) == 0:
        return
    lowest = int(values.min())
    bits = int(values.max() - lowest).bit_length()
    coder.put_numbers([lowest], NUMBER_BITS, [tree(NUMBER_BITS)])
    coder.put_numbers([bits], SPAN_BITS, [tree(SPAN_BITS)])
    trees = [tree(bits) for _ in range(max(which) + 1)]
    coder.put_numbers((values - lowest).tolist(), bits, [trees[i] for i in which])


def _get_numbers(coder: Decoder, which: list[int]) -> npt.NDArray[np.int64]:
    """Raises ValueError for numbers beyond 255."""
    if not which:
        return np.zeros(0, np.int64)
    [lowest] = coder.get_numbers(NUMBER_BITS, [tree(NUMBER_BITS)])
    [bits] = coder.get_numbers(SPAN_BITS, [tree(SPAN_BITS)])
    if bits > NUMBER_BITS:
        raise ValueError(f"numbers of {bits} bits, none has more than {NUMBER_BITS}")
    trees = [tree(bits) for _ in range(max(which) + 1)]
    values = lowest + np.array(coder.get_numbers(bits, [trees[i] for i in which]))
    if values.max() >= 1 << NUMBER_BITS:
        raise ValueError(f"a number of {values.max()}, none has more than {NUMBER_BITS} bits")
    return values


def _coordinates(exponents: list[npt.NDArray[np.int64]], data: bytes) -> list[Floats]:
    ends = np.cumsum([len(values) for values in exponents], dtype=np.int64)
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    used = MANTISSA_BITS * int(ends[-1]) if exponents else 0
    if bits[used:].any():
        raise ValueError("bits are set after the last mantissa")
    mantissas = bits[:used].reshape(-1, MANTISSA_BITS) @ (1 << np.arange(MANTISSA_BITS - 1, -1, -1))
    codes = np.concatenate([np.zeros(0, np.int64), *exponents]) << MANTISSA_BITS | mantissas
    if (codes >= 31 << MANTISSA_BITS).any():  # float16's exponent of infinities; higher ones are none
        raise ValueError("a coordinate is not finite")
    return np.split(_from_codes(codes), ends[:-1]) if exponents else []


def encode_signs(signs: npt.NDArray[np.bool_]) -> tuple[bool, bytes]:
    """Encodes signs (S,) (True: +1); returns whether they are deflated, and the bytes."""
    plain = np.packbits(signs).tobytes()
    coders = [zlib.compressobj(9, zlib.DEFLATED, BARE, 9, strategy) for strategy in STRATEGIES]
    best = min((coder.compress(plain) + coder.flush() for coder in coders), key=len)
    return (True, best) if len(best) < len(plain) else (False, plain)


def decode_signs(data: bytes, at: int, count: int, deflated: bool) -> tuple[npt.NDArray[np.uint8], int]:
    """Decodes `count` signs (0 or 1) from `at` on; returns them and where their bytes end. Never makes more
    bytes than `count` signs need. Raises ValueError."""
    size = -(-count // 8)
    plain, end = _inflated(data[at:], size) if deflated else (data[at : at + size], size)
    if len(plain) != size:
        raise ValueError(f"{len(plain)} bytes of signs, {count} signs take {size}")
    bits = np.unpackbits(np.frombuffer(plain, np.uint8))
    if bits[count:].any():
        raise ValueError("bits are set after the last sign")
    return bits[:count], at + end


def _inflated(data: bytes, size: int) -> tuple[bytes, int]:
    """Inflates the one stream of `size` bytes at the start of `data`; returns it and its length."""
    coder = zlib.decompressobj(BARE)
    try:
        # One byte more than there may be: so a stream that ends in time shows its end, and no bomb goes off.
        plain = coder.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"signs: {error}") from None
    if len(plain) > size or not coder.eof:
        raise ValueError(f"deflated signs of other than {size} bytes")
    return plain, len(data) - len(coder.unused_data)
