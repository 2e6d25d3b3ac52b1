"""A recording of ports: what crossed them, both ways, when, and all that is needed to read it again.

A file is a row of records, each stuffed by COBS and ended by 0x00, with one more 0x00 in front of every run
of the recorder. So a record that a kill or a full disk cut short spoils no other. In a record, big-endian:

====== ===== ==============================================================================
offset width field
====== ===== ==============================================================================
0      1     kind: 0 start, 1 in, 2 out
1      1     node: the board's number, which names the link
2      8     microseconds since this run of the recorder began
10     n     start: a JSON object, see `Start`; in, out: a piece of the port's stream, or a datagram
10 + n 4     CRC-32 (IEEE 802.3, as zlib's) of all before it
====== ===== ==============================================================================
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import msgspec

from hw_profiles import Link
from onboard.link.ports.framing import FRAMINGS
from onboard.wire.framing import cobs
from onboard.wire.security.seal import NO_SALT

MAX_DATA_BYTES = 1 << 16  # a port gives no more at a time
_HEAD = struct.Struct(">BBQ")
_CHECK = struct.Struct(">I")
_READ_BYTES = 1 << 20


class Kind(IntEnum):
    """What a record holds."""

    START = 0
    IN = 1
    OUT = 2


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A link as it was when its recording began, on the clock (Unix seconds) `unix_s` after the run did.

    `framing` is a name in `FRAMINGS`. `local` and `peer` are node numbers, and `local` is the end that
    recorded. `salt` is that of its keys then, and `encrypted` says whether it encrypts.
    """

    unix_s: float
    url: str
    framing: str
    kiss_port: int
    local: int
    peer: int
    link: Link
    salt: bytes = NO_SALT
    encrypted: bool = False


class Record(msgspec.Struct, frozen=True):
    """One record; `at_s` since its run of the recorder began."""

    kind: Kind
    node: int
    at_s: float
    data: bytes


class BadRecord(ValueError):  # noqa: N818 - "bad" says error already
    """A chunk that no recorder wrote, or not all of it."""


def encode(record: Record) -> bytes:
    """The record as it stands in a file. Raises ValueError for data that is too long."""
    if len(record.data) > MAX_DATA_BYTES:
        raise ValueError(f"{len(record.data)} B in a record, at most {MAX_DATA_BYTES}")
    body = _HEAD.pack(record.kind, record.node, round(1e6 * record.at_s)) + record.data
    return cobs.encode(body + _CHECK.pack(zlib.crc32(body)))


def decode(chunk: bytes) -> Record:
    """The record in what stood between two delimiters. Raises BadRecord."""
    try:
        raw = cobs.decode(chunk)
    except cobs.BadCobs as error:
        raise BadRecord(str(error)) from None
    body, check = raw[: -_CHECK.size], raw[-_CHECK.size :]
    if len(body) < _HEAD.size or check != _CHECK.pack(zlib.crc32(body)) or body[0] not in set(Kind):
        raise BadRecord(f"{len(raw)} B without a right checksum")
    kind, node, at_us = _HEAD.unpack_from(body)
    return Record(Kind(kind), node, at_us / 1e6, body[_HEAD.size :])


def start_of(record: Record) -> Start:
    """What a START says. Raises BadRecord for another version's."""
    try:
        start = msgspec.json.decode(record.data, type=Start)
    except msgspec.DecodeError as error:
        raise BadRecord(f"start of another version: {error}") from None
    if start.framing not in FRAMINGS:
        raise BadRecord(f"start of another version: framing {start.framing!r}")
    return start


class Reader:
    """Reads a file record by record; `damaged` counts the chunks that were none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damaged = 0

    def __iter__(self) -> Iterator[Record]:
        """Raises OSError."""
        splitter = cobs.Splitter(_HEAD.size + MAX_DATA_BYTES + _CHECK.size)
        with self._path.open("rb") as file:
            tail = b""
            while piece := file.read(_READ_BYTES):
                for chunk in splitter.feed(piece):
                    try:
                        yield decode(chunk)
                    except BadRecord:
                        self.damaged += 1
                tail = piece[-1:]
        self.damaged += splitter.overlong + (tail not in (b"", b"\0"))
