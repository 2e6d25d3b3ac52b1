"""How frames stand in what a port carries, the same for a live port and for a recording of one.

A framing turns a frame into the bytes that go out, and the bytes that come in, however they are cut, into
frames. What is no frame is counted, never raised. On a byte stream frames are whitened (`link.whitening`),
through a TNC too: its serial side has a line's habits, and whether its air side scrambles depends on the TNC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from onboard.link.ports.linecheck import LineCheck
from onboard.link.ports.whitening import whiten
from onboard.wire.framing import cobs, kiss


class Framing(Protocol):
    """See the module. `opening` goes out first, and again after a frame that was cut: the other end may hold
    half of one."""

    opening: bytes
    check: LineCheck

    @property
    def broken(self) -> int:
        """Pieces that were no frame by their framing alone."""
        ...

    def encode(self, frame: bytes) -> bytes: ...

    def feed(self, data: bytes) -> list[bytes]: ...


class CobsStream:
    """COBS with a zero byte behind each frame. Holds no more of a stream than one largest frame."""

    opening = b"\0"

    def __init__(self, max_frame_bytes: int) -> None:
        self._splitter = cobs.Splitter(max_frame_bytes)
        self.check = LineCheck(self.opening[0])
        self._bad = 0

    @property
    def broken(self) -> int:
        """Chunks between delimiters that were no COBS, or longer than any frame."""
        return self._bad + self._splitter.overlong

    def encode(self, frame: bytes) -> bytes:
        """The bytes that go out."""
        return cobs.encode(whiten(frame))

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes."""
        frames = []
        for chunk in self._splitter.feed(data):
            try:
                frame = whiten(cobs.decode(chunk))
            except cobs.BadCobs:
                self._bad += 1
                self.check.broken(chunk)
                continue
            frames.append(frame)
            self.check.frame(len(frame))
        return frames


class KissStream:
    """KISS, for a TNC whose port is `port`. Holds no more of a stream than one largest frame."""

    opening = kiss.FEND

    def __init__(self, max_frame_bytes: int, port: int) -> None:
        self._splitter = cobs.Splitter(kiss.most_bytes(max_frame_bytes), kiss.FEND)
        self._port = port
        self.check = LineCheck(self.opening[0])
        self._bad = 0

    @property
    def broken(self) -> int:
        """Chunks between FENDs that were no data of this port, or longer than any frame."""
        return self._bad + self._splitter.overlong

    def encode(self, frame: bytes) -> bytes:
        """The bytes that go out."""
        return kiss.encode(whiten(frame), self._port)

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes."""
        frames = []
        for chunk in self._splitter.feed(data):
            try:
                frame = whiten(kiss.decode(chunk, self._port))
            except kiss.BadKiss:
                self._bad += 1
                self.check.broken(chunk)
                continue
            frames.append(frame)
            self.check.frame(len(frame))
        return frames


class Datagrams:
    """Each frame by itself; what is longer than any frame is none."""

    opening = b""

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self.check = LineCheck(-1)
        self.broken = 0

    def encode(self, frame: bytes) -> bytes:
        """The frame itself."""
        return frame

    def feed(self, data: bytes) -> list[bytes]:
        """The frame in one datagram, if it can be one."""
        if len(data) > self._max_frame_bytes:
            self.broken += 1
            return []
        return [data]


@dataclass(frozen=True, slots=True)
class FramingKind:
    """How to begin a framing, and what it adds."""

    make: Callable[[int, int], Framing]
    """The framing at its beginning, for the largest frame's bytes and the port of a TNC."""
    wire_bytes: Callable[[int], int]
    """What a frame of that many bytes takes in this framing; see `PortFacts.wire_bytes`."""


FRAMINGS: dict[str, FramingKind] = {
    "cobs": FramingKind(lambda max_frame_bytes, _: CobsStream(max_frame_bytes), cobs.wire_bytes),
    "kiss": FramingKind(KissStream, kiss.wire_bytes),
    "datagram": FramingKind(lambda max_frame_bytes, _: Datagrams(max_frame_bytes), lambda size: size),
}
"""Every framing by the name that a recording knows it by."""
