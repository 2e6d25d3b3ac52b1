"""What is held of an object, counted in fragments of another length."""

from __future__ import annotations

from onboard.wire.messages import fragments_of


def recounted(held: int, size: int, fragment_bytes: int, other_bytes: int) -> int:
    """Of an object of `size` bytes the fragments of `other_bytes` of which all bytes are in the set `held` of
    fragments of `fragment_bytes`."""
    result = 0
    for index in range(fragments_of(size, other_bytes)):
        first = index * other_bytes // fragment_bytes
        last = (min((index + 1) * other_bytes, size) - 1) // fragment_bytes
        span = (1 << last - first + 1) - 1
        if held >> first & span == span:
            result |= 1 << index
    return result
