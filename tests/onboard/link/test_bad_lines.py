"""Over a line that spoils bytes objects arrive, for a few times a good line's bytes; an event says why."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from hw_profiles import Link, load_link
from onboard.link.pump import PumpEvent
from onboard.mission.objects import MODEL, UPDATE
from onboard.wire.events import Echoed, Stuck
from tests.onboard.link.bad_cable import BadCable, Damage, ends
from tests.onboard.link.cable import Clock
from tests.onboard.link.objects import lines, payload
from tests.onboard.link.test_pump import accept_into

WIRE, UHF = load_link("bench-serial-115k2"), load_link("uhf-9k6")
Crossed = tuple[int, list[PumpEvent]]
"""Bytes that both ends sent, and what they told."""


def eaten(data: bytes, starts: bool) -> bytes:
    return data.translate(None, b"\x11\x13")


def doubled(data: bytes, starts: bool) -> bytes:
    return data.replace(b"\xff", b"\xff\xff")


def translated(data: bytes, starts: bool) -> bytes:
    return data.replace(b"\r", b"\n")


def escaped(data: bytes, starts: bool) -> bytes:
    """A modem that takes 0x7D and 0x7E for its own."""
    return data.translate(None, b"\x7d\x7e")


def wrong_bits(rate: float) -> Damage:
    random = Random(5)
    return lambda data, starts: bytes(
        byte ^ (1 << random.randrange(8) if random.random() < 8 * rate else 0) for byte in data
    )


def noisy() -> Damage:
    """A receiver without a squelch: noise behind every frame."""
    random = Random(6)

    def damage(data: bytes, starts: bool) -> bytes:
        noise = random.randbytes(random.randint(1, 16))
        return re.sub(rb"(?<=[^\0])\0", lambda _: b"\0" + noise, data)

    return damage


def mission(link: Link, damage: Damage, folder: Path, back: Damage | None = None) -> Crossed:
    """Models go down and updates up, as in three rounds."""
    clock, got = Clock(), list[bytes]()
    folder.mkdir()
    cable = BadCable(folder, link, clock, damage, back)
    pumps, told = ends(cable, folder, link), list[PumpEvent]()
    accept = accept_into(got, pumps, clock)

    def act(name: str, event: PumpEvent) -> None:
        told.append(event)
        accept(name, event)

    for nth in range(3):
        pumps["ground"].session.offer(MODEL, payload(4_000, nth), clock.now)
        pumps["board"].session.offer(UPDATE, payload(3_000, 10 + nth), clock.now)
        step_s = 0.01 if link is WIRE else 0.04
        clock.run(pumps, lambda _, n=nth: len(got) == 2 * n + 2, carry=cable.carry, act=act, step_s=step_s)  # type: ignore[misc]
    for end in pumps.values():
        end.close(clock.now)
    cable.pull()
    return sum(cable.carried), told


def kinds(told: list[PumpEvent]) -> set[str]:
    """Of the faults that were named."""
    return {line.fields["fault"] for line in lines(told, "line-fault")}


def good(data: bytes, starts: bool) -> bytes:
    return data


@pytest.mark.parametrize(
    ("damage", "kind", "times"),
    [
        pytest.param(eaten, "bytes-eaten", 5.0, id="XON and XOFF eaten"),
        pytest.param(doubled, "bytes-doubled", 4.0, id="0xFF doubled"),
        pytest.param(translated, "bytes-eaten", 4.0, id="CR turned into LF"),
        pytest.param(escaped, "bytes-eaten", 5.0, id="0x7D and 0x7E escaped"),
        pytest.param(wrong_bits(2e-4), "bit-errors", 5.0, id="wrong bits"),
        pytest.param(noisy(), "noise", 4.0, id="noise between frames"),
    ],
)
def test_objects_cross_and_the_cause_is_named(
    damage: Damage, kind: str, times: float, tmp_path: Path
) -> None:
    clean, quiet = mission(WIRE, good, tmp_path / "clean")
    spent, told = mission(WIRE, damage, tmp_path / "bad")
    assert not kinds(quiet)
    assert kind in kinds(told), told
    assert spent <= times * clean


def test_an_echo_is_named_and_does_no_harm(tmp_path: Path) -> None:
    clean, _ = mission(WIRE, good, tmp_path / "clean")
    spent, told = mission(WIRE, good, tmp_path / "bad", back=good)
    assert Echoed() in told
    assert spent <= 2 * clean


def test_a_device_that_takes_nothing_is_named(tmp_path: Path) -> None:
    clock, got = Clock(), list[bytes]()
    cable = BadCable(tmp_path, WIRE, clock, good)
    pumps = ends(cable, tmp_path, WIRE)
    cable.stalled_until = 30.0
    pumps["board"].session.offer(UPDATE, payload(60_000), 0.0)
    told: list[PumpEvent] = []
    accept = accept_into(got, pumps, clock)

    def act(name: str, event: PumpEvent) -> None:
        told.append(event)
        accept(name, event)

    for _ in range(30):  # HELLO by HELLO the device's buffer fills
        pumps["board"].session.send_message(bytes(900), 0.0)
    clock.run(pumps, lambda _: bool(got), carry=cable.carry, act=act, step_s=0.02)
    assert got == [payload(60_000)]
    for end in pumps.values():
        end.close(clock.now)
    cable.pull()


def test_frames_that_never_pass_are_named_by_who_sends_them(tmp_path: Path) -> None:
    """A line that loses all behind the 255th byte of a frame: whoever hears it sees no more than noise."""

    def cuts(data: bytes, starts: bool) -> bytes:
        return b"\0".join(part[:255] for part in data.split(b"\0"))

    _, told = mission(WIRE, cuts, tmp_path / "bad")
    assert any(isinstance(event, Stuck) for event in told)
