"""Over real ptys and sockets: frames arrive whole and in order, and a device that is gone says so."""

from __future__ import annotations

import os
import select
import socket
import termios
from pathlib import Path

import pytest

from hw_profiles import load_link
from onboard.link.ports.framing import whiten
from onboard.link.ports.port import BadUrl, Port, PortLost
from onboard.link.ports.schemes import facts_of, open_port
from onboard.wire.framing import cobs
from tests.onboard.link.cable import PtyCable

LINK = load_link("bench-serial-115k2")


def collect(port: Port, count: int, cable: PtyCable | None = None) -> list[bytes]:
    """The next `count` frames; fails when they do not come."""
    frames: list[bytes] = []
    for _ in range(2000):
        if cable is not None:
            cable.carry()
        frames += port.read()
        if len(frames) >= count:
            return frames
        port.flush()
        select.select([port.fileno()], [], [], 0.005)
    raise AssertionError(f"{len(frames)} frames of {count}")


def test_frames_cross_both_ways_and_every_byte_is_counted(cable: PtyCable) -> None:
    a, b = open_port(str(cable.a), LINK), open_port(f"serial:{cable.b}?baud=9600", LINK)
    sent = [b"first", bytes(range(256)), bytes(500)]
    for frame in sent:
        a.write(frame)
    assert collect(b, 3, cable) == sent
    b.write(b"answer")
    assert collect(a, 1, cable) == [b"answer"]
    first_delimiter = 1
    on_wire = first_delimiter + sum(len(cobs.encode(whiten(frame))) for frame in sent)
    assert (a.tx_bytes, b.rx_bytes) == (on_wire, on_wire)
    assert on_wire <= first_delimiter + sum(facts_of(str(cable.a)).wire_bytes(len(frame)) for frame in sent)
    assert (b.tx_bytes, a.rx_bytes) == (9, 9)
    assert a.queued_bytes() == b.queued_bytes() == a.broken == b.broken == 0
    a.close()
    b.close()


def test_noise_is_counted_and_costs_no_later_frame(cable: PtyCable) -> None:
    a = open_port(str(cable.a), LINK)
    os.write(cable.master_of_a(), b"\x05ab\0" + b"\xff" * 1200 + b"\0" + cobs.encode(b"good"))
    assert collect(a, 1) == [b"good"]
    assert a.broken == 2
    a.close()


def test_a_sender_that_was_killed_in_mid_frame_spoils_nothing_of_its_successor(cable: PtyCable) -> None:
    b = open_port(str(cable.b), LINK)
    half = cobs.encode(b"x" * 100)[:50]
    slave = os.open(cable.a, os.O_WRONLY | os.O_NOCTTY)
    os.write(slave, half)
    successor = open_port(str(cable.a), LINK)
    cable.carry()
    os.close(slave)
    successor.write(b"first frame after the restart")
    assert collect(b, 1, cable) == [b"first frame after the restart"]
    b.close()
    successor.close()


def test_what_the_device_does_not_take_is_kept_and_flushed_in_order(cable: PtyCable) -> None:
    a, b = open_port(str(cable.a), LINK), open_port(str(cable.b), LINK)
    sent: list[bytes] = []
    while not a.kept_bytes():
        sent.append(len(sent).to_bytes(2, "big") * 400)
        a.write(sent[-1])
        assert len(sent) < 1000
    assert a.queued_bytes() >= a.kept_bytes() > 0
    sent.append(b"the last")
    a.write(sent[-1])
    received: list[bytes] = []
    for _ in range(5000):
        a.flush()
        cable.carry()
        received += b.read()
        if len(received) == len(sent):
            break
        select.select([b.fileno()], [], [], 0.001)
    assert received == sent
    assert a.kept_bytes() == 0
    a.close()
    b.close()


def test_what_is_discarded_never_leaves_and_half_a_frame_spoils_no_other(cable: PtyCable) -> None:
    a, b = open_port(str(cable.a), LINK), open_port(str(cable.b), LINK)
    whole = 0
    while not a.kept_bytes():
        a.write(b"%4d" % whole * 200)
        whole += 1
    a.discard()
    assert a.kept_bytes() == 0
    whole = facts_of(str(cable.a)).wire_bytes(800)
    assert a.tx_bytes % whole != 1  # the device has taken a part of the last one
    for _ in range(50):
        cable.carry()
        b.read()
    a.flush()
    assert cable.carry() == 0
    broken = b.broken
    a.write(b"after it")
    assert collect(b, 1, cable) == [b"after it"]
    assert b.broken - broken <= 1
    a.close()
    b.close()


def test_the_url_s_speed_is_the_device_s(cable: PtyCable) -> None:
    for url, speed in (
        (f"serial:{cable.a}?baud=9600", termios.B9600),
        (str(cable.a), termios.B115200),
        (f"serial:{cable.a}", termios.B115200),
    ):
        port = open_port(url, LINK)
        assert termios.tcgetattr(port.fileno())[5] == speed
        port.close()


def test_a_device_that_vanishes_is_lost_on_reading_and_on_writing(cable: PtyCable) -> None:
    a, b = open_port(str(cable.a), LINK), open_port(str(cable.b), LINK)
    assert a.read() == []
    cable.pull()
    with pytest.raises(PortLost) as caught:
        a.read()
    assert caught.value.url == str(cable.a)
    with pytest.raises(PortLost, match="cannot write"):
        b.write(b"frame")
    a.close()
    b.close()
    a.close()  # closing twice is harmless


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PortLost, match="No such file"):
        open_port(str(tmp_path / "ttyUSB0"), LINK)


def test_a_file_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(PortLost):
        open_port(str(tmp_path / "notes.txt"), LINK)


def test_a_device_in_use_is_not_shared(cable: PtyCable) -> None:
    a = open_port(str(cable.a), LINK)
    with pytest.raises(PortLost, match="another program has it open"):
        open_port(str(cable.a), LINK)
    a.close()
    open_port(str(cable.a), LINK).close()


def test_a_pyserial_url_over_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = open_port(f"socket://127.0.0.1:{server.getsockname()[1]}", LINK)
        peer, _ = server.accept()
        with peer:
            port.write(b"to the terminal server")
            assert peer.recv(100) == b"\0" + cobs.encode(whiten(b"to the terminal server"))
            peer.sendall(cobs.encode(b"and back"))
            assert collect(port, 1) == [b"and back"]
        with pytest.raises(PortLost):
            collect(port, 1)
        port.close()


def test_a_pyserial_url_without_a_descriptor() -> None:
    port = open_port("loop://", LINK)
    assert port.fileno() == -1
    port.write(b"echo")
    assert port.read() == [b"echo"]
    assert port.queued_bytes() == 0
    port.close()


@pytest.mark.parametrize(
    "url",
    [
        "", "COM", "ttyUSB0", "serial:", "serial:/dev/x?baud=fast", "serial:/dev/x?baud=0",
        "serial:/dev/x?speed=9600", "nosuch://thing",
    ],
)  # fmt: skip
def test_a_url_that_is_not_understood_is_one_line_that_names_it(url: str) -> None:
    refused_in_one_line(url)


def refused_in_one_line(url: str) -> None:
    with pytest.raises(BadUrl) as caught:
        open_port(url, LINK)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_on_the_wire_are_known_before_the_port_is_open() -> None:
    assert facts_of("/dev/ttyUSB0").wire_bytes(222) == 224
    assert facts_of("serial:/dev/ttyUSB0?baud=9600").wire_bytes(222) == 224
    assert facts_of("udp://127.0.0.1:9000").wire_bytes(222) == 250
    assert facts_of("udp://[::1]:9000?bind=[::1]:9001").wire_bytes(222) == 270
    assert facts_of("udp://?bind=[::]:9001").wire_bytes(222) == 270
    assert facts_of("udp://ground.example:9000").wire_bytes(222) == 250
    for bad in ("nonsense", "udp:nonsense", "nosuch://thing"):
        with pytest.raises(BadUrl):
            facts_of(bad).wire_bytes(222)
