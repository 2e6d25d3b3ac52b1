"""Neighbours exchange the values at a mask that both draw: 20 bytes more than the values, and no index.

    offset  size
    0       1     version: 1
    1       1     form of the values (`values.Form`)
    2       2     share - 1: p = share / 65536; all numbers are little-endian
    4       4     round
    8       4     size: coordinates of the whole vector
    12      4     count of values
    16      4     check: differs where the other end's mask does, by its seed or edge
    20      ...   the values, in the order of the mask's coordinates

Mixing (RD-PSGD, Algorithm 2; D-PSGD at p = 1) adds weight * (received - sent) at the coordinates of an
edge's mask. Both ends take the difference of the same two rebuilt values, one the negative of the other in
every bit, and so the mean of the models stays what it was, up to the rounding of one sum: whatever form the
values travel in, and whatever a model became since they left. A neighbour that does not answer is left out,
by both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onboard.codec import values as coded
from onboard.codec.layout import Floats
from onboard.codec.mask import WORDS, Indices, Mask
from onboard.codec.values import Form

VERSION = 1
HEADER = struct.Struct("<BBHIII4s")
SPAN = 4 * WORDS  # coordinates mixed at a time where the mask is whole: as many as its blocks pick


class BadExchange(ValueError):  # noqa: N818 - "bad" says error already
    """These bytes are no exchange over this mask; says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an exchange says of itself; all but `form` must be as the receiver's own mask has it."""

    form: Form
    share: int
    round: int
    size: int
    count: int
    check: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A neighbour's values and our own, both as their bytes rebuild them (`decode`), and its weight W_ij."""

    mask: Mask
    weight: float
    sent: Floats
    received: Floats


def outgoing(vector: Floats, mask: Mask, form: Form) -> tuple[bytes | memoryview, Floats]:
    """The message with the values of float32 (size,) at the mask, and the values (count,) that it rebuilds.

    In fp32 they are a view of the message, which then is the only copy of them. Errors: ValueError as of
    `extract` and `encode`.
    """
    if form is not Form.FP32:
        message = encode(extract(vector, mask), mask, form)
        return message, decode(message, mask)
    whole = np.empty(HEADER.size + 4 * mask.count, np.uint8)
    whole[: HEADER.size] = np.frombuffer(_head(mask, form), np.uint8)
    extract(vector, mask, whole[HEADER.size :].view("<f4"))
    return whole.data, decode(whole.data, mask)


def extract(vector: Floats, mask: Mask, out: Floats | None = None) -> Floats:
    """The values of float32 (size,) at the mask's coordinates: (count,), into `out` if given.

    Errors: ValueError for another dtype or length.
    """
    _check_length(vector, mask.size, "vector")
    out = np.empty(mask.count, np.float32) if out is None else out
    if mask.whole:
        out[...] = vector
        return out
    wide, at = np.empty(SPAN, np.intp), 0
    for block in mask.blocks:
        index = wide[: len(block)]
        index[...] = block
        np.take(vector, index, out=out[at : at + len(block)], mode="clip")  # "raise" would copy `out`
        at += len(block)
    return out


def encode(values: Floats, mask: Mask, form: Form) -> bytes:
    """The message with a mask's values. Errors: ValueError for another number of values than the mask has,
    and for values that the form cannot hold.
    """
    _check_length(values, mask.count, "values")
    return _head(mask, form) + coded.encode(values, form)


def parse(data: bytes | memoryview) -> Header:
    """What `data` says it is, so that its mask can be drawn. Errors: BadExchange."""
    if len(data) < HEADER.size:
        raise BadExchange(f"{len(data)} bytes, a header alone has {HEADER.size}")
    version, form, share, round_number, size, count, check = HEADER.unpack_from(data)
    if version != VERSION:
        raise BadExchange(f"version {version}, known is {VERSION}")
    if form not in Form.__members__.values():
        raise BadExchange(f"values of the form {form} are not known")
    return Header(Form(form), share + 1, round_number, size, count, check)


def decode(data: bytes | memoryview, mask: Mask) -> Floats:
    """The values (count,) in `data`, which must be of this mask, whole and with nothing after it.

    Makes no array before the sizes are known to be the mask's. Errors: BadExchange.
    """
    header = parse(data)
    own = _header(mask, header.form)
    if header != own:
        raise BadExchange(f"of another mask: {header}, not {own}")
    try:
        return coded.decode(memoryview(data)[HEADER.size :], mask.count, header.form)
    except ValueError as error:
        raise BadExchange(str(error)) from None


def mix(vector: Floats, answers: Sequence[Answer]) -> None:
    """Adds weight * (received - sent) of every answer to float32 (size,) at its mask, in place.

    All masks' blocks are taken in the order of their coordinates: memory is passed once, however many
    neighbours there are. Errors: ValueError for lengths that do not fit; nothing is changed then.
    """
    for answer in answers:
        _check_length(vector, answer.mask.size, "vector")
        _check_length(answer.sent, answer.mask.count, "values sent")
        _check_length(answer.received, answer.mask.count, "values received")
    wide, scratch = np.empty(SPAN, np.intp), np.empty(SPAN, np.float32)
    for _, number, at, block in sorted(_pieces(answers), key=lambda piece: piece[:2]):
        answer = answers[number]
        count = SPAN if block is None else len(block)
        sent, received = answer.sent[at : at + count], answer.received[at : at + count]
        moved = np.subtract(received, sent, out=scratch[: len(sent)])
        moved *= np.float32(answer.weight)
        if block is None:
            vector[at : at + count] += moved
        else:
            index = wide[:count]
            index[...] = block
            np.add.at(vector, index, moved)  # one pass; `vector[index] += moved` takes two


def _pieces(answers: Sequence[Answer]) -> Iterator[tuple[int, int, int, Indices | None]]:
    """First coordinate, answer, place of its values, and block: None for SPAN coordinates of a whole mask."""
    for number, answer in enumerate(answers):
        if answer.mask.whole:
            yield from ((at, number, at, None) for at in range(0, answer.mask.size, SPAN))
        at = 0
        for block in answer.mask.blocks:
            yield int(block[0]), number, at, block
            at += len(block)


def _header(mask: Mask, form: Form) -> Header:
    _, _, check = mask.draw.keys(mask.size)
    return Header(form, mask.draw.share, mask.draw.round, mask.size, mask.count, check)


def _head(mask: Mask, form: Form) -> bytes:
    header = _header(mask, form)
    return HEADER.pack(VERSION, form, header.share - 1, header.round, header.size, header.count, header.check)


def _check_length(array: Floats, length: int, what: str) -> None:
    if array.shape != (length,) or array.dtype != np.float32:
        raise ValueError(f"{what}: {array.dtype} {array.shape}, must be float32 ({length},)")
