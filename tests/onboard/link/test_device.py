"""Whatever stands where a port should be, and whoever else handles it: it is said once, and the port comes
back when it can."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import grp
import json
import logging
import os
import select
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hw_profiles import load_link
from onboard.link.ports import serial
from onboard.link.ports.port import PortEvent, PortLost
from onboard.link.ports.schemes import facts_of, open_port
from onboard.link.pump import Pump, PumpEvent, Reopening
from tests.missions.bench import run
from tests.onboard.link.cable import PtyCable
from tests.onboard.link.test_pump import pump
from tests.onboard.link.test_serial import collect

LINK = load_link("bench-serial-115k2")
TIOCGEXCL = 0x80045440  # asm-generic/ioctls.h; the module termios lacks it


def board_with(folder: Path, port: str) -> Path:
    """The NODE.toml of a board with that port, whose data are there."""
    run(
        "groundstation", "init", str(folder), "--node",
        f"pi,port=/dev/ttyS0,board-port={port}",
    )  # fmt: skip
    images = np.zeros((20, 1, 28, 28), np.uint8)
    images[:, 0, ::2] = 255
    np.savez(folder / "boards" / "pi" / "data.npz", x=images, y=np.arange(20) % 10)
    return folder / "boards" / "pi" / "node.toml"


@pytest.mark.parametrize("form", ["{}", "serial:{}", "serial:{}?baud=9600", "kiss:{}?baud=9600", "kiss:{}"])
def test_every_form_of_a_devices_url_names_it(form: str, tmp_path: Path) -> None:
    assert facts_of(form.format("/dev/ttyUSB0")).device == Path("/dev/ttyUSB0")


@pytest.mark.parametrize("url", ["udp://h:1", "socket://h:1", "kiss+tcp://h:1", "rfc2217://h:1", "loop://"])
def test_a_port_behind_a_network_is_no_device_here(url: str) -> None:
    assert facts_of(url).device is None


@pytest.mark.parametrize("form", ["kiss:{}?baud=9600&port=1", "serial:{}?baud=9600"])
def test_a_board_runs_on_the_port_that_the_doctor_opens(form: str, tmp_path: Path, cable: PtyCable) -> None:
    node = board_with(tmp_path / "mission", form.format(cable.a))
    with subprocess.Popen(
        [sys.executable, "-m", "onboard", "run", str(node), "--log", "json"],
        stdout=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        events = (json.loads(line)["event"] for line in agent.stdout)
        first = next(event for event in events if event.startswith("port-"))
        agent.terminate()
        assert agent.wait(timeout=10) == 0
    assert first == "port-open"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nothing", "no such device; plug it in, or give --wait"),
        ("file", "it is a file, and no serial device"),
        ("folder", "it is a folder, and no serial device"),
        ("pipe", "it is a pipe, and no serial device"),
        ("dangling", "no such device; plug it in, or give --wait"),
    ],
)
@pytest.mark.parametrize("form", ["{}", "kiss:{}?baud=9600"])
def test_what_is_no_device_is_named(kind: str, says: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "ttyUSB0"
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("/dev/pts/999999")
    url = form.format(path)
    node = board_with(tmp_path / "mission", url)
    done = run("onboard", "run", str(node), code=2)
    assert done.stderr.startswith(f"{node}: link.port = {url!r}: {says}")
    assert done.stderr.count("\n") == 1
    with pytest.raises(PortLost, match=r"cannot open: (No such file|it is a)"):
        open_port(url, LINK)


def test_a_device_without_permission_says_which_group_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = next((entry for entry in grp.getgrall() if entry.gr_name == "dialout"), None)
    if group is None:
        pytest.skip("no group dialout here")
    path = tmp_path / "ttyUSB0"
    path.touch()
    path.chmod(0o660)
    if os.geteuid() == 0:
        os.chown(path, 0, group.gr_gid)
        assert "members of the group dialout may open it: sudo usermod -aG dialout " in serial.who_may_open(
            str(path)
        )
    path.chmod(0o600)
    assert "udev rule" in serial.who_may_open(str(path))


def as_nobody(path: Path) -> int:
    """The error number with which another user opens a device for reading and writing; 0: it is open."""
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os.close(os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_port_in_use_is_closed_to_programs_that_ask_for_no_lock(cable: PtyCable) -> None:
    real = Path(os.path.realpath(cable.a))
    real.chmod(stat.S_IMODE(real.stat().st_mode) | 0o666)
    assert as_nobody(real) == 0
    port = open_port(str(cable.a), LINK)
    assert as_nobody(real) == errno.EBUSY
    exclusive = array.array("i", [0])
    fcntl.ioctl(port.fileno(), TIOCGEXCL, exclusive)
    assert exclusive[0] == 1
    port.close()
    assert as_nobody(real) == 0


def stty(*settings: str, on: Path) -> None:
    subprocess.run(["stty", "-F", str(on), *settings], check=True)


@pytest.mark.parametrize("settings", [("sane",), ("9600",), ("icanon", "echo"), ("istrip", "ixon", "opost")])
def test_settings_that_another_program_changed_are_set_back(
    settings: tuple[str, ...],
    cable: PtyCable,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(serial, "CHECK_S", 0.05)
    a, b = open_port(str(cable.a), LINK), open_port(str(cable.b), LINK)
    before = termios.tcgetattr(a.fileno())
    stty(*settings, on=cable.a)
    assert termios.tcgetattr(a.fileno()) != before
    time.sleep(0.06)
    a.read()
    assert termios.tcgetattr(a.fileno()) == before
    (event,) = [record for record in caplog.records if record.getMessage() == "port-reset"]
    assert event.__dict__["fields"]["port"] == str(cable.a)
    whole = bytes(range(256)) * 2
    b.write(whole)
    assert collect(a, 1, cable) == [whole]
    for _ in range(3):  # and a program that does so all the time is not told of all the time
        stty("sane", on=cable.a)
        time.sleep(0.06)
        a.read()
    assert len([record for record in caplog.records if record.getMessage() == "port-reset"]) == 1
    assert termios.tcgetattr(a.fileno()) == before
    a.close()
    b.close()


class Refusing:
    """A TCP server that takes every connection, says something, and closes it, until it is to be good."""

    def __init__(self, says: bytes) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.says, self.good, self.taken = says, False, 0
        self.kept: list[socket.socket] = []
        self.url = f"socket://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.taken += 1
                if self.good:
                    self.kept.append(client)
                    continue
                client.sendall(self.says)
                client.close()

    def close(self) -> None:
        for client in self.kept:
            client.close()
        self._server.close()


@contextlib.contextmanager
def refusing(says: bytes) -> Iterator[Refusing]:
    server = Refusing(says)
    try:
        yield server
    finally:
        server.close()


def play(one: Pump, until: float, now: float = 0.0) -> list[PortEvent]:
    """What the pump tells until then, on a virtual clock; what the kernel does takes its own time."""
    told: list[PumpEvent] = []
    while now < until:
        told += one.poll(now)
        if one.fileno() >= 0:
            select.select([one.fileno()], [], [], 0.02)
            told += one.poll(now)
        now = min(until, max(one.wakeup(now), now + 0.05) if not one.is_open else now + 1.0)
    return [event for event in told if isinstance(event, PortEvent)]


SAYS = [
    (b"Port already in use\r\n", "Port already in use"),
    (b"\xff\xfb\x01\xff\xfb\x03\r\nAll ports busy, try later.\r\n", "All ports busy, try later."),
    (b"", ""),
    (b"\x81\x99\x03\xf0\xe1" * 8, ""),
]


@pytest.mark.parametrize(("says", "shown"), SAYS, ids=["text", "telnet", "nothing", "noise"])
def test_a_port_that_opens_and_closes_at_once_is_told_of_once_with_what_it_said(
    says: bytes, shown: str, tmp_path: Path
) -> None:
    with refusing(says) as server:
        one = pump(server.url, tmp_path, master=True)
        one._opener = partial(open_port, server.url, LINK)  # not in the background: the clock is virtual
        told = play(one, 1800.0)
        assert [event.name for event in told][:2] == ["port-open", "port-lost"]
        reasons = [event.fields["why"] for event in told if event.name == "port-lost"]
        assert any(f"; it said {shown!r}" in reason for reason in reasons) == bool(shown), reasons
        assert len(told) < 10, told  # at most: the reason may differ by who was quicker
        assert 30 <= server.taken < 60  # one a minute, in the end
        server.good = True
        up, *rest = play(one, 1900.0, 1800.0)
        assert up.name == "port-open"
        assert up.fields["tries"] > 20
        assert rest == []
        one.close(1900.0)


def test_a_day_of_a_port_that_never_lasts_is_a_line_an_hour() -> None:
    port, lost, now, told = (
        Reopening(),
        PortLost("/dev/ttyUSB0", "the device hung up"),
        0.0,
        list[PortEvent](),
    )
    while now < 86_400:
        told += port.opened("/dev/ttyUSB0", now)
        told += port.alive("/dev/ttyUSB0", now + 0.2, heard=False)
        told += port.lost(lost, now + 0.3)  # as a stick whose supply breaks down
        now = port.at
    assert len(told) <= 26
    assert sum(event.fields.get("times", 1) for event in told if event.name == "port-lost") > 1350


def test_a_device_that_is_not_there_is_looked_for_every_second_and_told_of_every_hour() -> None:
    port, lost, told = Reopening(), PortLost("/dev/ttyUSB0", "cannot open: No such file"), list[PortEvent]()
    for second in range(86_400):
        assert port.at <= second
        told += port.failed(lost, float(second))
    assert len(told) == 24
    up = port.opened("/dev/ttyUSB0", 86_400.0)
    assert up[0].fields["tries"] == 86_401


def test_a_cable_that_was_in_use_is_back_a_second_after_each_pull() -> None:
    port, lost = Reopening(), PortLost("/dev/ttyUSB0", "the device hung up")
    for pull in range(5):
        now = 100.0 * pull
        assert len(port.opened("/dev/ttyUSB0", now)) == 1
        port.alive("/dev/ttyUSB0", now + 0.1, heard=True)
        assert len(port.lost(lost, now + 0.2)) == 1
        assert port.at == now + 1.2


def test_the_doctor_shows_what_a_terminal_server_says(tmp_path: Path) -> None:
    with refusing(b"Port already in use\r\n") as server:
        node = board_with(tmp_path / "mission", server.url)
        done = run("onboard", "doctor", str(node), code=1)
    assert "FAIL  port       " in done.stdout
    assert "it said 'Port already in use'" in done.stdout
