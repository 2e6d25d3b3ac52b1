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

import fcntl
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from pathlib import Path

import msgspec

from hw_profiles import Link
from onboard.console.log import say
from onboard.link.ports.framing import FRAMINGS
from onboard.link.ports.port import Tap, Way
from onboard.link.ports.schemes import facts_of
from onboard.wire.framing import cobs
from onboard.wire.security.seal import NO_SALT

log = logging.getLogger(__name__)

LIMIT_BYTES = 64 << 20
AGAIN_S = 10.0
MAX_DATA_BYTES = 1 << 16  # a port gives no more at a time
_HEAD = struct.Struct(">BBQ")
_CHECK = struct.Struct(">I")
_READ_BYTES = 1 << 20


class Kind(IntEnum):
    START = 0
    IN = 1
    OUT = 2


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A link as it was when its recording began. `unix_s`: Unix seconds at the start of the recorder's run.
    `framing`: a name in `FRAMINGS`. `local`: the node that recorded. `salt`: the one in force then."""

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
    """Return the record as a file holds it. Raises ValueError for data that is too long."""
    if len(record.data) > MAX_DATA_BYTES:
        raise ValueError(f"{len(record.data)} B in a record, at most {MAX_DATA_BYTES}")
    body = _HEAD.pack(record.kind, record.node, round(1e6 * record.at_s)) + record.data
    return cobs.encode(body + _CHECK.pack(zlib.crc32(body)))


def decode(chunk: bytes) -> Record:
    """Return the record that stood between two delimiters. Raises BadRecord."""
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
    """Return what a START says. Raises BadRecord for another version's."""
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


class Recorder:
    """Records what crosses ports into one file of bounded size, and stops nobody when it cannot.

    Every piece goes to the kernel at once, so a kill loses none; it is not fsynced, so a power cut may lose
    the last half minute. A full file replaces FILE.1, so the disk holds at most twice the limit. Where the
    disk refuses, the log says so once, `lost` counts the pieces, and it is tried again. A file has one
    recorder: a second would rename away what the first writes."""

    def __init__(
        self,
        path: Path,
        limit_bytes: int = LIMIT_BYTES,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.limit_bytes = path, limit_bytes
        self._full = path.with_name(f"{path.name}.1")
        self.lost = 0
        self._clock = clock
        self._began_s, self._unix_s = clock(), wall()
        self._starts: list[Record] = []
        self._fd = -1
        self._size = 0
        self._not_before_s = self._began_s
        self._told = False

    def claim(self) -> None:
        """Lock the file for this process, if it can be written at all. Raises BlockingIOError where another
        program records into it, and ValueError rather than append to, or replace, somebody else's file."""
        try:
            for path in (self.path, self._full):
                if path.is_file():
                    with path.open("rb") as file:
                        if file.read(1) not in (b"", b"\0"):  # a recorder begins with a delimiter
                            raise ValueError(f"{path}: is there, and no recording")
            self._open()
        except BlockingIOError:
            raise
        except OSError as error:
            self._fail(error, self._clock())

    def link(self, url: str, link: Link, *, local: int, peer: int, encrypted: bool = False) -> Tap:
        """Begin the recording of one link; return the tap for its port."""
        facts = facts_of(url)
        start = Start(
            unix_s=self._unix_s, url=url, framing=facts.framing, kiss_port=facts.kiss_port, local=local,
            peer=peer, link=link, encrypted=encrypted,
        )  # fmt: skip
        node = peer or local  # the ground's number, 0, names no link
        record = Record(Kind.START, node, self._clock() - self._began_s, msgspec.json.encode(start))
        self._starts.append(record)
        if self._fd >= 0:  # else it is written when the file is opened
            self._write(encode(record))
        return partial(self._record, node)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _record(self, node: int, way: Way, data: bytes) -> None:
        kind, at_s = Kind.IN if way == "in" else Kind.OUT, self._clock() - self._began_s
        self._write(encode(Record(kind, node, at_s, data)))

    def _write(self, record: bytes) -> None:
        now_s = self._clock()
        if now_s < self._not_before_s:
            self.lost += 1
            return
        try:
            if self._fd >= 0 and self._size + len(record) > self.limit_bytes:
                self.close()
                self.path.replace(self._full)
            if self._fd < 0:
                self._open()
            self._append(record)
            self._told = False
        except OSError as error:
            self.lost += 1
            self._fail(error, now_s)

    def _fail(self, error: OSError, now_s: float) -> None:
        self.close()
        self._not_before_s = now_s + AGAIN_S
        if not self._told:
            say(log, "record-failed", level=logging.ERROR, path=str(self.path), why=error.strerror)
        self._told = True

    def _open(self) -> None:
        # Non-blocking: a named pipe that nobody reads would stop the program.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
        self._fd = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise BlockingIOError(error.errno, "another program records into it", str(self.path)) from None
        self._size = os.fstat(self._fd).st_size
        # A delimiter first: the record before it may have been cut.
        self._append(b"\0" + b"".join(map(encode, self._starts)))

    def _append(self, data: bytes) -> None:
        """Raises OSError; half of a record may then be in the file."""
        while data:
            written = os.write(self._fd, data)
            self._size += written
            data = data[written:]
