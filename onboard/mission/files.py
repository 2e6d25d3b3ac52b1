"""Files on a link: one of up to 4 GiB travels as parts, each of them an object, and the end that wants it
asks for what it lacks.

A FILE is one part, a REQUEST lists the files that an end wants and what it holds of each. Whoever is asked
sends a few parts at a time, so that neither end holds more than these in memory; a session resumes each part
at its byte. A file may come as a delta against another one that the asking end holds. The digest over the
whole file decides at the end, whatever it came as."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from onboard.mission.objects import FILE, Count, decoded
from onboard.wire.events import Cancelled, Delivered, Event, Progress
from onboard.wire.messages import BadMessage
from onboard.wire.session import Session

PART_BYTES = 2**19
"""Of every part but a file's last. Three of them fit the smallest board's limit, and at 50 Mbit/s the 12 that
come in a second are not too many writes (`onboard/link/peer.py`)."""
IN_FLIGHT = 2  # one waits to be durable at the other end while the next one travels
MAX_FILE_BYTES = 2**32
MAX_REQUEST_BYTES = 16_384
MOST_FILES = 8  # of one request
PRIORITY = 6  # of parts: they leave when models, updates and commands have left
_PART = struct.Struct(">16s16sQQ")
_NO_BASE = bytes(16)

FileDigest = Annotated[bytes, Meta(min_length=16, max_length=16)]
PartsHeld = Annotated[bytes, Meta(max_length=MAX_FILE_BYTES // PART_BYTES // 8)]


@dataclass(frozen=True, slots=True)
class FilePart:
    """A part of a stream of `size` bytes, at `offset`. The stream is the file with the BLAKE2s-128 `digest`,
    or with a `base` its delta against the file of that digest."""

    digest: bytes
    size: int
    offset: int
    data: bytes | memoryview
    base: bytes = b""


class WantedFile(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """A file that an end lacks. `size`, `base`: those of the stream that it holds parts of, 0 and empty
    before the first part; `held`: bit i (little-endian) is set when part i is held. `bases`: files that it
    could put a delta on."""

    digest: FileDigest
    size: Annotated[int, Meta(ge=0, le=MAX_FILE_BYTES)] = 0
    base: Annotated[bytes, Meta(max_length=16)] = b""
    held: PartsHeld = b""
    bases: Annotated[tuple[FileDigest, ...], Meta(max_length=MOST_FILES)] = ()


class FileRequest(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Object of kind REQUEST: the files that an end wants, in their order, in place of what it asked for
    before. None: it wants no more. `asking`: makes of the same question another object each time."""

    asking: Count
    files: Annotated[tuple[WantedFile, ...], Meta(max_length=MOST_FILES)]


def parts_of(size: int) -> int:
    """Returns the number of parts of a file."""
    return -(-size // PART_BYTES)


def encode_part(part: FilePart) -> bytes:
    """The payload of a FILE. Raises ValueError for what the other end would refuse."""
    payload = _PART.pack(part.digest, part.base or _NO_BASE, part.size, part.offset) + bytes(part.data)
    try:
        decode_part(payload)
    except BadMessage as error:
        raise ValueError(str(error)) from None
    return payload


def decode_part(payload: bytes) -> FilePart:
    """The part in a payload, whose bytes are not copied. Raises BadMessage."""
    if len(payload) < _PART.size:
        raise BadMessage(f"part of {len(payload)} B")
    digest, base, size, offset = _PART.unpack_from(payload)
    data = memoryview(payload)[_PART.size :]
    if not 0 < size <= MAX_FILE_BYTES:
        raise BadMessage(f"part of a file of {size} B, at most {MAX_FILE_BYTES}")
    if offset % PART_BYTES or offset >= size or len(data) != min(PART_BYTES, size - offset):
        raise BadMessage(f"part of {len(data)} B at {offset} of {size}")
    return FilePart(digest, size, offset, data, b"" if base == _NO_BASE else base)


def encode_request(request: FileRequest) -> bytes:
    """The payload of a REQUEST. Raises ValueError for what the other end would refuse."""
    payload = msgspec.msgpack.encode(request)
    try:
        decode_request(payload)
    except BadMessage as error:
        raise ValueError(str(error)) from None
    return payload


def decode_request(payload: bytes) -> FileRequest:
    """The request in a payload. Raises BadMessage."""
    if len(payload) > MAX_REQUEST_BYTES:
        raise BadMessage(f"request of {len(payload)} B, at most {MAX_REQUEST_BYTES}")
    return decoded(payload, FileRequest, "file request")


@dataclass(frozen=True, slots=True)
class FileStream:
    """What is sent for a file: `digest` of the file itself, `size` of the stream, `base` of a delta. `read`
    returns so many bytes from an offset on, and raises OSError."""

    digest: bytes
    size: int
    read: Callable[[int, int], bytes]
    base: bytes = b""


class FileSender:
    """Sends the parts of `stream` that the other end does not hold, IN_FLIGHT at a time.

    `held`: as in `WantedFile`. `sent_bytes` counts what the other end has taken since."""

    def __init__(self, stream: FileStream, held: bytes = b"") -> None:
        self.stream = stream
        mask = int.from_bytes(held, "little")
        self._left = [nth for nth in range(parts_of(stream.size)) if not mask >> nth & 1][::-1]
        self._in_flight: dict[bytes, int] = {}  # digest of an object: its bytes
        self.sent_bytes = 0

    @property
    def is_over(self) -> bool:
        return not (self._left or self._in_flight)

    def held_bytes(self, objects: Iterable[Progress]) -> int:
        """Returns how much of the stream the other end holds, by what the session's `objects` say of parts on
        their way."""
        size = self.stream.size
        left = sum(min(PART_BYTES, size - nth * PART_BYTES) for nth in self._left)
        left += sum(self._in_flight.values())
        shares = {each.digest: each.held / max(1, each.fragments) for each in objects if not each.incoming}
        return size - left + sum(int(n * shares.get(name, 0.0)) for name, n in self._in_flight.items())

    def step(self, session: Session, now: float) -> None:
        """Offers what may be on its way. Raises OSError if the file cannot be read."""
        stream = self.stream
        while self._left and len(self._in_flight) < IN_FLIGHT:
            offset = self._left[-1] * PART_BYTES
            data = stream.read(offset, min(PART_BYTES, stream.size - offset))
            part = FilePart(stream.digest, stream.size, offset, data, stream.base)
            name = session.offer(FILE, encode_part(part), now, priority=PRIORITY)
            self._left.pop()
            self._in_flight[name] = len(data)

    def handle(self, event: Event) -> bool:
        """Takes an event; returns whether it was about a part. A part that the other end does not take ends
        the stream: it asks again for what it still wants."""
        if not isinstance(event, Delivered | Cancelled) or event.digest not in self._in_flight:
            return False
        taken = self._in_flight.pop(event.digest)
        if isinstance(event, Delivered):
            self.sent_bytes += taken
        else:
            self._left.clear()
        return True

    def withdraw(self, session: Session, now: float) -> None:
        """Takes back what is on its way."""
        for name in self._in_flight:
            session.cancel(name, now)
        self._left.clear()
        self._in_flight.clear()
