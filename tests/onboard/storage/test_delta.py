"""A delta and the old file give the new file back; nothing else is taken for a delta."""

from __future__ import annotations

import contextlib
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.storage import delta


def made(old: bytes, new: bytes) -> bytes:
    out = io.BytesIO()
    list(delta.made(io.BytesIO(old), io.BytesIO(new), len(new), out))
    return out.getvalue()


def applied(old: bytes, packed: bytes) -> bytes:
    out = io.BytesIO()
    list(delta.applied(io.BytesIO(old), io.BytesIO(packed), out))
    return out.getvalue()


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_file_comes_back(old: bytes, new: bytes) -> None:
    assert applied(old, made(old, new)) == new


@given(st.binary(max_size=60))
def test_bytes_that_are_no_delta_make_no_more_than_they_say(stream: bytes) -> None:
    out = io.BytesIO()
    with contextlib.suppress(ValueError):
        list(delta.applied(io.BytesIO(b"old"), io.BytesIO(stream), out))
    assert len(out.getvalue()) <= int.from_bytes(stream[:8], "big")


def test_weights_that_moved_little_take_little_and_several_chunks_come_back() -> None:
    old = struct.pack("<200000f", *(1 + k / 200_000 for k in range(200_000)))
    new = old[:-4] + struct.pack("<f", 3.0)
    packed = made(old, new)
    assert len(packed) < 3000
    assert applied(old, packed) == new


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (b"", "it ends in the middle"),
        (made(b"", b"abcd")[:-1], "it ends in the middle"),
        (struct.pack(">QI", 4, 1 << 30), "a chunk of 1073741824 B"),
        (struct.pack(">QI", 4, 4) + b"none", "a chunk that does not inflate"),
        (struct.pack(">Q", 9) + made(b"", b"abcd")[8:], "a chunk of 4 B, not 9"),
    ],
)
def test_what_is_no_delta_is_refused(packed: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        applied(b"old", packed)
