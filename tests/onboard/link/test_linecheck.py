"""What a line does to bytes is named from what comes in, and never from frames that hold few values."""

from __future__ import annotations

from random import Random

import pytest

from hw_profiles import load_link
from onboard.link.ports.framing import cobs_stream
from onboard.link.ports.port import PortEvent
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import Opener, Sealer

LINK = load_link("bench-serial-115k2")
SEVEN_BITS = bytes(value & 0x7F for value in range(256))
XON_OFF, CR = b"\x11\x13", b"\x0d"


def fault(content: bytes, table: bytes | None, eaten: bytes, frames: int = 400) -> PortEvent | None:
    """After so many frames with that content through a line that maps and eats bytes, and flips some."""
    random, stream = Random(1), cobs_stream(222)
    for _ in range(frames):
        wire = bytearray(stream.encode(random.randbytes(14) + content + random.randbytes(8)))
        if random.random() < 0.2:
            wire[random.randrange(len(wire) - 1)] ^= 1 << random.randrange(8)
        stream.feed(bytes(wire).translate(table, eaten))
    return stream.check.fault(LINK)


@pytest.mark.parametrize(
    ("table", "eaten", "kind"),
    [(SEVEN_BITS, b"", "seven-bits"), (None, XON_OFF, "bytes-eaten"), (None, CR, "bytes-eaten")],
)
def test_what_a_line_does_to_bytes_is_named(table: bytes | None, eaten: bytes, kind: str) -> None:
    named = fault(Random(2).randbytes(150), table, eaten)
    assert named is not None
    assert named.fields["fault"] == kind


@pytest.mark.parametrize("frames", [10, 40, 400])
@pytest.mark.parametrize("content", [bytes(150), b"ab" * 75], ids=["zeros", "two values"])
def test_frames_of_few_values_tell_of_no_eaten_ones(content: bytes, frames: int) -> None:
    named = fault(content, None, b"", frames)
    assert named is None or named.fields["fault"] == "bit-errors"


def test_an_end_that_does_not_whiten_is_told_of() -> None:
    key, stream = bytes(32), cobs_stream(222)
    sealer, opener = Sealer(key, source=3, destination=0, epoch=1), Opener(key, source=3, destination=0)
    for _ in range(20):
        for frame in stream.feed(cobs.encode(sealer.seal(Type.POLL, object_id=1))):
            assert opener.open(frame) is None
            stream.check.refused(len(frame), stream.encode(frame)[:-1])
    named = stream.check.fault(LINK)
    assert named is not None
    assert named.fields["fault"] == "bit-errors"
    assert "whiten" in named.fields["why"]
