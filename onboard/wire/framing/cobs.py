"""COBS marks where frames end in a byte stream: 0x00 is only ever a delimiter, whatever the frame holds.

Consistent Overhead Byte Stuffing (Cheshire and Baker, IEEE/ACM Transactions on Networking 7(2), 1999, section
3) puts the length plus one before each run of up to 254 non-zero bytes and removes the zeros. It costs one
byte in 254 at worst, and a receiver that joins in mid-frame is in step again at the next 0x00."""

from __future__ import annotations

_RUN_BYTES = 254
_CODES = tuple(bytes((length + 1,)) for length in range(_RUN_BYTES + 1))


class BadCobs(ValueError):  # noqa: N818 - "bad" says error already
    """A chunk that no encoder writes."""


def wire_bytes(frame_bytes: int) -> int:
    """Return the most bytes that a frame of `frame_bytes` takes on a stream, its delimiter included."""
    return frame_bytes + frame_bytes // _RUN_BYTES + 2


def encode(data: bytes) -> bytes:
    """Return `data` without zero bytes, and one 0x00 after it."""
    blocks = []
    if len(data) < _RUN_BYTES:  # no run can be too long for its code: the frames of slow links
        if 0 not in data:
            return _CODES[len(data)] + data + b"\0"
        for run in data.split(b"\0"):
            blocks.append(_CODES[len(run)])
            blocks.append(run)
    else:
        runs = data.split(b"\0")
        for run in runs:
            while len(run) >= _RUN_BYTES:
                blocks.append(b"\xff" + run[:_RUN_BYTES])
                run = run[_RUN_BYTES:]
            blocks.append(_CODES[len(run)] + run)  # a full block stands for no zero, so the zero is said here
        if runs[-1] and not run:
            blocks.pop()  # unless the full block is the last: nothing follows
    blocks.append(b"\0")
    return b"".join(blocks)


def decode(chunk: bytes) -> bytes:
    """Return the data in `chunk`, which stood between two delimiters. Raises BadCobs."""
    end = len(chunk)
    if end == 0 or 0 in chunk:
        raise BadCobs(f"{end} B of which {chunk.count(0)} are zero: no chunk is empty or holds a zero")
    at = code = chunk[0]
    if at == end:
        return chunk[1:]  # a single block: of 200 random bytes nearly half
    data = bytearray(chunk)
    if end <= _RUN_BYTES:  # every code stands where a zero was
        while at < end:
            data[at] = 0
            at += chunk[at]
    else:
        full = [at] if code == 0xFF else []  # where a code follows a full block, which stands for no zero
        while at < end:
            code = chunk[at]
            data[at] = 0
            at += code
            if code == 0xFF:
                full.append(at)
        for extra in reversed(full):
            del data[extra : extra + 1]  # nothing where the full block is the last
    if at > end:
        raise BadCobs(f"the last block of {code} B passes the end by {at - end} B")
    del data[0]  # moves nothing: a bytearray may begin later than its memory
    return bytes(data)


class Splitter:
    """Splits a stream at the delimiters, holding no more than the largest frame. `overlong`: longer runs."""

    def __init__(self, max_frame_bytes: int, delimiter: bytes = b"\0") -> None:
        self._delimiter = delimiter
        self._max_chunk_bytes = wire_bytes(max_frame_bytes) - 1
        self._rest = b""
        self._skipping = False
        self.overlong = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the chunks that `data` completes, without delimiters and empty ones."""
        parts = data.split(self._delimiter)
        parts[0] = self._rest + parts[0]
        self._rest = parts.pop()
        if self._skipping and parts:
            self._skipping = False
            parts[0] = b""
        chunks = [part for part in parts if 0 < len(part) <= self._max_chunk_bytes]
        if len(chunks) < len(parts):
            self.overlong += sum(len(part) > self._max_chunk_bytes for part in parts)
        if len(self._rest) > self._max_chunk_bytes:
            if not self._skipping:
                self.overlong += 1
            self._skipping = True
        if self._skipping:
            self._rest = b""
        return chunks
