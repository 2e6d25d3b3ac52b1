"""Whatever a line does to the first bytes after a pause, and whatever it delivers in between, frames pass."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from hw_profiles import Link, load_link
from onboard.link.ports.framing import FramedStream, cobs_stream, kiss_stream
from onboard.mission.objects import MODEL, UPDATE
from tests.onboard.link.bad_cable import BadCable, Damage, ends
from tests.onboard.link.cable import Clock
from tests.onboard.link.objects import payload
from tests.onboard.link.test_pump import accept_into

UHF = load_link("uhf-9k6")  # half-duplex
WIRE = load_link("bench-serial-115k2")  # full duplex


def spoils(most: int) -> Damage:
    """The first 1 to `most` bytes after a pause come as others."""
    random = Random(1)

    def damage(data: bytes, starts: bool) -> bytes:
        count = random.randint(1, most) if starts else 0
        return random.randbytes(min(count, len(data))) + data[count:]

    return damage


def drops(most: int) -> Damage:
    """The first 1 to `most` bytes after a pause do not come."""
    random = Random(2)
    return lambda data, starts: data[random.randint(1, most) if starts else 0 :]


def noisy(data: bytes, starts: bool) -> bytes:
    """A receiver without a squelch: noise before everything that is sent after a pause."""
    return (Random(len(data)).randbytes(30) if starts else b"") + data


def crossing(link: Link, damage: Damage, folder: Path) -> tuple[BadCable, Clock]:
    """The cable, once a model of 2 kB went down and an update up, and when that was."""
    clock, got = Clock(), list[bytes]()
    cable = BadCable(folder, link, clock, damage)
    pumps = ends(cable, folder, link)
    pumps["ground"].session.offer(MODEL, payload(2_000, 1), 0.0)
    pumps["board"].session.offer(UPDATE, payload(1_800, 2), 0.0)
    clock.run(
        pumps, lambda _: len(got) == 2, carry=cable.carry, act=accept_into(got, pumps, clock), step_s=0.01
    )
    for end in pumps.values():
        end.close(clock.now)
    cable.pull()
    return cable, clock


def unharmed(data: bytes, starts: bool) -> bytes:
    return data


@pytest.mark.parametrize("link", [UHF, WIRE], ids=["half", "full"])
@pytest.mark.parametrize(
    "damage", [spoils(3), spoils(16), drops(16), noisy], ids=["3 spoiled", "16 spoiled", "16 gone", "noise"]
)
def test_objects_cross_a_line_with_bad_starts(link: Link, damage: Damage, tmp_path: Path) -> None:
    for name in ("clean", "bad"):
        (tmp_path / name).mkdir()
    clean, quick = crossing(link, unharmed, tmp_path / "clean")
    bad, slow = crossing(link, damage, tmp_path / "bad")
    assert sum(bad.carried) <= 2 * sum(clean.carried)
    assert slow.now <= 3 * quick.now + 15.0  # the first two HELLOs are 2 s apart


@pytest.mark.parametrize("stream", [cobs_stream(222), kiss_stream(222, 0)], ids=["cobs", "kiss"])
def test_delimiters_mean_nothing(stream: FramedStream) -> None:
    frame = bytes(range(100))
    assert stream.feed(stream.opening * 17 + stream.encode(frame) + stream.opening * 3) == [frame]
    assert stream.broken == 0
