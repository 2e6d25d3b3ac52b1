"""Signs travel a bit each, or in fewer where they are less than random.

A kernel's signs form patches, and a dense row sees the maps of a convolution: eight neighbours in a byte are
not alike in all 256 ways. Huffman codes for bytes (DEFLATE, RFC 1951, of Python's own zlib) take 1680 bytes
for the 2165 of LeNet-5's second convolution after a first round at 0.1 bit a weight, and 1582 for 1715 after
a third. A coder with two neighbours as its context would take 1411 and 1381, and in Python ten times as long.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)  # the second one finds bases that are alike
LEVEL = 9
RAW = -15  # DEFLATE without zlib's header and checksum, a window of 2^15 bytes


def encode(signs: npt.NDArray[np.bool_]) -> tuple[bool, bytes]:
    """Whether they are deflated, and the bytes, of signs (S,) (True: +1)."""
    plain = np.packbits(signs).tobytes()
    best = min((_deflated(plain, strategy) for strategy in STRATEGIES), key=len)
    return (True, best) if len(best) < len(plain) else (False, plain)


def decode(data: bytes, at: int, count: int, deflated: bool) -> tuple[npt.NDArray[np.uint8], int]:
    """`count` signs (0 or 1) from the bytes that begin at `at`, and where these end.

    Never makes more bytes than `count` signs need. Errors: ValueError.
    """
    size = -(-count // 8)
    plain, end = _inflated(data[at:], size) if deflated else (data[at : at + size], size)
    if len(plain) != size:
        raise ValueError(f"{len(plain)} bytes of signs, {count} signs take {size}")
    bits = np.unpackbits(np.frombuffer(plain, np.uint8))
    if bits[count:].any():
        raise ValueError("bits are set after the last sign")
    return bits[:count], at + end


def _deflated(plain: bytes, strategy: int) -> bytes:
    coder = zlib.compressobj(LEVEL, zlib.DEFLATED, RAW, 9, strategy)
    return coder.compress(plain) + coder.flush()


def _inflated(data: bytes, size: int) -> tuple[bytes, int]:
    """Exactly the one stream at the start of `data`, if it has `size` bytes in it, and its length."""
    coder = zlib.decompressobj(RAW)
    try:
        # One byte more than there may be: so a stream that ends in time shows its end, and no bomb goes off.
        plain = coder.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"signs: {error}") from None
    if len(plain) > size or not coder.eof:
        raise ValueError(f"deflated signs of other than {size} bytes")
    return plain, len(data) - len(coder.unused_data)
