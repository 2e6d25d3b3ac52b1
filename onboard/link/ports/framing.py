"""How frames stand in what a port carries, the same for a live port and for a recording of one.

Lines eat some byte values (XON and XOFF, 0x11 and 0x13) and double others (telnet's 0xFF), and a frame that
holds one would be lost however often it is sent. So on a byte stream each transmission is whitened
differently: its byte values are swapped in pairs, and the last bytes of its tag, new for each transmission,
say which. Nothing travels for it. It hides nothing, as the tables are public. Frames to a TNC are whitened
too: its serial side is such a line, and not every TNC scrambles on the air.

In whitened frames all byte values are equally frequent, which tells what is wrong with a line: a value that
never comes is eaten, one that comes only in pairs is doubled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import shake_128

from hw_profiles import Link
from onboard.link.ports.port import PortEvent, line_fault
from onboard.wire.framing import cobs, kiss
from onboard.wire.framing.frame import OVERHEAD_BYTES, TAG_BYTES


class FramedStream:
    """Whitened frames between delimiters. It holds no more of a stream than one largest frame."""

    def __init__(
        self,
        splitter: cobs.Splitter,
        delimiter: bytes,
        stuff: Callable[[bytes], bytes],
        unstuff: Callable[[bytes], bytes],
    ) -> None:
        """`unstuff` raises BadCobs or BadKiss for a chunk that `stuff` did not write."""
        self.opening = delimiter
        self.check = LineCheck(delimiter)
        self._splitter, self._stuff, self._unstuff = splitter, stuff, unstuff
        self._bad = 0

    @property
    def broken(self) -> int:
        """Pieces that were no frame by their framing alone, or longer than any."""
        return self._bad + self._splitter.overlong

    def encode(self, frame: bytes) -> bytes:
        return self._stuff(whiten(frame))

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole in what came in, however it is cut. What is no frame is counted."""
        frames = []
        for chunk in self._splitter.feed(data):
            try:
                frame = whiten(self._unstuff(chunk))
            except (cobs.BadCobs, kiss.BadKiss):
                self._bad += 1
                self.check.broken(chunk)
                continue
            frames.append(frame)
            self.check.frame(len(frame))
        return frames


def cobs_stream(max_frame_bytes: int, _port: int = 0) -> FramedStream:
    """COBS with a zero byte after each frame."""
    return FramedStream(cobs.Splitter(max_frame_bytes), b"\0", cobs.encode, cobs.decode)


def kiss_stream(max_frame_bytes: int, port: int) -> FramedStream:
    """KISS, for a TNC whose port is `port`: data of another one is no frame."""
    splitter = cobs.Splitter(kiss.most_bytes(max_frame_bytes), kiss.FEND)
    return FramedStream(splitter, kiss.FEND, partial(kiss.encode, port=port), partial(kiss.decode, port=port))


class Datagrams:
    """Each frame by itself, as it is."""

    def __init__(self, max_frame_bytes: int, _port: int = 0) -> None:
        self._max_frame_bytes = max_frame_bytes
        self.broken = 0

    def encode(self, frame: bytes) -> bytes:
        return frame

    def feed(self, data: bytes) -> list[bytes]:
        if len(data) > self._max_frame_bytes:
            self.broken += 1
            return []
        return [data]


Framing = FramedStream | Datagrams


@dataclass(frozen=True, slots=True)
class FramingKind:
    """How to begin a framing, and what it adds."""

    make: Callable[[int, int], Framing]
    """Makes the framing, given the largest frame's bytes and the TNC's port."""
    wire_bytes: Callable[[int], int]
    """The bytes that a frame of that many takes in it, see `PortFacts.wire_bytes`."""


FRAMINGS: dict[str, FramingKind] = {
    "cobs": FramingKind(cobs_stream, cobs.wire_bytes),
    "kiss": FramingKind(kiss_stream, kiss.wire_bytes),
    "datagram": FramingKind(Datagrams, lambda size: size),
}
"""Every framing by the name that a recording knows it by."""


# -- whitening -----------------------------------------------------------------------------------------

_LONGEST_STRETCHED_BYTES = 255
_STRETCHES = 4


class _Tables(dict[int, bytes]):
    """Made as they are used: all of them at once take 10 ms, on a board many times as long."""

    def __missing__(self, nth: int) -> bytes:
        """All values but `nth` are ordered by 16 bits each of SHAKE-128, and neighbours swapped in pairs. The
        last one and `nth` stay, and `nth` tells which table it was."""
        ranks = shake_128(b"spacedml whitening" + bytes((nth,))).digest(2 * 256)
        order = [value for value in range(256) if value != nth]
        order.sort(key=lambda value: ranks[2 * value : 2 * value + 2])
        table = bytearray(range(256))
        for one, other in zip(order[::2], order[1::2], strict=False):
            table[one], table[other] = other, one
        self[nth] = found = bytes(table)
        return found


_TABLES = _Tables()


def whiten(frame: bytes) -> bytes:
    """Return `frame` with its byte values swapped; whitening twice restores it.

    A frame of up to 255 B is cut into four stretches with a table each, so that one that holds many values
    has as good a chance as random bytes have. A longer one holds nearly all values anyway, and one table
    does: `translate` costs 0.6 ns a byte. A sequence that changes from byte to byte (CCSDS 131.0-B's
    randomizer) is as quick only with numpy, which takes 30 MB. Up to 8 B are no frame and stay."""
    size = len(frame)
    if size > _LONGEST_STRETCHED_BYTES:
        return frame.translate(_TABLES[frame[-1]])
    if size <= TAG_BYTES:
        return frame
    body_bytes = size - _STRETCHES
    one = body_bytes // _STRETCHES
    two = one + one
    first, second, third, fourth = frame[-_STRETCHES:]
    return b"".join(
        (
            frame[:one].translate(_TABLES[first]),
            frame[one:two].translate(_TABLES[second]),
            frame[two : two + one].translate(_TABLES[third]),
            frame[two + one : body_bytes].translate(_TABLES[fourth]),
            frame[body_bytes:],
        )
    )


# -- what is wrong with a line -------------------------------------------------------------------------

_SAMPLE_BYTES = 8192
_SHORT_BYTES = OVERHEAD_BYTES + 1  # of a chunk that can hold a frame
_NOISE = 8  # pieces of it
_DAMAGED = 5  # frames
_DAMAGED_SHARE, _TIMES_PROFILE = 0.03, 3.0  # of them, and of what the profile expects
_DOUBLED = 6  # 0xFF: three pairs and nothing else have a chance of 1 in 16 million
_EATEN_BYTES = 1300  # of which two values are missing by chance once in 27,000 times
_CR_BYTES = 2300  # of which one certain value is missing by chance once in 8,000 times
_ANY_EATEN_BYTES, _MOST_EATEN = 4096, 8
_MOST_MISSING = 12  # of 1,300 B of many values 2 are by chance
_SEVEN_BITS_BYTES, _SEVEN_BITS_MOST_MISSING = 200, 192  # of 7 bits 154 are, 26 of them by chance
_FLOW = {0x11, 0x13}
_REMEMBERED = 4096  # frames; then older ones count half


class LineCheck:
    """Diagnoses a line from the incoming chunks that were no frames, in an operator's words. If many values
    never come, the frames hold few, and that tells nothing. What is too short for a frame is noise.
    `delimiter`: the byte that ends a chunk, and is in none."""

    def __init__(self, delimiter: bytes) -> None:
        self._values = set(range(256)).difference(delimiter)
        self._good = self._good_bytes = self._damaged = self._noise = 0
        self._sample = bytearray()
        self._ff = self._ff_pairs = 0

    def frame(self, frame_bytes: int) -> None:
        """Note a chunk that was a frame of this many bytes, or looks like one."""
        self._good += 1
        self._good_bytes += frame_bytes
        if self._good > _REMEMBERED:
            self._good, self._good_bytes = self._good // 2, self._good_bytes // 2
            self._damaged, self._noise = self._damaged // 2, self._noise // 2

    def refused(self, frame_bytes: int, chunk: bytes) -> None:
        """Note that what looked like a frame was none of the other end's."""
        self._good, self._good_bytes = self._good - 1, self._good_bytes - frame_bytes
        self.broken(chunk)

    def broken(self, chunk: bytes) -> None:
        if len(chunk) < _SHORT_BYTES:
            self._noise += 1
            return
        self._damaged += 1
        self._ff += chunk.count(b"\xff")
        self._ff_pairs += chunk.count(b"\xff\xff")
        self._sample += chunk
        if len(self._sample) > _SAMPLE_BYTES:
            del self._sample[: _SAMPLE_BYTES // 2]

    def fault(self, link: Link) -> PortEvent | None:
        """Return what is wrong; None for nothing, or nothing that differs from chance."""
        if self._damaged >= _DAMAGED:
            named = self._bytes_wrong()
            if named is not None:
                return named
        if self._noise >= _NOISE and self._noise >= self._damaged:
            return line_fault(
                "noise",
                f"{self._noise} pieces of noise came in between frames: a receiver without a squelch, or a "
                "transmitter that keys late and spoils the first bytes of its bursts",
            )
        heard = self._good + self._damaged
        mean_bytes = self._good_bytes / max(1, self._good)
        expected = heard * (1 - (1 - link.bit_error_rate) ** (8 * mean_bytes))
        is_more = self._damaged > max(_TIMES_PROFILE * expected, _DAMAGED_SHARE * heard)
        if self._damaged >= _DAMAGED and is_more:
            causes = "bit errors, the line is noisier than its profile, or set to another speed"
            if not self._good:
                causes += "; or the other end is of a version that does not whiten its frames"
            return line_fault("bit-errors", f"{self._damaged} of {heard} frames came in damaged: {causes}")
        return None

    def _bytes_wrong(self) -> PortEvent | None:
        if self._ff >= _DOUBLED and self._ff == 2 * self._ff_pairs:
            return line_fault(
                "bytes-doubled",
                "every 0xFF comes doubled: a terminal server on the line speaks telnet (RFC 854); set it raw",
            )
        count, missing = len(self._sample), self._values.difference(self._sample)
        is_seven = missing >= set(range(0x80, 0x100)) and len(missing) <= _SEVEN_BITS_MOST_MISSING
        if count >= _SEVEN_BITS_BYTES and is_seven:
            return line_fault("seven-bits", "no byte above 0x7F comes in: the line has 7 data bits")
        if count >= _EATEN_BYTES and missing >= _FLOW and len(missing) <= _MOST_MISSING:
            why = "XON and XOFF (0x11, 0x13) never come in: software flow control on the line eats them"
        elif count >= _CR_BYTES and missing == {0x0D}:
            why = "CR (0x0D) never comes in: a terminal on the line turns it into LF; set it raw"
        elif count >= _ANY_EATEN_BYTES and 0 < len(missing) <= _MOST_EATEN:
            names = ", ".join(f"0x{value:02X}" for value in sorted(missing))
            why = f"{names} never come in: the line eats or translates them"
        else:
            return None
        return line_fault("bytes-eaten", why)
