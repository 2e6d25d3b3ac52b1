"""The cable as a process: real ports, the channel's rules on the real clock, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from firmware_sim.bench.cable import UdpEnd, parse_end
from firmware_sim.cli import main
from hw_profiles import load_link

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
FRAME = b"\x05" + b"x" * 99 + b"\0"


class Laid:
    """A running cable process and the two ends' names."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "firmware_sim", "cable", *args, "--report-every", "0.05"],
            stdout=subprocess.PIPE,
            text=True,
        )
        first = self.report()
        self.ground, self.board = str(first["ground"]["port"]), str(first["board"]["port"])

    def report(self) -> dict[str, Any]:
        assert self.process.stdout
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line

    def stop(self, number: int = signal.SIGTERM) -> dict[str, Any]:
        """The last line, after which the process has ended well."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=5)
        assert self.process.returncode == 0
        last: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert last["final"]
        return last


@contextlib.contextmanager
def laid(*args: str) -> Iterator[Laid]:
    cable = Laid(*args)
    try:
        yield cable
    finally:
        cable.process.kill()
        cable.process.wait()
        assert cable.process.stdout
        cable.process.stdout.close()


@contextlib.contextmanager
def serial(link: str, folder: Path, *args: str) -> Iterator[Laid]:
    ends = ("--ground", str(folder / "tty-ground"), "--board", str(folder / "tty-board"))
    with laid("--link", link, *ends, *args) as cable:
        yield cable


@contextlib.contextmanager
def program(path: str) -> Iterator[int]:
    """A program's hold on a serial port."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def both(cable: Laid) -> Iterator[tuple[int, int]]:
    """A program on either end: ground's, board's."""
    with program(cable.ground) as ground, program(cable.board) as board:
        yield ground, board


def read(fd: int, size: int, timeout_s: float = 2.0) -> bytes:
    """Bytes until there are `size` or none comes for that long."""
    data = b""
    while len(data) < size and select.select([fd], [], [], timeout_s)[0]:
        data += os.read(fd, 65536)
    return data


def wait_for(cable: Laid, side: str, key: str, value: int) -> dict[str, Any]:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        report = cable.report()
        if report[side][key] >= value:
            return report
    raise AssertionError(f"{side} {key} never reached {value}: {report}")


def test_serial_both_ways_at_the_baud_rate_and_no_sooner(tmp_path: Path) -> None:
    with serial("bench-serial-115k2", tmp_path) as cable:
        with both(cable) as (ground, board):
            began = time.monotonic()
            os.write(board, FRAME * 30)
            os.write(ground, b"\x03up\0")
            assert read(ground, 30 * len(FRAME)) == FRAME * 30
            took_s = time.monotonic() - began
            assert read(board, 4) == b"\x03up\0"
        on_air_s = 30 * len(FRAME) * 10 / 115200
        # No sooner than the air allows; the margin above is a loaded machine's.
        assert on_air_s <= took_s < on_air_s + 0.5
        last = cable.stop()
    assert (last["board"]["frames"], last["board"]["bytes"]) == (30, 30 * len(FRAME))
    assert last["board"]["airtime_s"] == pytest.approx(on_air_s)
    assert (last["ground"]["frames"], last["ground"]["bytes"]) == (1, 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_paths_are_gone(tmp_path: Path, number: int) -> None:
    with serial("bench-serial-115k2", tmp_path) as cable:
        assert {p.name for p in tmp_path.iterdir()} == {"tty-ground", "tty-board"}
        cable.stop(number)
    assert list(tmp_path.iterdir()) == []


def test_it_ends_when_nobody_reads_its_reports_any_more(tmp_path: Path) -> None:
    with serial("bench-serial-115k2", tmp_path) as cable:
        assert cable.process.stdout
        cable.process.stdout.close()
        assert cable.process.wait(timeout=5) == 0
    assert list(tmp_path.iterdir()) == []


def test_reading_stops_about_two_frames_ahead_of_the_air(tmp_path: Path) -> None:
    with serial("uhf-9k6", tmp_path, "--ber", "0") as cable, program(cable.board) as board:
        written = 0
        with contextlib.suppress(BlockingIOError):
            while written < 1 << 20:
                written += os.write(board, FRAME * 10)
        assert written < 1 << 20, (
            "the kernel's buffer has to fill, or a sender could outrun the air unnoticed"
        )
        report = wait_for(cable, "board", "frames", 2)
        mtu_bytes = load_link("uhf-9k6").mtu_bytes
        assert report["board"]["bytes"] <= 2 * (mtu_bytes + 3) + report["t_s"] * 9600 / 8


def test_a_killed_program_leaves_the_cable_and_no_stale_bytes(tmp_path: Path) -> None:
    with serial("bench-serial-115k2", tmp_path) as cable, program(cable.ground) as ground:
        with program(cable.board) as board:
            os.write(ground, b"\x0aunread...\0")
            assert select.select([board], [], [], 2)[0]
            os.write(board, b"\x05last\0")
        # What it wrote still leaves; what comes now is for nobody; what it had not read is forgotten.
        assert read(ground, 6) == b"\x05last\0"
        os.write(ground, b"\x06while\0")
        assert wait_for(cable, "board", "unheard", 1)["ground"]["delivered"] == 2
        with program(cable.board) as board:
            os.write(ground, b"\x04new\0")
            assert read(board, 5) == b"\x04new\0"
            os.write(board, b"\x04and\0")
            assert read(ground, 5) == b"\x04and\0"


def test_a_program_that_opens_writes_and_closes_at_once_is_heard(tmp_path: Path) -> None:
    with serial("bench-serial-115k2", tmp_path) as cable, program(cable.ground) as ground:
        for word in (b"\x04one\0", b"\x04two\0"):
            with program(cable.board) as board:
                os.write(board, word)
            assert read(ground, 5) == word


def test_bytes_without_a_delimiter_pass_after_a_silence(tmp_path: Path) -> None:
    with serial("bench-serial-115k2", tmp_path) as cable, both(cable) as (ground, board):
        os.write(board, b"AT")
        assert read(ground, 2) == b"AT"
        os.write(board, b"y" * 3000)
        assert read(ground, 3000) == b"y" * 3000


def test_the_seed_decides_which_frames_a_serial_line_loses(tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        losing = serial("bench-serial-115k2", tmp_path, "--loss", "0.3", "--seed", "5")
        with losing as cable, both(cable) as (ground, board):
            os.write(board, b"".join(bytes([i, i, 0]) for i in range(1, 101)))
            report = wait_for(cable, "board", "frames", 100)
            runs.append(read(ground, 300, timeout_s=0.2))
            assert len(runs[-1]) == 300 - 3 * report["board"]["lost"]
    assert runs[0] == runs[1]
    assert 150 < len(runs[0]) < 270


def test_nothing_passes_before_the_contact(tmp_path: Path) -> None:
    with serial("bench-serial-115k2", tmp_path, "--window", "0.4:") as cable, both(cable) as (ground, board):
        os.write(board, FRAME)
        report = wait_for(cable, "board", "cut", 1)
        assert not report["up"]
        while not report["up"]:
            report = cable.report()
        os.write(board, b"\x02y\0")
        assert read(ground, 3) == b"\x02y\0"


def test_udp_both_ways_with_headers_counted() -> None:
    ends = ("--ground", "udp://127.0.0.1:0", "--board", "udp://127.0.0.1:0")
    with laid("--link", "sband-2m", "--ber", "0", *ends) as cable:
        ground, board = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        with ground, board:
            ground.settimeout(2)
            board.settimeout(2)
            at = {side: parse_end(name) for side, name in (("ground", cable.ground), ("board", cable.board))}
            assert isinstance(at["ground"], UdpEnd)
            assert isinstance(at["board"], UdpEnd)
            board.sendto(b"who is there", at["board"].listen)
            wait_for(cable, "ground", "unheard", 1)
            ground.sendto(b"the ground", at["ground"].listen)
            assert board.recv(2000) == b"the ground"
            for i in range(20):
                board.sendto(bytes([i]) * 1000, at["board"].listen)
            assert [ground.recv(2000) for _ in range(20)] == [bytes([i]) * 1000 for i in range(20)]
            board.sendto(bytes(1025), at["board"].listen)
            wait_for(cable, "board", "oversize", 1)
        last = cable.stop()
    assert last["board"]["bytes"] == 12 + 20 * 1000 + 21 * 28
    assert last["board"]["airtime_s"] == pytest.approx(last["board"]["bytes"] * 8 / 2e6)


def test_udp_with_a_peer_hears_and_answers_only_that() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(2)
        end = f"udp://127.0.0.1:0?peer=127.0.0.1:{peer.getsockname()[1]}"
        with laid("--link", "bench-udp", "--ground", end, "--board", "udp://127.0.0.1:0") as cable:
            ground, board = parse_end(cable.ground), parse_end(cable.board)
            assert isinstance(ground, UdpEnd)
            assert isinstance(board, UdpEnd)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"let me in", ground.listen)
                wait_for(cable, "ground", "strangers", 1)
                other.sendto(b"to the ground", board.listen)
                assert peer.recv(100) == b"to the ground"
            assert cable.stop()["ground"]["frames"] == 0


def test_an_old_link_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "tty-ground").symlink_to("/dev/pts/gone")
    with serial("bench-serial-115k2", tmp_path) as cable:
        cable.stop()
    (tmp_path / "tty-ground").write_text("keep me")
    ends = ["--ground", str(tmp_path / "tty-ground"), "--board", str(tmp_path / "tty-board")]
    result = CliRunner().invoke(main, ["cable", "--link", "bench-serial-115k2", *ends])
    assert (result.exit_code, result.output) == (2, f"firmware-sim: {tmp_path}/tty-ground: File exists\n")
    assert [p.name for p in tmp_path.iterdir()] == ["tty-ground"]
    assert (tmp_path / "tty-ground").read_text() == "keep me"


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ("--link uhf9k6 --ground a --board b", "no link is named 'uhf9k6'; nearest: uhf-9k6"),
        ("--link uhf-9k6 --ground a", "Missing option '--board'."),
        ("--link uhf-9k6 --ground a --board a", "ends a and a: must differ"),
        ("--link uhf-9k6 --ground /nowhere/a --board b", "/nowhere/a: No such file or directory"),
        ("--link uhf-9k6 --ground udp://127.0.0.1:x --board b", "'127.0.0.1:x' is not HOST:PORT"),
        ("--link uhf-9k6 --ground udp://127.0.0.1:0 --board b", "both must be serial or both UDP"),
        ("--link uhf-9k6 --ground tcp://127.0.0.1:1 --board b", "tcp://127.0.0.1:1: an end is a path or udp"),
        ("--link uhf-9k6 --ground a --board b --loss 2", "frame_loss 2.0 is not a probability"),
        (
            "--link uhf-9k6 --ground a --board b --ber x",
            "Invalid value for '--ber': 'x' is not a valid float.",
        ),
        ("--link uhf-9k6 --ground a --board b --loss 0 --burst 0.1:3", "--loss and --burst: give one"),
        ("--link uhf-9k6 --ground a --board b --burst 0.1", "--burst 0.1: must be two numbers"),
        ("--link uhf-9k6 --ground a --board b --window 4", "--window 4: must be two numbers"),
        ("--link uhf-9k6 --ground a --board b --window 4:2", "window 4.0:2.0 closes before it opens"),
        ("--link uhf-9k6 --ground a --board b --cut-after-bytes 9", "give both or none"),
        ("--link uhf-9k6 --ground a --board b --report-every 0", "--report-every 0.0: must be above 0"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    args: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["cable", *args.split()])
    assert result.exit_code == 2
    assert complaint in result.output
    assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example_and_docs_name_every_option() -> None:
    text = CliRunner().invoke(main, ["cable", "--help"]).output
    assert "firmware-sim cable --link" in text
    docs = (REFERENCE / "firmware-sim.md").read_text(encoding="utf-8")
    for option in main.commands["cable"].params:
        assert f"| `{option.opts[0]}" in docs


def test_docs_name_every_key_of_a_report(tmp_path: Path) -> None:
    docs = (REFERENCE / "cable.md").read_text(encoding="utf-8")
    with serial("bench-serial-115k2", tmp_path) as cable:
        report = cable.stop()
    for key in [*report, *report["board"]]:
        assert f"`{key}`" in docs


@pytest.mark.parametrize(
    "text",
    [
        "udp://",
        "udp://host",
        "udp://127.0.0.1:70000",
        "udp://127.0.0.1:1?to=a:1",
        "udp://127.0.0.1:-1",
        "udp://[::1",
        "udp://127.0.0.1:1?peer=h",
    ],
)
def test_ends_that_are_no_ends_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="udp://"):
        parse_end(text)
