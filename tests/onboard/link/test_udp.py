"""Over real sockets: one frame is one datagram, counted with its headers, and only the peer is heard."""

from __future__ import annotations

import dataclasses
import os
import select
import socket
from collections.abc import Iterator

import pytest

from hw_profiles import load_link
from onboard.link.ports.port import BadUrl, PortLost
from onboard.link.ports.schemes import open_port
from onboard.link.ports.udp import UdpPort
from tests.onboard.link.lan import free

LINK = dataclasses.replace(load_link("bench-udp"), mtu_bytes=1200)


def udp(url: str) -> UdpPort:
    port = open_port(url, LINK)
    assert isinstance(port, UdpPort)
    return port


def collect(port: UdpPort, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        assert select.select([port.fileno()], [], [], 5)[0], f"{len(frames)} frames of {count}"
        frames += port.read()
    return frames


@pytest.fixture(params=["127.0.0.1", "[::1]"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[UdpPort, UdpPort]]:
    host: str = request.param
    try:
        ground, board = free(host.strip("[]")), free(host.strip("[]"))
    except OSError:
        pytest.skip(f"this machine has no {host}")
    a = udp(f"udp://{host}:{board}?bind={host}:{ground}")
    b = udp(f"udp://{host}:{ground}?bind={host}:{board}")
    yield a, b
    a.close()
    b.close()


def test_frames_cross_both_ways_and_are_counted_with_their_headers(ends: tuple[UdpPort, UdpPort]) -> None:
    a, b = ends
    headers = 48 if ":" in a.local[0] else 28
    sent = [b"", b"x" * 1200, bytes(range(256))]
    for frame in sent:
        a.write(frame)
    assert collect(b, 3) == sent
    b.write(b"answer")
    assert collect(a, 1) == [b"answer"]
    assert (a.tx_bytes, b.rx_bytes) == (1456 + 3 * headers, 1456 + 3 * headers)
    assert (b.tx_bytes, a.rx_bytes) == (6 + headers, 6 + headers)
    assert a.queued_bytes() == a.kept_bytes() == 0


def test_nothing_there_is_nothing(ends: tuple[UdpPort, UdpPort]) -> None:
    assert ends[0].read() == []


def test_a_datagram_longer_than_any_frame_is_dropped(ends: tuple[UdpPort, UdpPort]) -> None:
    a, b = ends
    a.write(b"x" * 1201)
    a.write(b"good")
    assert collect(b, 1) == [b"good"]
    assert b.broken == 1


def test_a_stranger_is_heard_and_never_spoken_to(ends: tuple[UdpPort, UdpPort]) -> None:
    a, b = ends
    host, number = b.local
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind((host, 0))
        stranger.sendto(b"noise", (host, number))
        a.write(b"good")
        assert collect(b, 2) == [b"noise", b"good"]  # the noise is counted, as no frame
        b.write(b"answer")
        assert collect(a, 1) == [b"answer"]
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(100)


def test_a_peer_that_is_not_up_yet_is_no_error() -> None:
    here, there = free(), free()
    a = udp(f"udp://127.0.0.1:{there}?bind=127.0.0.1:{here}")
    for _ in range(5):
        a.write(b"into the void")  # from the second on the kernel knows that nobody listens
        assert a.read() == []
    b = udp(f"udp://127.0.0.1:{here}?bind=127.0.0.1:{there}")
    a.write(b"now")
    assert collect(b, 1) == [b"now"]
    a.close()
    b.close()


def test_a_peer_is_learned_only_from_what_proved_authentic() -> None:
    ground = udp("udp://?bind=127.0.0.1:0")
    number = ground.local[1]
    board = udp(f"udp://127.0.0.1:{number}")
    ground.write(b"to nobody")
    assert ground.tx_bytes == 0
    board.write(b"hello")
    (hello,) = collect(ground, 1)
    ground.trust(ground.origin(hello))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"noise", ("127.0.0.1", number))
        assert collect(ground, 1) == [b"noise"]  # heard, so that it is counted, but not trusted
    ground.write(b"answer")
    assert collect(board, 1) == [b"answer"]
    moved = udp(f"udp://127.0.0.1:{number}")  # the same board behind another address
    moved.write(b"hello")
    (hello,) = collect(ground, 1)
    ground.trust(ground.origin(hello))
    ground.write(b"there you are")
    assert collect(moved, 1) == [b"there you are"]
    for port in (ground, board, moved):
        port.close()


def test_an_address_in_use() -> None:
    a = udp("udp://?bind=127.0.0.1:0")
    with pytest.raises(PortLost, match="in use"):
        udp(f"udp://?bind=127.0.0.1:{a.local[1]}")
    a.close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(PortLost, match="assign"):
        udp("udp://?bind=192.0.2.1:9000")  # RFC 5737: nobody's


@pytest.mark.parametrize(
    "url",
    [
        "udp:", "udp://", "udp://host", "udp://host:port", "udp://host:99999", "udp://:9000", "udp://h:1/path",
        "udp://h:1?bind=nothing", "udp://h:1?bind=", "udp://h:1?bnd=h:2", "udp://[::1:9000",
    ],
)  # fmt: skip
def test_a_url_that_is_not_understood_is_one_line_that_names_it(url: str) -> None:
    with pytest.raises(BadUrl) as caught:
        udp(url)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_peer_is_at_the_address_of_the_url_until_it_is_heard_elsewhere() -> None:
    ground = udp(f"udp://127.0.0.1:{free()}?bind=127.0.0.1:0")
    (named,), number = ground.places(), ground.local[1]
    board = udp(f"udp://127.0.0.1:{number}?bind=127.0.0.2:0")
    board.write(b"I have another lease")
    (frame,) = collect(ground, 1)
    ground.trust(ground.origin(frame))
    assert ground.peer == f"127.0.0.2:{board.local[1]}"
    ground.write(b"there you are")
    assert collect(board, 1) == [b"there you are"]
    assert ground.places() == [("127.0.0.2", board.local[1]), named]
    for port in (ground, board):
        port.close()


def test_an_answer_goes_to_whoever_asked_and_changes_nothing() -> None:
    ground = udp("udp://?bind=127.0.0.1:0")
    asker = udp(f"udp://127.0.0.1:{ground.local[1]}")
    asker.write(b"who is there")
    (frame,) = collect(ground, 1)
    ground.answer(b"me", ground.origin(frame))
    assert collect(asker, 1) == [b"me"]
    assert ground.peer is None
    assert ground.tx_bytes == len(b"me") + 28
    for port in (ground, asker):
        port.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_peer_is_recalled_as_it_was_told(host: str) -> None:
    try:
        number = free(host.strip("[]"))
    except OSError:
        pytest.skip(f"this machine has no {host}")
    port = udp(f"udp://?bind={host}:0")
    for nonsense in ("", "nobody", "name.example:4800", "192.0.2.1", "[::1", "192.0.2.1:99999"):
        port.recall(nonsense)
        assert port.peer is None
    port.recall(f"{host}:{number}")
    assert port.peer == f"{host}:{number}"
    port.close()


def test_a_frame_that_is_too_long_for_the_path_is_lost_and_the_port_is_not() -> None:
    """As the kernel says where a router told it of a smaller MTU: "message too long" is no lost port."""
    link = dataclasses.replace(LINK, mtu_bytes=65_507)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
        peer.bind(("::1", 0))
        port = open_port(f"udp://[::1]:{peer.getsockname()[1]}", link)
        with socket.socket(fileno=os.dup(port.fileno())) as same:
            same.setsockopt(
                socket.IPPROTO_IPV6, 62, 1
            )  # IPV6_DONTFRAG (RFC 3542), which Python does not name
        port.write(bytes(65_507))  # 20 B more than the loopback's 65,536 with its headers
        port.write(b"short")
        assert peer.recv(100) == b"short"
        assert port.kept_bytes() == 0
        port.close()
