"""What is held of an object, counted in fragments of another length."""

from __future__ import annotations

import re

from onboard.wire.messages import fragments_of

_RUN = re.compile("1+")


def recounted(held: int, size: int, fragment_bytes: int, other_bytes: int) -> int:
    """Of an object of `size` bytes the fragments of `other_bytes` of which all bytes are in the set `held` of
    fragments of `fragment_bytes`. Goes by runs of them, as a peer may ask for it with 65,535 fragments."""
    count = fragments_of(size, other_bytes)
    bits = bytearray(b"0" * count)
    for run in _RUN.finditer(f"{held:b}"[::-1]):
        end = min(run.end() * fragment_bytes, size)
        first = -(-run.start() * fragment_bytes // other_bytes)
        last = count if end == size else end // other_bytes
        if first < last:
            bits[first:last] = b"1" * (last - first)
    return int(bits[::-1] or b"0", 2)
