"""A host is where its name says now, not where it said once: names are looked up again, and nobody waits."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from hw_profiles import load_link
from onboard.link.peer import Addresses
from onboard.link.ports.port import Port, PortLost
from onboard.link.ports.schemes import opener
from onboard.link.ports.udp import UdpPort
from onboard.wire.security.seal import NO_SALT
from onboard.wire.transfer.peer import QUIET_S
from tests.onboard.link.lan import LINK, PortLan, free, free_over_ipv6

NAME = "nano.test"
Names = dict[str, list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A name server of the test's: what is not in it is looked up as ever, an empty list is no answer."""
    known: Names = {}
    system = socket.getaddrinfo

    def look_up(host: str, port: int, *how: int) -> list[tuple[object, ...]]:
        if host not in known:
            return list(system(host, port, *how))
        if not known[host]:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [entry for address in known[host] for entry in system(address, port, *how)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def named(folder: Path, names: Names, *addresses: str) -> PortLan:
    """The ground knows the board by its name, and the board is at the last of these addresses."""
    number = free(addresses[-1])
    names[NAME] = list(addresses)
    return PortLan(folder, f"udp://{NAME}:{number}", f"udp://?bind={addresses[-1]}:{number}")


def move(net: PortLan, to: str) -> None:
    """The board starts again at another address, and remembers nothing: it waits to be found."""
    number = net.board.url.rpartition(":")[2]
    net.board.url = f"udp://?bind={to}:{number}"
    net.board.lose()


def end(net: PortLan) -> None:
    for each in net.ends.values():
        each.pump.close(net.clock.now)


def test_a_board_that_has_another_address_is_found_by_its_name(tmp_path: Path, names: Names) -> None:
    net = named(tmp_path, names, "127.0.0.5")
    net.meet()
    move(net, "127.0.0.6")
    names[NAME] = ["127.0.0.6"]
    net.run(QUIET_S + 30.0, lambda: net.ground.salt == net.board.salt != NO_SALT)
    assert net.ground.peer.startswith("127.0.0.6:")
    net.says(net.ground, 3.0)
    net.says(net.board, 3.0)
    end(net)


def test_each_of_a_name_s_addresses_is_tried(tmp_path: Path, names: Names) -> None:
    net = named(tmp_path, names, "127.0.0.7", "127.0.0.8", "127.0.0.5")  # at the first two nobody listens
    net.run(60.0, lambda: net.ground.salt == net.board.salt != NO_SALT)
    assert net.ground.peer.startswith("127.0.0.5:")
    end(net)


def test_a_board_that_is_heard_elsewhere_is_there_whatever_its_name(tmp_path: Path, names: Names) -> None:
    """The name server is behind: proof counts for more."""
    net = named(tmp_path, names, "127.0.0.5")
    net.meet()
    net.board.pump.close(net.clock.now)
    net.board.url = net.board.url.replace("127.0.0.5", "127.0.0.6")
    Addresses(net.board.url, f"127.0.0.1:{net.ground.address[1]}").store(net.board.folder)
    net.board.boot()
    net.says(net.board, 5.0)
    net.says(net.ground, 5.0)
    net.run(2 * QUIET_S)
    assert net.ground.peer.startswith("127.0.0.6:")
    end(net)


def test_a_name_server_that_gives_no_answer_costs_nothing(tmp_path: Path, names: Names) -> None:
    net = named(tmp_path, names, "127.0.0.5")
    net.meet()
    names[NAME] = []
    move(net, "127.0.0.6")
    net.run(60.0)
    names[NAME] = ["127.0.0.6"]
    net.run(90.0, lambda: net.ground.salt == net.board.salt != NO_SALT)
    end(net)


def test_nobody_waits_for_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers after a minute: the port goes on meanwhile, and looks nobody up twice at a time."""
    answers, asked = threading.Event(), list[str]()

    def slow(host: str, port: int, *how: int) -> list[tuple[object, ...]]:
        asked.append(host)
        if len(asked) > 1:
            answers.wait(60)
        return [(*how, 0, "", ("127.0.0.5" if len(asked) == 1 else "127.0.0.6", port))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with closing(UdpPort(f"udp://{NAME}:4800", max_frame_bytes=1200, tap=None)) as port:
        began = time.monotonic()
        for _ in range(50):
            port.seek()
            port.write(b"anybody?")
            assert port.read() == []
        assert time.monotonic() - began < 1.0
        assert len(asked) == 2
        assert port.peer == "127.0.0.5:4800"
        answers.set()
        while port.peer != "127.0.0.6:4800":
            assert time.monotonic() < began + 10
            port.seek()
            select.select([], [], [], 0.002)


@pytest.mark.parametrize("scheme", ["socket", "kiss+tcp"])
def test_a_terminal_server_that_has_another_address_is_found_by_its_name(scheme: str, names: Names) -> None:
    """Two addresses, of which one refuses; then another one altogether."""
    with socket.create_server(("127.0.0.5", 0)) as first:
        number = first.getsockname()[1]
        names[NAME] = ["127.0.0.7", "127.0.0.5"]
        attempt = opener(f"{scheme}://{NAME}:{number}", load_link("bench-serial-115k2"))
        port = opened(attempt)
        far, _ = first.accept()
        far.close()
        with pytest.raises(PortLost):
            read_on(port)
        port.close()
    names[NAME] = ["127.0.0.6"]
    with socket.create_server(("127.0.0.6", number)) as second:
        port = opened(attempt)
        far, address = second.accept()
        assert far.getsockname()[0] == "127.0.0.6"
        far.close()
        port.close()
        assert address


def opened(attempt: object) -> Port:
    assert callable(attempt)
    deadline = time.monotonic() + 10
    while True:
        port: Port | None = attempt()
        if port is not None:
            return port
        assert time.monotonic() < deadline
        select.select([], [], [], 0.002)


def read_on(port: Port) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        port.read()
        select.select([], [], [], 0.002)


@pytest.fixture
def six() -> int:
    return free_over_ipv6()


@pytest.mark.parametrize("learns", ["ground", "board"])
def test_over_ipv6_one_end_learns_as_well(tmp_path: Path, six: int, learns: str) -> None:
    urls = {"ground": f"udp://[::1]:{six}", "board": f"udp://[::1]:{six}", learns: f"udp://?bind=[::]:{six}"}
    net = PortLan(tmp_path, urls["ground"], urls["board"])
    net.meet()
    learner = net.ends[learns]
    assert learner.peer.startswith("[::1]:")
    learner.restart()
    net.says(learner, 1.0)
    end(net)


def test_the_profile_s_frames_still_fit(names: Names, tmp_path: Path) -> None:
    """Whatever address a name has, frames are as long as before."""
    net = named(tmp_path, names, "127.0.0.5")
    net.meet()
    assert net.ground.pump._port is not None
    assert net.ground.pump._port.max_frame_bytes == LINK.mtu_bytes
    end(net)
