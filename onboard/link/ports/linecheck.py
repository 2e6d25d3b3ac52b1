"""What is wrong with a line, from the chunks that came in and were no frames, in an operator's words.

Frames are whitened, so all byte values are as frequent in many of them: one that never comes is eaten, one
that comes in pairs alone is doubled. Where a lot of values never come the frames hold few, and that tells
nothing. What is too short for a frame is no frame of the other end's, but noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from hw_profiles import Link
from onboard.wire.framing.frame import OVERHEAD_BYTES

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


@dataclass(frozen=True, slots=True)
class LineDiagnosis:
    """`kind` in one word for programs, `why` for a person."""

    kind: str
    why: str


class LineCheck:
    """Of what one port hears. delimiter: the byte that ends a chunk, which is in none."""

    def __init__(self, delimiter: int) -> None:
        self._delimiter = delimiter
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
        """A chunk was no frame."""
        if len(chunk) < _SHORT_BYTES:
            self._noise += 1
            return
        self._damaged += 1
        self._ff += chunk.count(b"\xff")
        self._ff_pairs += chunk.count(b"\xff\xff")
        self._sample += chunk
        if len(self._sample) > _SAMPLE_BYTES:
            del self._sample[: _SAMPLE_BYTES // 2]

    def fault(self, link: Link) -> LineDiagnosis | None:
        """What is wrong; None for nothing, or nothing that could be told from chance."""
        if self._damaged >= _DAMAGED:
            named = self._bytes_wrong()
            if named is not None:
                return named
        if self._noise >= _NOISE and self._noise >= self._damaged:
            return LineDiagnosis(
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
            return LineDiagnosis("bit-errors", f"{self._damaged} of {heard} frames came in damaged: {causes}")
        return None

    def _bytes_wrong(self) -> LineDiagnosis | None:
        if self._ff >= _DOUBLED and self._ff == 2 * self._ff_pairs:
            return LineDiagnosis(
                "bytes-doubled",
                "every 0xFF comes doubled: a terminal server on the line speaks telnet (RFC 854); set it raw",
            )
        count, missing = len(self._sample), set(range(256)) - set(self._sample) - {self._delimiter}
        is_seven = missing >= set(range(0x80, 0x100)) and len(missing) <= _SEVEN_BITS_MOST_MISSING
        if count >= _SEVEN_BITS_BYTES and is_seven:
            return LineDiagnosis("seven-bits", "no byte above 0x7F comes in: the line has 7 data bits")
        if count >= _EATEN_BYTES and missing >= _FLOW and len(missing) <= _MOST_MISSING:
            return LineDiagnosis(
                "bytes-eaten",
                "XON and XOFF (0x11, 0x13) never come in: software flow control on the line eats them",
            )
        if count >= _CR_BYTES and missing == {0x0D}:
            return LineDiagnosis(
                "bytes-eaten", "CR (0x0D) never comes in: a terminal on the line turns it into LF; set it raw"
            )
        if count >= _ANY_EATEN_BYTES and 0 < len(missing) <= _MOST_EATEN:
            names = ", ".join(f"0x{value:02X}" for value in sorted(missing))
            return LineDiagnosis("bytes-eaten", f"{names} never come in: the line eats or translates them")
        return None
