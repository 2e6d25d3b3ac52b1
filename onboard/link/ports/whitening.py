"""On a byte stream no frame looks twice the same, so that no line's habit meets the same bytes twice.

Lines eat some byte values (XON and XOFF, 0x11 and 0x13) and double others (telnet's 0xFF). A frame that holds
one would be lost however often it is sent. So the byte values of a frame change places, in pairs, and which
with which is said by the last bytes of the tag, which is another for every transmission. Nothing travels for
it, and doing it twice undoes it.

A frame of up to 255 B is cut into four stretches, each with a table of its own, so that also one that holds
many different values has as good a chance as random bytes have. A longer one holds nearly all values anyway,
and one table does: in `translate` it costs 0.6 ns a byte, where Python has nothing as quick for a sequence
that changes from byte to byte, as CCSDS 131.0-B's randomizer has it, but numpy, which takes 30 MB.

It hides nothing from anybody: the tables are public. What is to be secret is encrypted (`cipher`).
"""

from __future__ import annotations

from hashlib import shake_128

from onboard.wire.framing.frame import TAG_BYTES

_LONGEST_STRETCHED_BYTES = 255
_STRETCHES = 4


class _Tables(dict[int, bytes]):
    """Made as they are used: all of them at once take 10 ms, on a board many times as long."""

    def __missing__(self, nth: int) -> bytes:
        self[nth] = table = _table(nth)
        return table


def _table(nth: int) -> bytes:
    """All values but `nth` in the order of 16 bits each of SHAKE-128: the first is exchanged for the second,
    the third with the fourth. The last stays, and so does `nth`, by which the table is found again."""
    ranks = shake_128(b"spacedml whitening" + bytes((nth,))).digest(2 * 256)
    order = [value for value in range(256) if value != nth]
    order.sort(key=lambda value: ranks[2 * value : 2 * value + 2])
    table = bytearray(range(256))
    for one, other in zip(order[::2], order[1::2], strict=False):
        table[one], table[other] = other, one
    return bytes(table)


_TABLES = _Tables()


def whiten(frame: bytes) -> bytes:
    """`frame` with its byte values exchanged; of what `whiten` gave it gives the frame again.

    What has no more than 8 B is no frame and stays as it is.
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
