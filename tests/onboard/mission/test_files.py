"""Parts and requests come out as they went in; no bytes make more of them than the format allows."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.mission.files import (
    IN_FLIGHT,
    MAX_FILE_BYTES,
    PART_BYTES,
    FilePart,
    FileRequest,
    FileSender,
    FileStream,
    WantedFile,
    decode_part,
    decode_request,
    encode_part,
    encode_request,
    parts_of,
)
from onboard.wire.events import Cancelled, Delivered, Progress
from onboard.wire.messages import BadMessage, digest
from tests.onboard.wire.examples import DIGEST, PART, REQUEST, VECTORS

digests = st.binary(min_size=16, max_size=16)
wanted = st.builds(
    WantedFile, digest=digests, size=st.integers(0, MAX_FILE_BYTES), base=st.just(b"") | digests,
    held=st.binary(max_size=1024), bases=st.lists(digests, max_size=8).map(tuple),
)  # fmt: skip


def test_golden_bytes() -> None:
    assert encode_part(PART) == (VECTORS / "file.bin").read_bytes()
    assert encode_request(REQUEST) == (VECTORS / "request.bin").read_bytes()


@given(digests, st.integers(1, 3 * PART_BYTES), st.integers(0, 2), st.just(b"") | digests)
def test_a_part_survives_its_encoding(digest: bytes, size: int, nth: int, base: bytes) -> None:
    offset = min(nth, parts_of(size) - 1) * PART_BYTES
    part = FilePart(digest, size, offset, bytes(min(PART_BYTES, size - offset)), base.strip(b"\0") and base)
    assert decode_part(encode_part(part)) == part


@given(st.integers(0, 2**32 - 1), st.lists(wanted, max_size=8).map(tuple))
def test_a_request_survives_its_encoding(asking: int, files: tuple[WantedFile, ...]) -> None:
    request = FileRequest(asking=asking, files=files)
    assert decode_request(encode_request(request)) == request


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_decoders(payload: bytes) -> None:
    for decode in (decode_part, decode_request):
        with contextlib.suppress(BadMessage):
            decode(payload)


@pytest.mark.parametrize(
    "part",
    [
        FilePart(DIGEST, 0, 0, b""),
        FilePart(DIGEST, MAX_FILE_BYTES + 1, 0, bytes(PART_BYTES)),
        FilePart(DIGEST, 10, 1, bytes(9)),
        FilePart(DIGEST, 10, PART_BYTES, b""),
        FilePart(DIGEST, 10, 0, bytes(9)),
        FilePart(DIGEST, 2 * PART_BYTES, 0, bytes(PART_BYTES - 1)),
    ],
)
def test_a_part_that_makes_no_sense_is_not_sent(part: FilePart) -> None:
    with pytest.raises(ValueError, match="part"):
        encode_part(part)


class OfferBook:
    """What a session was offered."""

    def __init__(self) -> None:
        self.offered: list[FilePart] = []
        self.names: list[bytes] = []

    def offer(self, kind: int, payload: bytes, now: float, *, priority: int) -> bytes:
        self.offered.append(decode_part(payload))
        self.names.append(digest(kind, payload))
        return self.names[-1]


def test_a_sender_offers_what_is_lacking_a_few_parts_at_a_time() -> None:
    book, size = OfferBook(), 5 * PART_BYTES + 3
    sender = FileSender(FileStream(DIGEST, size, lambda offset, length: bytes(length)), held=b"\x02")
    sender.step(book, 0.0)  # type: ignore[arg-type]
    assert [part.offset // PART_BYTES for part in book.offered] == [0, 2][:IN_FLIGHT]
    on_its_way = Progress(book.names[0], 6, False, PART_BYTES, 2048, 512, 1.0)
    assert sender.held_bytes([]) == PART_BYTES
    assert sender.held_bytes([on_its_way]) == PART_BYTES + PART_BYTES // 4
    for nth in range(5):
        assert not sender.is_over
        assert sender.handle(Delivered(book.names[nth]))
        assert not sender.handle(Delivered(book.names[nth]))  # is told once
        sender.step(book, 1.0)  # type: ignore[arg-type]
    assert [part.offset // PART_BYTES for part in book.offered] == [0, 2, 3, 4, 5]
    assert sender.is_over
    assert sender.sent_bytes == size - PART_BYTES
    assert sender.held_bytes([]) == size


def test_a_part_that_is_refused_ends_the_stream() -> None:
    book = OfferBook()
    sender = FileSender(FileStream(DIGEST, 9 * PART_BYTES, lambda offset, length: bytes(length)))
    sender.step(book, 0.0)  # type: ignore[arg-type]
    for name in list(book.names):
        assert sender.handle(Cancelled(name, 5))
        sender.step(book, 1.0)  # type: ignore[arg-type]
    assert sender.is_over
    assert len(book.offered) == IN_FLIGHT
