"""How frames stand in what a port carries, the same for a live port and for a recording of one.

On a byte stream no frame looks twice the same, so that no line's habit meets the same bytes twice. Lines eat
some byte values (XON and XOFF, 0x11 and 0x13) and double others (telnet's 0xFF). A frame that holds one would
be lost however often it is sent. So the byte values of a frame change places, in pairs, and which with which
is said by the last bytes of the tag, which is another for every transmission. Nothing travels for it, and
doing it twice undoes it. This hides nothing from anybody: the tables are public. Through a TNC frames are
whitened too: its serial side has a line's habits, and whether its air side scrambles depends on the TNC.

Whitened, all byte values are as frequent in many frames, which tells what is wrong with a line: a value that
never comes is eaten, one that comes in pairs alone is doubled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import shake_128

from hw_profiles import Link
from onboard.link.ports.port import LineFault
from onboard.wire.framing import cobs, kiss
from onboard.wire.framing.frame import OVERHEAD_BYTES, TAG_BYTES


class FramedStream:
    """Whitened frames between delimiters. Holds no more of a stream than one largest frame.

    `opening` goes out first, and again after a frame that was cut: the other end may hold half of one.
    """

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
    """COBS with a zero byte behind each frame."""
    return FramedStream(cobs.Splitter(max_frame_bytes), b"\0", cobs.encode, cobs.decode)


def kiss_stream(max_frame_bytes: int, port: int) -> FramedStream:
    """KISS, for a TNC whose port is `port`: data of another one is no frame."""
    splitter = cobs.Splitter(kiss.most_bytes(max_frame_bytes), kiss.FEND)
    return FramedStream(splitter, kiss.FEND, partial(kiss.encode, port=port), partial(kiss.decode, port=port))


class Datagrams:
    """Each frame by itself, as it is."""

    opening = b""

    def __init__(self, max_frame_bytes: int, _port: int = 0) -> None:
        self._max_frame_bytes = max_frame_bytes
        self.check = LineCheck(b"")
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
    """The framing at its beginning, for the largest frame's bytes and the port of a TNC."""
    wire_bytes: Callable[[int], int]
    """What a frame of that many bytes takes in this framing; see `PortFacts.wire_bytes`."""


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
        """All values but `nth` in the order of 16 bits each of SHAKE-128: the first is exchanged for the
        second, the third with the fourth. The last stays, and so does `nth`, by which the table is found
        again."""
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
    """`frame` with its byte values exchanged; of what `whiten` gave it gives the frame again.

    A frame of up to 255 B is cut into four stretches, each with a table of its own, so that also one that
    holds many different values has as good a chance as random bytes have. A longer one holds nearly all
    values anyway, and one table does: in `translate` it costs 0.6 ns a byte, where Python has nothing as
    quick for a sequence that changes from byte to byte, as CCSDS 131.0-B's randomizer has it, but numpy,
    which takes 30 MB. What has no more than 8 B is no frame and stays as it is.
    """
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
    """What is wrong with a line, from the chunks that came in and were no frames, in an operator's words.

    Where a lot of values never come the frames hold few, and that tells nothing. What is too short for a
    frame is no frame of the other end's, but noise. delimiter: the byte that ends a chunk, and is in none.
    """

    def __init__(self, delimiter: bytes) -> None:
        self._values = set(range(256)).difference(delimiter)
        self._good = self._good_bytes = self._damaged = self._noise = 0
        self._sample = bytearray()
        self._ff = self._ff_pairs = 0

    def frame(self, frame_bytes: int) -> None:
        """A chunk was a frame of so many bytes, or looks like one."""
        self._good += 1
        self._good_bytes += frame_bytes
        if self._good > _REMEMBERED:
            self._good, self._good_bytes = self._good // 2, self._good_bytes // 2
            self._damaged, self._noise = self._damaged // 2, self._noise // 2

    def refused(self, frame_bytes: int, chunk: bytes) -> None:
        """What looked like a frame was none of the other end's."""
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

    def fault(self, link: Link) -> LineFault | None:
        """What is wrong; None for nothing, or nothing that could be told from chance."""
        if self._damaged >= _DAMAGED:
            named = self._bytes_wrong()
            if named is not None:
                return named
        if self._noise >= _NOISE and self._noise >= self._damaged:
            return LineFault(
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
            return LineFault("bit-errors", f"{self._damaged} of {heard} frames came in damaged: {causes}")
        return None

    def _bytes_wrong(self) -> LineFault | None:
        if self._ff >= _DOUBLED and self._ff == 2 * self._ff_pairs:
            return LineFault(
                "bytes-doubled",
                "every 0xFF comes doubled: a terminal server on the line speaks telnet (RFC 854); set it raw",
            )
        count, missing = len(self._sample), self._values.difference(self._sample)
        is_seven = missing >= set(range(0x80, 0x100)) and len(missing) <= _SEVEN_BITS_MOST_MISSING
        if count >= _SEVEN_BITS_BYTES and is_seven:
            return LineFault("seven-bits", "no byte above 0x7F comes in: the line has 7 data bits")
        if count >= _EATEN_BYTES and missing >= _FLOW and len(missing) <= _MOST_MISSING:
            why = "XON and XOFF (0x11, 0x13) never come in: software flow control on the line eats them"
        elif count >= _CR_BYTES and missing == {0x0D}:
            why = "CR (0x0D) never comes in: a terminal on the line turns it into LF; set it raw"
        elif count >= _ANY_EATEN_BYTES and 0 < len(missing) <= _MOST_EATEN:
            names = ", ".join(f"0x{value:02X}" for value in sorted(missing))
            why = f"{names} never come in: the line eats or translates them"
        else:
            return None
        return LineFault("bytes-eaten", why)
