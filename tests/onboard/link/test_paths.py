"""Over UDP, where an end may not know where the other is: it learns that from proof alone, keeps it with its
state, and finds an end that moved or lost its state. Real sockets, a virtual clock."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from onboard.link.peer import KEEP_AT_ONCE, KEEP_S, Addresses
from onboard.mission.objects import UPDATE
from onboard.wire.events import Arrived, Message
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import NO_SALT
from onboard.wire.transfer.peer import QUIET_S
from tests.onboard.link.lan import LanEnd, PortLan, board_names, free, ground_names
from tests.onboard.link.objects import payload

HEADERS = 28


@pytest.fixture(params=[ground_names, board_names], ids=["board-learns", "ground-learns"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PortLan]:
    made = PortLan(tmp_path, *request.param("0.0.0.0"))
    yield made
    for end in made.ends.values():
        end.pump.close(made.clock.now)


def learner(net: PortLan) -> LanEnd:
    return net.board if "?bind" in net.board.url else net.ground


def namer(net: PortLan) -> LanEnd:
    return net.ground if learner(net) is net.board else net.board


def attacker(host: str = "127.0.0.9") -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((host, 0))
    made.setblocking(False)
    return made


def got(foe: socket.socket) -> list[bytes]:
    frames = []
    while True:
        try:
            frames.append(foe.recv(65_536))
        except BlockingIOError:
            return frames


def test_two_ends_of_which_one_learns_meet_and_an_object_crosses_each_way(net: PortLan) -> None:
    learns = learner(net)
    net.run(0.1)
    assert len(learns.lines("peer-unknown")) == 1
    assert learns.pump.session.snapshot(net.clock.now).bytes_sent == learns.pump.port_snapshot().tx_bytes
    net.meet()
    assert len(learns.lines("peer-at")) == 1
    assert learns.peer == f"127.0.0.1:{namer(net).address[1]}"
    for end in net.ends.values():
        end.pump.session.offer(UPDATE, payload(20_000, end.epoch + end.is_ground), net.clock.now)
    net.run(10.0, lambda: all(end.told(Arrived) for end in net.ends.values()))
    for end in net.ends.values():
        sent = end.pump.session.snapshot(net.clock.now).bytes_sent
        assert sent == end.pump.port_snapshot().tx_bytes  # none of it went nowhere


def test_what_goes_nowhere_is_not_counted_as_sent(net: PortLan) -> None:
    net.meet()
    learns = learner(net)
    learns.lose()
    namer(net).kill()
    for _ in range(200):
        net.clock.now += 0.5
        learns.pump.session.send_message(b"anybody?", net.clock.now)
        for event in learns.pump.poll(net.clock.now):
            learns.act(event)
    snapshot = learns.pump.session.snapshot(net.clock.now)
    assert (snapshot.bytes_sent, snapshot.hellos_sent) == (0, 0)
    assert learns.peer == ""
    assert len(learns.lines("peer-unknown")) == 2  # once for each start
    namer(net).boot()
    net.says(namer(net), 20.0)


@pytest.mark.parametrize("victims", [("ground",), ("board",), ("ground", "board")], ids="-".join)
def test_a_restart_goes_on_at_once(net: PortLan, victims: tuple[str, ...]) -> None:
    """An end without `bind` has the port that it had."""
    net.meet()
    for name in victims:
        net.ends[name].restart()
    learns = learner(net)
    net.run(0.1)
    assert learns.peer  # from the disk
    net.run(5.0, lambda: learns.peer == f"127.0.0.1:{namer(net).address[1]}")
    net.says(learns, 1.5)
    net.says(namer(net), 1.5)


def test_a_learner_that_is_killed_speaks_at_once_to_where_the_other_end_was(net: PortLan) -> None:
    net.meet()
    learner(net).restart()
    assert net.says(learner(net), 1.0) < 0.2


@pytest.mark.parametrize("victims", [("ground",), ("board",), ("ground", "board")], ids="-".join)
def test_a_lost_disk_is_found_again(net: PortLan, victims: tuple[str, ...]) -> None:
    """Where the learner lost its disk, the other end has nothing to say and does not know that it should."""
    net.meet()
    for name in victims:
        net.ends[name].lose()
    net.run(QUIET_S + 5.0, lambda: net.ground.salt == net.board.salt != NO_SALT)
    assert net.ground.salt == net.board.salt
    for end in net.ends.values():
        net.says(end, 3.0)


def test_an_end_that_moves_is_followed(net: PortLan) -> None:
    """The end that names the other has another address: nothing but its next frame says so."""
    net.meet()
    moves, learns = namer(net), learner(net)
    moves.pump.close(net.clock.now)
    moves.url += "?bind=127.0.0.7:0"
    moves.boot()
    net.says(moves, 5.0)
    assert learns.peer == f"127.0.0.7:{moves.address[1]}"
    net.says(learns, 1.5)


def test_some_moves_in_a_row_are_on_the_disk_at_once_and_many_wear_no_card_out(net: PortLan) -> None:
    """A kill right after the second one loses nothing; two paths that take turns are written seldom."""
    net.meet()
    moves, learns = namer(net), learner(net)
    base, note = moves.url, learns.folder / "peer"
    began, written = net.clock.now, [note.read_bytes()]
    for turn in range(12):
        moves.pump.close(net.clock.now)
        moves.url = f"{base}?bind=127.0.0.{20 + turn}:0"
        moves.boot()
        net.run(4.0, lambda turn=turn: learns.peer.startswith(f"127.0.0.{20 + turn}:"))
        if note.read_bytes() != written[-1]:
            written.append(note.read_bytes())
        if turn < 2:
            assert f"\n{learns.peer}\n".encode() in written[-1]
    assert len(written) <= 1 + KEEP_AT_ONCE + (net.clock.now - began) / KEEP_S


def test_an_end_that_is_named_and_moves_is_followed(net: PortLan) -> None:
    net.meet()
    learns, names = learner(net), namer(net)
    was = names.peer
    learns.pump.close(net.clock.now)
    learns.url = "udp://?bind=127.0.0.8:0"
    Addresses(learns.url, f"127.0.0.1:{names.address[1]}").store(learns.folder)
    learns.boot()
    net.says(learns, 5.0)
    assert names.peer == f"127.0.0.8:{learns.address[1]}" != was
    net.says(names, 1.5)


@pytest.mark.parametrize("known", [True, False])
def test_a_hello_that_was_recorded_teaches_nobody(net: PortLan, known: bool) -> None:
    """Before the peer is known, and after: it is answered to where it came from, and that is all."""
    net.meet()
    learns, names = learner(net), namer(net)
    names.lose()
    net.run(10.0, lambda: net.ground.salt == net.board.salt != NO_SALT)
    hellos = learns.heard(Type.HELLO)
    assert len(hellos) >= 3
    if not known:
        names.kill()
        learns.lose()
        net.run(0.1)
    before = learns.peer
    with closing(attacker()) as foe:
        for raw in hellos * 3:
            foe.sendto(raw, learns.address)
        net.run(2.0)
        assert learns.peer == before == (f"127.0.0.1:{names.address[1]}" if known else "")
        answers = got(foe)
        assert 1 <= len(answers) <= len(hellos)
        assert all(framing.is_hello(raw) for raw in answers)
        if not known:
            names.boot()
        net.says(names, 20.0)
        net.says(learns, 3.0)
        assert learns.peer == f"127.0.0.1:{names.address[1]}"
        assert got(foe) == []


def test_a_fresh_hello_that_is_copied_is_no_fresh_hello(net: PortLan) -> None:
    """The one that answered our challenge proved its sender; from elsewhere it is a recording."""
    net.meet()
    net.run(QUIET_S + 2.0)  # each asks whether the other is there, and is answered
    before = {name: end.peer for name, end in net.ends.items()}
    stale = sum(end.pump.session.snapshot(net.clock.now).hellos_stale for end in net.ends.values())
    copied = 0
    with closing(attacker()) as foe:
        for end in net.ends.values():
            for raw in end.heard(Type.HELLO):
                copied += 1
                foe.sendto(raw, end.address)
        net.run(1.0)
        after = [end.pump.session.snapshot(net.clock.now) for end in net.ends.values()]
        assert sum(each.hellos_stale for each in after) < stale + copied  # some answer the challenge of now
        assert {name: end.peer for name, end in net.ends.items()} == before


def test_data_that_was_recorded_moves_nobody(net: PortLan) -> None:
    net.meet()
    learns, names = learner(net), namer(net)
    names.pump.session.offer(UPDATE, payload(9_000), net.clock.now)
    net.run(5.0, lambda: bool(learns.told(Arrived)))
    before, recorded = learns.peer, learns.heard()
    with closing(attacker()) as foe:
        for raw in recorded:
            foe.sendto(raw, learns.address)
        net.run(0.5)
        assert learns.peer == before
        learns.restart()  # and not after a restart either
        net.run(0.1)
        for raw in recorded:
            foe.sendto(raw, learns.address)
        net.run(0.5)
        assert learns.peer == before
        assert not [raw for raw in got(foe) if not framing.is_hello(raw)]


def test_an_old_frame_that_comes_late_from_elsewhere_moves_nobody(net: PortLan) -> None:
    """It was never taken before, so it is no replay: but what came meanwhile is newer, and says where."""
    net.meet()
    learns, names = learner(net), namer(net)
    with closing(attacker()) as foe:
        names.pump.session.send_message(b"held back", net.clock.now)
        held = names.pump.session.transmit(net.clock.now)
        assert held is not None
        net.says(names, 2.0)
        before = learns.peer
        foe.sendto(held, learns.address)
        net.run(0.5)
        assert Message(b"held back") in learns.events
        assert learns.peer == before


def test_a_flood_of_recorded_hellos_is_not_amplified(net: PortLan) -> None:
    """Never more bytes to an address that proved nothing than came from it."""
    net.meet()
    learns, names = learner(net), namer(net)
    hellos = set[bytes]()
    for _ in range(12):
        names.restart()
        net.meet()
        hellos |= set(learns.heard(Type.HELLO))
    said = 0
    with closing(attacker()) as foe:
        answers: list[bytes] = []
        for _ in range(20):
            for raw in hellos:
                said += len(raw) + HEADERS
                foe.sendto(raw, learns.address)
            net.run(0.2)
            answers += got(foe)
        assert answers
        assert sum(len(raw) + HEADERS for raw in answers) <= said
        assert len(answers) <= len(hellos) * 5
        net.says(learns, 1.5)  # and the link lives on meanwhile
        names.lose()
        for _ in range(20):
            for raw in hellos:
                foe.sendto(raw, learns.address)
            net.run(0.1)
        assert net.ground.salt == net.board.salt != NO_SALT
        assert learns.peer == f"127.0.0.1:{names.address[1]}"


def test_two_boards_behind_one_address_are_told_apart(tmp_path: Path) -> None:
    """Behind address translation they differ by their port; a frame of one at the other's does no harm."""
    numbers = [free(), free()]
    nets = [
        PortLan(tmp_path / str(number), f"udp://?bind=127.0.0.1:{number}", f"udp://127.0.0.1:{number}")
        for number in numbers
    ]
    for net in nets:
        net.meet()
    one, two = nets
    assert one.ground.peer != two.ground.peer
    before = one.ground.peer
    with closing(attacker("127.0.0.1")) as nat:
        for raw in two.ground.heard():
            nat.sendto(raw, ("127.0.0.1", numbers[0]))
        one.run(0.5)
    assert one.ground.peer == before
    one.board.kill()
    (one.board.folder / "peer").unlink()
    one.board.boot()  # its translation has another port now
    one.says(one.board, 5.0)
    assert one.ground.peer not in (before, two.ground.peer)
    for net in nets:
        for end in net.ends.values():
            end.pump.close(net.clock.now)


def test_an_idle_link_asks_seldom(net: PortLan) -> None:
    net.meet()
    net.run(120.0, step_s=0.25)
    before = sum(end.pump.port_snapshot().tx_bytes for end in net.ends.values())
    net.run(300.0, step_s=0.25)
    after = sum(end.pump.port_snapshot().tx_bytes for end in net.ends.values())
    assert 0 < (after - before) / 5 <= 125  # bytes a minute, of both ends


def test_a_peer_that_is_off_is_asked_seldom(net: PortLan) -> None:
    net.meet()
    names = namer(net)
    learner(net).kill()
    before = names.pump.port_snapshot().tx_bytes
    for _ in range(1200):
        net.clock.now += 0.5
        names.pump.poll(net.clock.now)
    assert (names.pump.port_snapshot().tx_bytes - before) / 10 <= 150  # bytes a minute


def test_a_damaged_note_of_the_peer_is_no_note(net: PortLan) -> None:
    net.meet()
    learns = learner(net)
    for content in (b"", b"\xff\xfe", b"udp://other\n1.2.3.4:5\n", f"{learns.url}\nnonsense\n".encode()):
        (learns.folder / "peer").write_bytes(content)
        learns.restart()
        net.run(0.1)
        net.says(namer(net), 70.0)
