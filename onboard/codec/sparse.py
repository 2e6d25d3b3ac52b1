"""Neighbours exchange the values at a mask that both draw: 20 bytes more than the values, and no index.

The bytes are in docs/gossip.md, "An exchange"; values are in the order of their coordinates.

Mixing (RD-PSGD, Algorithm 2; D-PSGD at p = 1) adds weight * (received - sent) at the coordinates of an edge's
mask. Both ends take the difference of the same two rebuilt values, and one difference is the negative of the
other in every bit. So the mean of the models stays what it was, up to the rounding of one sum, in whatever
form the values travel, and whatever a model became since. A neighbour without an answer is left out."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onboard.codec import values as coded
from onboard.codec.layout import Floats, check_finite
from onboard.codec.mask import Indices, Mask
from onboard.codec.values import Form

VERSION = 2
HEADER = struct.Struct("<BBHIII4s")  # version, form, share - 1, round, size, count, check
SPAN = 1 << 16  # coordinates taken at a time: what mixing needs, twice 256 KiB, stays in a cache of 1 MiB


class BadExchange(ValueError):  # noqa: N818 - "bad" says error already
    """These bytes are no exchange over this mask; says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an exchange says of itself; all but `form` must be as the receiver's own mask has it. `check`: 4 B
    that differ where the other end's mask does, by its seed, edge or run."""

    form: Form
    share: int
    round: int
    size: int
    count: int
    check: bytes


@dataclass(frozen=True, slots=True, eq=False)
class NeighbourValues:
    """A neighbour's values and our own, both as their bytes rebuild them (`decode`), and its weight W_ij."""

    mask: Mask
    weight: float
    sent: Floats
    received: Floats


def outgoing(vector: Floats, mask: Mask, form: Form) -> tuple[bytes | memoryview, Floats]:
    """Returns the message with the values of float32 (size,) at the mask, and the values (count,) that it
    rebuilds: in fp32 a view of the message. Raises ValueError as `extract` and `encode` do."""
    if form is not Form.FP32:
        message = encode(extract(vector, mask), mask, form)
        return message, decode(message, mask)
    whole = np.empty(HEADER.size + 4 * mask.count, np.uint8)
    whole[: HEADER.size] = np.frombuffer(_head(mask, form), np.uint8)
    return whole.data, extract(vector, mask, whole[HEADER.size :].view("<f4"))


def extract(vector: Floats, mask: Mask, out: Floats | None = None) -> Floats:
    """Returns the values of float32 (size,) at the mask: (count,), in `out` if given. Raises ValueError for
    another dtype or length, and for values that are not finite."""
    _check_length(vector, mask.size, "vector")
    out = np.empty(mask.count, np.float32) if out is None else out
    run = mask.draw.run
    runs = vector[: len(vector) // run * run].reshape(-1, run)
    for piece in _pieces(mask):
        values = out[piece.at : piece.at + piece.count]
        if piece.runs is None:
            values[...] = vector[piece.first : piece.first + piece.count]
        else:  # no run is outside; "raise" would copy `values`
            np.take(runs, piece.runs, axis=0, out=values.reshape(-1, run), mode="clip")
        check_finite(values)  # while they are in the cache
    return out


def encode(values: Floats, mask: Mask, form: Form) -> bytes:
    """Makes the message with a mask's values. Raises ValueError for another number of values than the mask
    has, and for values that the form cannot hold."""
    _check_length(values, mask.count, "values")
    return _head(mask, form) + coded.encode(values, form)


def parse(data: bytes | memoryview) -> Header:
    """Reads the header, so that the mask can be drawn. Raises BadExchange."""
    if len(data) < HEADER.size:
        raise BadExchange(f"{len(data)} bytes, a header alone has {HEADER.size}")
    version, form, share, round_number, size, count, check = HEADER.unpack_from(data)
    if version != VERSION:
        raise BadExchange(f"version {version}, known is {VERSION}")
    if form not in Form.__members__.values():
        raise BadExchange(f"values of the form {form} are not known")
    return Header(Form(form), share + 1, round_number, size, count, check)


def decode(data: bytes | memoryview, mask: Mask) -> Floats:
    """Decodes the values (count,) of this mask, whole and with nothing after them. Makes no array before the
    sizes are known to be the mask's. Raises BadExchange."""
    header = parse(data)
    own = _header(mask, header.form)
    if header != own:
        raise BadExchange(f"of another mask (seed, weight, share, model or classes): {header}, not {own}")
    try:
        return coded.decode(memoryview(data)[HEADER.size :], mask.count, header.form)
    except ValueError as error:
        raise BadExchange(str(error)) from None


def mix(vector: Floats, answers: Sequence[NeighbourValues]) -> None:
    """Adds weight * (received - sent) of every answer to float32 (size,), contiguous, at its mask, in place.
    Memory is passed once, in the order of coordinates. Raises ValueError and changes nothing."""
    if not vector.flags.c_contiguous:
        raise ValueError("vector: must be contiguous")
    for answer in answers:
        _check_length(vector, answer.mask.size, "vector")
        _check_length(answer.sent, answer.mask.count, "values sent")
        _check_length(answer.received, answer.mask.count, "values received")
    moves, space = np.empty(SPAN, np.float32), np.empty(SPAN, np.float32)
    pieces = [(piece, answer) for answer in answers for piece in _pieces(answer.mask)]
    for piece, answer in sorted(pieces, key=lambda each: each[0].first):
        last = piece.at + piece.count
        received, sent = answer.received[piece.at : last], answer.sent[piece.at : last]
        moved = np.subtract(received, sent, out=moves[: piece.count])
        moved *= np.float32(answer.weight)
        if piece.runs is None:
            vector[piece.first : piece.first + piece.count] += moved
            continue
        run = answer.mask.draw.run
        if run == 1:
            np.add.at(vector, piece.runs, moved)  # one pass over coordinates that are far apart, not two
            continue
        item = f"V{4 * run}"  # a run as one item of bytes: numpy puts those faster than rows of an array
        runs, held = vector[: len(vector) // run * run].view(item), space[: piece.count]
        np.take(runs, piece.runs, out=held.view(item), mode="clip")
        held += moved
        np.put(runs, piece.runs, held.view(item), mode="clip")


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Coordinates of a mask, consecutive or those of `runs`; `first` is at place `at` of its values."""

    first: int
    at: int
    count: int
    runs: Indices | None


def _pieces(mask: Mask) -> Iterator[_Piece]:
    run, size, at = mask.draw.run, mask.size, 0
    if mask.whole:
        yield from (_Piece(at, at, min(SPAN, size - at), None) for at in range(0, size, SPAN))
        return
    for block in mask.blocks:
        for begin in range(0, len(block), SPAN // run):
            runs = block[begin : begin + SPAN // run]
            yield _Piece(run * int(runs[0]), at, run * len(runs), runs)
            at += run * len(runs)
    if mask.tail:
        yield _Piece(size - mask.tail, at, mask.tail, None)


def _header(mask: Mask, form: Form) -> Header:
    _, _, check = mask.draw.keys(mask.size)
    return Header(form, mask.draw.share, mask.draw.round, mask.size, mask.count, check)


def _head(mask: Mask, form: Form) -> bytes:
    own = _header(mask, form)
    return HEADER.pack(VERSION, form, own.share - 1, own.round, own.size, own.count, own.check)


def _check_length(array: Floats, length: int, what: str) -> None:
    if array.shape != (length,) or array.dtype != np.float32:
        raise ValueError(f"{what}: {array.dtype} {array.shape}, must be float32 ({length},)")
