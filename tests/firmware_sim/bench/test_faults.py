"""What is wrong with a line is really done to it, both ways, counted, and the same with the same seed."""

from __future__ import annotations

import os
import termios
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from firmware_sim.bench.faults import FAULTS, Faults, parse_faults
from firmware_sim.cli import main
from firmware_sim.world.channel import SIDES, Side
from tests.firmware_sim.bench.test_cable import FRAME, laid

ALL_BYTES = bytes(range(256))


def faults(*texts: str, seed: int = 1) -> Faults:
    """Of a serial line."""
    return parse_faults(texts, seed, datagrams=False)


@pytest.mark.parametrize(
    ("name", "arrives", "hits"),
    [
        ("eat-xonxoff", ALL_BYTES.replace(b"\x11", b"").replace(b"\x13", b""), 2),
        ("double-ff", ALL_BYTES + b"\xff", 1),
        ("drop-long=255", b"", 1),
        ("drop-long=256", ALL_BYTES, 0),
        ("echo", ALL_BYTES, 0),
        ("stall", ALL_BYTES, 0),
    ],
)
@pytest.mark.parametrize("side", SIDES)
def test_what_arrives_of_what_was_sent(name: str, arrives: bytes, hits: int, side: Side) -> None:
    line = faults(name)
    other: Side = "board" if side == "ground" else "ground"
    assert line.depart(side, ALL_BYTES, True) == ALL_BYTES
    assert line.arrive(other, ALL_BYTES) == arrives
    assert line.hits(side) == {name.partition("=")[0]: hits}
    assert line.hits(other) == {name.partition("=")[0]: 0}


def test_a_burst_is_spoiled_at_its_beginning_and_nowhere_else() -> None:
    line, lengths = faults("spoil-bursts"), set()
    for _ in range(200):
        sent = [line.depart("board", bytes(10), first) for first in (True, False, False)]
        spoiled = b"".join(sent).rstrip(b"\0")
        assert spoiled.count(0) == 0
        lengths.add(len(spoiled))
    assert lengths == set(range(1, 17))
    assert line.hits("ground") == {"spoil-bursts": 0}


def test_noise_comes_before_each_frame_and_on_a_quiet_line() -> None:
    line = faults("noise=8")
    heard = [line.arrive("ground", FRAME) for _ in range(100)]
    assert all(piece.endswith(FRAME) and 1 <= len(piece) - len(FRAME) <= 8 for piece in heard)
    noise = sum(map(len, heard)) - 100 * len(FRAME)
    assert line.hits("board") == {"noise": noise}
    assert 1 <= len(line.idle("board")) <= 8
    again = faults("noise=8")
    assert [again.arrive("ground", FRAME) for _ in range(100)] == heard
    other = faults("noise=8", seed=2)
    assert [other.arrive("ground", FRAME) for _ in range(100)] != heard


def test_each_side_stalls_once_in_the_midst_of_what_it_sends() -> None:
    line = faults("stall=30")
    assert not line.stops("ground", 5.0, 599)
    assert line.stops("ground", 6.0, 600)
    assert not line.stops("board", 6.0, 10)
    assert line.stops("ground", 35.9, 900)
    assert not line.stops("ground", 36.0, 900)
    assert not line.stops("ground", 99.0, 9000)
    assert line.hits("ground") == {"stall": 30}


def test_several_faults_befall_one_line() -> None:
    line = faults("eat-xonxoff", "double-ff")
    assert line.arrive("ground", b"\x11\xff\x13a") == b"\xff\xffa"
    assert line.hits("board") == {"eat-xonxoff": 2, "double-ff": 1}


@pytest.mark.parametrize(
    ("text", "datagrams", "why"),
    [
        ("eat-xon", False, "must be one of eat-xonxoff, "),
        ("echo=3", False, "'3' is not a strength"),
        ("stall=0", False, "'0' is not a strength"),
        ("noise=many", False, "'many' is not a strength"),
        ("echo", True, "befalls a serial line"),
    ],
)
def test_a_fault_that_makes_no_sense_is_one_line(text: str, datagrams: bool, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_faults([text], 1, datagrams=datagrams)


def test_without_faults_there_is_none() -> None:
    assert not parse_faults([], 1, datagrams=False)


def test_the_cable_refuses_a_fault_that_it_does_not_know(tmp_path: Path) -> None:
    ends = ["--ground", str(tmp_path / "g"), "--board", str(tmp_path / "b")]
    done = CliRunner().invoke(main, ["cable", "--link", "bench-serial-115k2", *ends, "--fault", "nosuch"])
    assert done.exit_code == 2
    assert "--fault nosuch: must be one of " + ", ".join(FAULTS) in done.output.replace("\n", " ")


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)


def test_a_real_cable_echoes_and_a_device_that_is_stopped_takes_nothing(tmp_path: Path) -> None:
    ends = ["--ground", str(tmp_path / "g"), "--board", str(tmp_path / "b")]
    with laid("--link", "bench-serial-115k2", *ends, "--fault", "echo", "--fault", "stall=1") as cable:
        ground, board = _open(cable.ground), _open(cable.board)
        sent = 6 * FRAME
        os.write(board, sent)
        heard = b""
        deadline = time.monotonic() + 5
        while len(heard) < len(sent):
            assert time.monotonic() < deadline
            time.sleep(0.01)
            try:
                heard += os.read(board, 4096)  # its own echo
            except BlockingIOError:
                continue
        assert heard == sent
        while True:  # 600 B have been sent: the device says "not now"
            assert time.monotonic() < deadline
            try:
                os.write(board, b"\0")
            except BlockingIOError:
                break
            time.sleep(0.01)
        assert termios.tcgetattr(ground)  # the other side's device is not concerned
        while True:  # and takes again, a second later
            assert time.monotonic() < deadline
            try:
                os.write(board, b"\0")
                break
            except BlockingIOError:
                time.sleep(0.02)
        os.close(ground)
        os.close(board)
        last = cable.stop()
    assert last["board"]["faults"]["echo"] >= len(sent)
    assert last["board"]["faults"]["stall"] == 1
    assert last["ground"]["faults"] == {"echo": 0, "stall": 0}
