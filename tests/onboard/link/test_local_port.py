"""An end whose URL asks for any port has the same one after each restart: the other end may have moved, and
then nothing but its memory of this end brings the two together. Real sockets, a virtual clock."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from onboard.link.peer import Addresses
from onboard.wire.security.seal import NO_SALT
from tests.onboard.link.lan import LanEnd, PortLan, board_names, free, free_over_ipv6, ground_names

ANSWER_S = 8.0  # a HELLO at once or 2 s after the start, again 2 and 4 s later


def ground_binds_a_host() -> tuple[str, str]:
    """At one of its addresses, at any port there."""
    number = free()
    return f"udp://127.0.0.1:{number}?bind=127.0.0.3:0", f"udp://?bind=127.0.0.1:{number}"


def over_ipv6() -> tuple[str, str]:
    number = free_over_ipv6()
    return f"udp://[::1]:{number}", f"udp://?bind=[::1]:{number}"


@pytest.fixture
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PortLan]:
    urls: Callable[[], tuple[str, str]] = getattr(request, "param", ground_names)
    made = PortLan(tmp_path, *urls())
    yield made
    close(made)


def close(net: PortLan) -> None:
    for end in net.ends.values():
        end.pump.close(net.clock.now)


def namer(net: PortLan) -> LanEnd:
    return net.board if net.ground.url.startswith("udp://?") else net.ground


def learner(net: PortLan) -> LanEnd:
    return net.ground if namer(net) is net.board else net.board


def lease(end: LanEnd) -> None:
    """That end, which is off, gets another address; what its disk says stays. On ::1, which is one address,
    its port is another one: to the other end that is the same."""
    before = end.url
    is_ipv6 = "[" in before
    number = before.rpartition(":")[2]
    end.url = "udp://?bind=[::1]:0" if is_ipv6 else f"udp://?bind=127.0.0.8:{number}"
    replace(Addresses.load(end.folder), url=end.url).store(end.folder)


def both_met(net: PortLan) -> bool:
    return net.ground.salt == net.board.salt != NO_SALT


@pytest.mark.parametrize("net", [ground_names, board_names, ground_binds_a_host, over_ipv6], indirect=True)
@pytest.mark.parametrize("first", ["namer", "learner"])
def test_a_power_cut_at_both_and_a_new_lease_at_the_end_that_is_named(net: PortLan, first: str) -> None:
    """The one looks for the other where that is no more: it is the other that finds it."""
    net.meet()
    names, learns = namer(net), learner(net)
    number = names.address[1]
    for end in (names, learns):
        end.kill()
    lease(learns)
    for end in (names, learns) if first == "namer" else (learns, names):
        end.boot()
        net.run(3.0)
    net.run(ANSWER_S, lambda: both_met(net))
    assert names.address[1] == number
    for end in (names, learns):
        net.says(end, 3.0)


def test_the_first_port_is_kept_before_anybody_can_hear_of_it(net: PortLan) -> None:
    net.ground.pump.poll(net.clock.now)
    number = net.ground.address[1]
    net.ground.restart()
    net.run(0.1)
    assert net.ground.address[1] == number
    net.meet()


def test_killed_again_and_again_before_they_meet(net: PortLan) -> None:
    net.meet()
    number = net.ground.address[1]
    net.board.kill()
    lease(net.board)
    for _ in range(3):
        net.ground.restart()
        net.run(1.0)
    net.board.boot()
    net.run(ANSWER_S, lambda: both_met(net))
    assert net.ground.address[1] == number


def test_two_links_of_one_ground_keep_their_own(tmp_path: Path) -> None:
    nets = [PortLan(tmp_path / name, *ground_names()) for name in ("pi", "nano")]
    for net in nets:
        net.meet()
    numbers = [net.ground.address[1] for net in nets]
    assert len(set(numbers)) == 2
    for net in nets:
        net.ground.kill()
        net.board.kill()
        lease(net.board)
    for net in reversed(nets):
        net.board.boot()
        net.ground.boot()
    for net in nets:
        net.run(ANSWER_S, lambda net=net: both_met(net))
    assert [net.ground.address[1] for net in nets] == numbers
    for net in nets:
        close(net)


def holds(number: int) -> closing[socket.socket]:
    """Another program has that port."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", number))
    return closing(made)


def test_a_port_that_another_program_has_is_told_and_costs_no_link(net: PortLan) -> None:
    net.meet()
    ground, number = net.ground, net.ground.address[1]
    ground.kill()
    with holds(number):
        ground.boot()
        net.run(0.1)
        (taken,) = ground.lines("local-port-taken")
        assert taken.fields == {"port": ground.url, "local_port": number, "why": "Address already in use"}
        net.says(ground, 3.0)
    met_at = ground.address[1]
    assert met_at != number
    ground.restart()
    net.run(0.1)
    assert ground.address[1] == met_at  # where the board heard it last
    assert len(ground.lines("local-port-taken")) == 1


def test_until_they_meet_at_another_port_the_first_is_tried_again(net: PortLan) -> None:
    net.meet()
    ground, number = net.ground, net.ground.address[1]
    net.board.kill()
    ground.kill()
    lease(net.board)
    with holds(number):
        ground.boot()
        net.run(1.0)
        ground.pump.close(net.clock.now)  # in order, and with time to write what it knows
    ground.boot()
    net.board.boot()
    net.run(ANSWER_S, lambda: both_met(net))
    assert ground.address[1] == number


@pytest.mark.parametrize(
    "line", ["", "\n", "0\n", "80\n", "65536\n", "-5\n", "99999999999\n", "x\n\n\n", "٣\n"]
)
def test_a_note_that_is_damaged_is_no_note(net: PortLan, line: str) -> None:
    """The peer's address before it is as good as ever; of the system ports none was ever given."""
    net.meet()
    net.ground.kill()
    (net.ground.folder / "peer").write_text(f"{net.ground.url}\n{net.ground.peer}\n{line}", encoding="utf-8")
    net.ground.boot()
    net.run(0.1)
    assert net.ground.address[1] >= 1024
    assert not net.ground.lines("local-port-taken")
    net.says(net.ground, 3.0)
    net.says(net.board, 3.0)


def test_a_port_that_the_url_says_is_not_another_one(net: PortLan) -> None:
    """Whatever the disk says: the other end may name this one."""
    net.meet()
    board, number = net.board, net.board.address[1]
    board.kill()
    Addresses(board.url, f"127.0.0.1:{net.ground.address[1]}", free()).store(board.folder)
    board.boot()
    net.says(board, 3.0)
    assert board.address[1] == number
    assert not board.lines("local-port-taken")


def test_a_disk_that_refuses_costs_the_note_and_not_the_link(net: PortLan) -> None:
    net.ground.kill()
    (net.ground.folder / "peer").mkdir()
    net.ground.boot()
    net.meet()
    net.says(net.ground, 3.0)
