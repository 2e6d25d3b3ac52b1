"""On a byte stream every frame looks like noise, so that no line's habit meets the same bytes twice.

Lines eat some byte values (XON and XOFF, 0x11 and 0x13) and double others (telnet's 0xFF). A frame that holds
one would be lost however often it is sent. So all of a frame but its tag is XORed with a stretch of one table
of pseudo-random bytes, as CCSDS 131.0-B's randomizer does with its sequence; where the stretch begins is said
by the tag, which is another for every transmission. Nothing travels for it, and doing it twice undoes it.

It hides nothing from anybody: the table is public. What is to be secret is encrypted (`cipher`).
"""

from __future__ import annotations

from hashlib import shake_128

import numpy as np

from onboard.wire.frame import TAG_BYTES

_STARTS = 1 << 16
_LONGEST_BYTES = 1 << 16  # above the largest MTU that a profile may have
_TABLE = shake_128(b"spacedml whitening").digest(_STARTS + _LONGEST_BYTES)
_ARRAY = np.frombuffer(_TABLE, np.uint8)
_LONG_BYTES = 160  # from here on numpy is the quicker one: at 1,400 B by 2.6 times


def whiten(frame: bytes) -> bytes:
    """`frame` with all but its last 8 B XORed; of what `whiten` gave it gives the frame again.

    What has no more than 8 B is no frame and stays as it is.
    """
    body_bytes = len(frame) - TAG_BYTES
    if not 0 < body_bytes <= _LONGEST_BYTES:
        return frame
    start = frame[-2] << 8 | frame[-1]
    if body_bytes >= _LONG_BYTES:
        body = np.frombuffer(frame, np.uint8, body_bytes) ^ _ARRAY[start : start + body_bytes]
        return body.tobytes() + frame[-TAG_BYTES:]
    white = int.from_bytes(frame[:-TAG_BYTES], "little")
    white ^= int.from_bytes(_TABLE[start : start + body_bytes], "little")
    return white.to_bytes(body_bytes, "little") + frame[-TAG_BYTES:]
