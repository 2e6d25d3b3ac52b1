"""KISS passes frames to a terminal node controller (TNC), the modem of amateur radio, over a byte stream.

Chepponis and Karn, "The KISS TNC: A simple Host-to-TNC communications protocol", 6th ARRL Computer Networking
Conference, 1987. A frame stands between two FENDs, after a byte whose high half is the TNC's port and whose
low half is the command, 0 for data. FEND and FESC in it are escaped. The TNC frames it anew for the air."""

from __future__ import annotations

FEND, FESC, TFEND, TFESC = b"\xc0", b"\xdb", b"\xdc", b"\xdd"
PORTS = range(16)
_DATA = 0  # the command that all others leave to the TNC's own settings (TX delay, persistence, ...)


class BadKiss(ValueError):  # noqa: N818 - "bad" says error already
    """A chunk that is no data frame of this port."""


def wire_bytes(frame_bytes: int) -> int:
    """Return the stream bytes of a frame that looks random, as sealed ones do: 2 of 256 values escape."""
    return frame_bytes + -(-frame_bytes // 128) + 3


def most_bytes(frame_bytes: int) -> int:
    """Return a frame's bytes on the stream at most: every byte escaped."""
    return 2 * (frame_bytes + 1) + 2


def encode(data: bytes, port: int = 0) -> bytes:
    """Return `data` as a frame for the TNC's `port`. Raises ValueError for a port that KISS has not."""
    if port not in PORTS:
        raise ValueError(f"KISS port {port} must be 0..15")
    framed = bytes((port << 4 | _DATA,)) + data
    return FEND + framed.replace(FESC, FESC + TFESC).replace(FEND, FESC + TFEND) + FEND


def decode(chunk: bytes, port: int = 0) -> bytes:
    """Return the data of `chunk`, which stood between two FENDs. Raises BadKiss if it is not of `port`."""
    first, *escaped = chunk.split(FESC)
    pieces = [first]
    for piece in escaped:
        if piece[:1] == TFEND:
            pieces.append(FEND)
        elif piece[:1] == TFESC:
            pieces.append(FESC)
        else:
            raise BadKiss(f"{piece[:1].hex() or 'nothing'} behind FESC: neither TFEND nor TFESC")
        pieces.append(piece[1:])
    framed = b"".join(pieces)
    if not framed or framed[0] != port << 4 | _DATA:
        raise BadKiss(f"{framed[:1].hex() or 'nothing'} leads it: not data of port {port}")
    return framed[1:]
