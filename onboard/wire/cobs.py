"""COBS marks where frames end in a byte stream: 0x00 only ever means "here", whatever the frame holds.

Consistent Overhead Byte Stuffing (Cheshire and Baker, IEEE/ACM Transactions on Networking 7(2), 1999,
section 3): each run of up to 254 non-zero bytes is led by its length plus one, and the zeros fall
away. It costs one byte in 254 at worst, and a receiver that joins in mid-frame is in step again at
the next 0x00.
"""

from __future__ import annotations

_RUN_BYTES = 254
_CODES = tuple(bytes((length + 1,)) for length in range(_RUN_BYTES + 1))


class BadCobs(ValueError):  # noqa: N818 - "bad" says error already
    """A chunk that no encoder writes."""


def wire_bytes(frame_bytes: int) -> int:
    """The most bytes that a frame of `frame_bytes` takes on a stream, its delimiter included."""
    return frame_bytes + frame_bytes // _RUN_BYTES + 2


def encode(data: bytes) -> bytes:
    """`data` without a zero byte, and one 0x00 behind it."""
    runs = data.split(b"\0")
    if len(data) < _RUN_BYTES:  # no run can be too long for its code: the frames of slow links
        return b"".join([_CODES[len(run)] + run for run in runs]) + b"\0"
    blocks: list[bytes] = []
    for run in runs:
        while len(run) > _RUN_BYTES:
            blocks += (b"\xff", run[:_RUN_BYTES])
            run = run[_RUN_BYTES:]
        blocks += (_CODES[len(run)], run)
        if len(run) == _RUN_BYTES:
            blocks.append(b"\x01")  # a full block stands for no zero, so the zero is said here
    if len(run) == _RUN_BYTES:
        blocks.pop()  # unless it is the last: nothing follows
    blocks.append(b"\0")
    return b"".join(blocks)


def decode(chunk: bytes) -> bytes:
    """The data in `chunk`, which is what stood between two delimiters. Raises BadCobs."""
    end = len(chunk)
    if end == 0 or 0 in chunk:
        raise BadCobs(f"{end} B of which {chunk.count(0)} are zero: no chunk is empty or holds a zero")
    at = 0
    if end <= _RUN_BYTES:  # every code stands where a zero was
        data = bytearray(chunk)
        while at < end:
            code = data[at]
            data[at] = 0
            at += code
        if at > end:
            raise BadCobs(f"the last block of {code} B passes the end by {at - end} B")
        return bytes(data[1:])
    pieces: list[bytes] = []
    while at < end:
        code = chunk[at]
        following = at + code
        pieces.append(chunk[at + 1 : following])
        if code <= _RUN_BYTES and following < end:
            pieces.append(b"\0")
        at = following
    if at > end:
        raise BadCobs(f"the last block of {code} B passes the end by {at - end} B")
    return b"".join(pieces)


class Splitter:
    """Cuts a stream into chunks at the delimiters and holds no more of it than one largest frame.

    `overlong` counts runs without a delimiter that were longer than any frame: line noise, or a
    peer at another speed.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_chunk_bytes = wire_bytes(max_frame_bytes) - 1
        self._rest = b""
        self._skipping = False
        self.overlong = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The chunks that `data` completes, without delimiters, empty ones left out."""
        first, *others = data.split(b"\0")
        parts = [self._rest + first, *others]
        self._rest = parts.pop()
        chunks = []
        for part in parts:
            if self._skipping:
                self._skipping = False
            elif len(part) > self._max_chunk_bytes:
                self.overlong += 1
            elif part:
                chunks.append(part)
        if len(self._rest) > self._max_chunk_bytes:
            if not self._skipping:
                self.overlong += 1
            self._skipping = True
        if self._skipping:
            self._rest = b""
        return chunks
