"""Ports behind a network: a terminal server (RFC 2217) and plain TCP. No daemon ever waits for either."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hw_profiles import load_link
from onboard.link.ports.port import BadUrl, Port, PortEvent, PortLost
from onboard.link.ports.schemes import open_port, opener
from onboard.link.pump import Pump, PumpEvent
from onboard.mission.objects import UPDATE
from onboard.wire.events import Arrived
from onboard.wire.framing import cobs
from tests.onboard.link.cable import PtyCable
from tests.onboard.link.objects import payload
from tests.onboard.link.terminal_server import TerminalServer
from tests.onboard.link.test_pump import pump

LINK = load_link("bench-serial-115k2")
pytestmark = pytest.mark.filterwarnings("ignore:set(Daemon|Name):DeprecationWarning")  # pyserial's rfc2217


@pytest.fixture
def terminal_server(cable: PtyCable) -> Iterator[TerminalServer]:
    server = TerminalServer(cable.b)
    yield server
    server.close()


def until(port: Port, count: int, cable: PtyCable) -> list[bytes]:
    frames: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(frames) < count:
        assert time.monotonic() < deadline, f"{len(frames)} frames of {count}"
        cable.carry()
        frames += port.read()
        select.select([], [], [], 0.002)
    return frames


def test_frames_cross_a_terminal_server_both_ways(cable: PtyCable, terminal_server: TerminalServer) -> None:
    here = open_port(str(cable.a), LINK)
    there = open_port(terminal_server.url, LINK)
    sent = [b"\xff\xff\x00telnet's own byte", bytes(range(256)), bytes(500)]
    for frame in sent:
        there.write(frame)
    assert until(here, 3, cable) == sent
    here.write(bytes(range(256)))
    assert until(there, 1, cable) == [bytes(range(256))]
    assert terminal_server.baud == 115_200
    assert there.fileno() == -1
    here.close()
    start = time.monotonic()
    there.close()
    assert time.monotonic() - start < 0.25  # pyserial's own close sleeps for longer than that


def test_a_terminal_server_that_goes_away_is_lost_though_nothing_is_sent(
    cable: PtyCable, terminal_server: TerminalServer
) -> None:
    port = open_port(terminal_server.url, LINK)
    assert port.read() == []
    terminal_server.hang_up()
    with pytest.raises(PortLost, match=r"the far end closed|reader thread died"):
        read_until_lost(port)
    port.close()


def read_until_lost(port: Port) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        port.read()
        select.select([], [], [], 0.002)


def test_a_transfer_goes_on_when_the_terminal_server_is_back(
    cable: PtyCable, terminal_server: TerminalServer, tmp_path: Path
) -> None:
    start = time.monotonic()
    ground = pump(terminal_server.url, tmp_path / "g", start, master=True)
    board = pump(str(cable.a), tmp_path / "b", start, master=False)
    whole, told = payload(12_000), list[PumpEvent]()
    board.session.offer(UPDATE, whole, start)
    cut = False
    while not any(isinstance(event, Arrived) for event in told):
        now = time.monotonic()
        assert now < start + 30, told
        board.poll(now)
        told += ground.poll(now)
        cable.carry()
        if not cut and any(incoming.have > 3 for incoming in ground.session.incoming.values()):
            cut = True
            terminal_server.hang_up()
        select.select([], [], [], 0.001)
    names = [event.name for event in told if isinstance(event, PortEvent)]
    assert names == ["port-open", "port-lost", "port-open"]
    assert [event.payload for event in told if isinstance(event, Arrived)] == [whole]
    for end in (ground, board):
        end.close(time.monotonic())


@pytest.fixture
def full_listener() -> Iterator[int]:
    """A TCP port that answers no connection, as behind a firewall: its queue of them is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as waiting:
        port = server.getsockname()[1]
        for _ in range(8):
            attempt = waiting.enter_context(socket.socket())
            attempt.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                attempt.connect(("127.0.0.1", port))
        yield port


@pytest.mark.parametrize("scheme", ["socket", "rfc2217", "kiss+tcp"])
def test_a_host_that_does_not_answer_holds_nobody_up(scheme: str, full_listener: int, tmp_path: Path) -> None:
    waiting = pump(f"{scheme}://127.0.0.1:{full_listener}", tmp_path, master=True)
    start = time.monotonic()
    for turn in range(20):
        assert waiting.poll(turn / 10) == []
        assert turn / 10 < waiting.wakeup(turn / 10) <= turn / 10 + 0.1
    assert time.monotonic() - start < 1.0
    assert not waiting.is_open


def test_an_attempt_in_the_background_tells_its_outcome_once_and_begins_anew() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        attempt = opener(f"socket://127.0.0.1:{number}", LINK)
        port = outcome_of(attempt)
        assert port is not None
        port.close()
    for _ in range(2):
        with pytest.raises(PortLost, match="refused"):
            outcome_of(attempt)
    with pytest.raises(BadUrl):  # told at once: there is nothing to wait for
        opener("nosuch://thing", LINK)


def outcome_of(attempt: object) -> Port | None:
    assert callable(attempt)
    deadline = time.monotonic() + 10
    while (port := attempt()) is None:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.002)
    return port  # type: ignore[no-any-return]


def test_over_tcp_too_no_more_than_two_frames_wait_in_the_kernel(tmp_path: Path) -> None:
    """The far end reads nothing, and its window is small: what TCP has not got rid of is what we wrote."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        server.bind(("127.0.0.1", 0))
        server.listen()
        end = pump(f"socket://127.0.0.1:{server.getsockname()[1]}", tmp_path, master=True)
        poll_until_open(end)
        peer, _ = server.accept()
        for seed in range(20):
            end.session.offer(UPDATE, payload(60_000, seed), 0.0)
        port = end._port
        assert port is not None
        written = worst = 0
        for turn in range(2_000):
            end.poll(1.0 + turn * 0.1)
            worst = max(worst, port.queued_bytes())
            if port.tx_bytes == written and turn > 200:
                break
            written = port.tx_bytes
        assert port.queued_bytes() > 0
        assert worst <= 2 * cobs.wire_bytes(LINK.mtu_bytes)
        for _ in range(100):  # the kernel may have taken some since, and there may be something to say
            if end.wakeup(1e6) > 1e6:
                break
            end.poll(1e6)
        assert end.wakeup(1e6) > 1e6  # it does not spin meanwhile
        peer.close()
        end.close(1e6)


def poll_until_open(end: Pump) -> None:
    now, deadline = 0.0, time.monotonic() + 10
    while not end.is_open:
        assert time.monotonic() < deadline
        now += 0.05
        end.poll(now)
        select.select([], [], [], 0.002)
