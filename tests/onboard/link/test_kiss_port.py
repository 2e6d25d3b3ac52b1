"""A TNC on a serial device or behind TCP: what it is handed, byte for byte, and what is taken from it."""

from __future__ import annotations

import os
import socket
import termios
from pathlib import Path

import pytest

from hw_profiles import load_link
from onboard.link.ports.framing import whiten
from onboard.link.ports.schemes import facts_of, open_port
from onboard.mission.objects import UPDATE
from onboard.wire.events import Delivered
from onboard.wire.framing import kiss
from tests.onboard.link.cable import Clock, PtyCable
from tests.onboard.link.objects import payload
from tests.onboard.link.test_pump import accept_into, pump, told
from tests.onboard.link.test_serial import collect, refused_in_one_line

LINK = load_link("uhf-9k6")


def test_a_tnc_on_a_device_is_handed_kiss(cable: PtyCable) -> None:
    port = open_port(f"kiss:{cable.a}?baud=9600&port=3", LINK)
    assert termios.tcgetattr(port.fileno())[5] == termios.B9600
    port.write(b"\xc0frame\xdb")
    written = b"\xc0" + kiss.encode(b"\xc0frame\xdb", 3)  # a FEND first: half a frame may lie there
    assert os.read(cable.master_of_a(), 100) == written
    assert port.tx_bytes == len(written)
    other_port, settings = kiss.encode(b"to port 0"), b"\xc0\x31\x10\xc0"  # command 1: TX delay
    os.write(cable.master_of_a(), b"half of one\xc0" + other_port + settings + kiss.encode(b"good", 3))
    assert collect(port, 1) == [b"good"]
    assert port.broken == 3
    port.close()


def test_a_tnc_behind_tcp(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tnc:
        port = open_port(f"kiss+tcp://127.0.0.1:{tnc.getsockname()[1]}", LINK)
        peer, _ = tnc.accept()
        with peer:
            port.write(b"frame")
            assert peer.recv(100) == b"\xc0" + kiss.encode(b"frame")
            peer.sendall(kiss.encode(whiten(bytes(range(256)))))
            assert collect(port, 1) == [bytes(range(256))]
        port.close()


def test_an_object_crosses_two_tncs(cable: PtyCable, tmp_path: Path) -> None:
    clock, got, whole = Clock(), list[bytes](), payload(5_000)
    pumps = {
        "ground": pump(f"kiss:{cable.a}", tmp_path / "g", master=True, link=LINK),
        "board": pump(f"kiss:{cable.b}", tmp_path / "b", master=False, link=LINK),
    }
    pumps["board"].session.offer(UPDATE, whole, 0.0)
    clock.run(
        pumps, told(Delivered, "board"), carry=cable.carry, act=accept_into(got, pumps, clock), step_s=0.02
    )
    assert got == [whole]
    sent = pumps["board"].port_snapshot().tx_bytes
    assert pumps["board"].session.snapshot(clock.now).bytes_sent == pytest.approx(sent, rel=0.01)
    for end in pumps.values():
        assert end.port_snapshot().broken == 0
        end.close(clock.now)


def framing_of(url: str) -> tuple[str, int]:
    facts = facts_of(url)
    return facts.framing, facts.kiss_port


def test_what_a_url_says_of_the_bytes_on_the_port() -> None:
    assert framing_of("kiss:/dev/ttyUSB0?port=7") == ("kiss", 7)
    assert framing_of("kiss+tcp://[::1]:8001") == ("kiss", 0)
    assert framing_of("/dev/ttyUSB0") == framing_of("socket://tnc:8001") == ("cobs", 0)
    assert framing_of("udp://127.0.0.1:9000") == ("datagram", 0)
    assert (
        facts_of("kiss:/dev/ttyUSB0").wire_bytes(222)
        == facts_of("kiss+tcp://tnc:8001").wire_bytes(222)
        == 227
    )


@pytest.mark.parametrize(
    "url",
    [
        "kiss:", "kiss:/dev/x?port=16", "kiss:/dev/x?baud=0", "kiss://dev/x", "kiss+tcp://tnc",
        "kiss+tcp://tnc:8001?baud=9600", "kiss+tcp://tnc:8001/path", "kiss+tcp://tnc:80010", "kiss+tcp:8001",
    ],
)  # fmt: skip
def test_a_url_that_is_not_understood_is_one_line_that_names_it(url: str) -> None:
    refused_in_one_line(url)
