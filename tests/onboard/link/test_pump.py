"""Over real ports: objects cross, the disk is never behind what the application hears, and neither a port
that vanishes, nor a full disk, nor a restart stops the link."""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from firmware_sim.runs.processes import free_ports
from hw_profiles import Link, load_link
from onboard.link.ports.port import BadUrl, PortEvent
from onboard.link.ports.schemes import facts_of, open_port, opener
from onboard.link.pump import Pump, PumpEvent, wait
from onboard.link.spool import Spool
from onboard.mission.objects import UPDATE
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Delivered, Message, Refused, Rekeyed, Withdrawn
from onboard.wire.medium.contact_gate import Window
from onboard.wire.messages import Reason
from onboard.wire.session import Session
from tests.disks import remount, small_disk
from tests.onboard.link.cable import Clock, PtyCable
from tests.onboard.link.objects import lines, payload
from tests.onboard.wire.examples import KEY

SERIAL = load_link("bench-serial-115k2")
UDP = dataclasses.replace(load_link("bench-udp"), mtu_bytes=1200)
MIB = 1 << 20
ENDS = {"ground": "a", "board": "b"}


def pump(
    url: str,
    folder: Path,
    now: float = 0.0,
    *,
    master: bool,
    epoch: int = 1,
    link: Link = SERIAL,
    limit: int = MIB,
    nonce: Callable[[int], bytes] | None = None,
) -> Pump:
    """One end: node 0 is the ground and master, node 3 the board. With a `nonce` the two agree on a salt."""
    spool = Spool(folder, limit)
    session = Session(
        Identity(0 if master else 3, 3 if master else 0, primary=master),
        Medium(link, wire_bytes=facts_of(url).wire_bytes),
        Security(KEY, nonce=nonce),
        SessionState(epoch=epoch, done=spool.finished()),
        now=now,
    )
    return Pump(opener(url, link), session, spool)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ends(cable: PtyCable, folder: Path, now: float = 0.0, epoch: int = 1) -> dict[str, Pump]:
    """Ground and board on the two ends of the cable."""
    return {
        "ground": pump(str(cable.a), folder / "ground", now, master=True, epoch=epoch),
        "board": pump(str(cable.b), folder / "board", now, master=False, epoch=epoch),
    }


def told(kind: type, name: str = "") -> Callable[[dict[str, list[PumpEvent]]], bool]:
    """Whether an event of this kind came (from the pump of this name)."""
    return lambda events: any(
        isinstance(event, kind) for end, of_end in events.items() if name in ("", end) for event in of_end
    )


def holds(end: Pump, digest: bytes, fragments: int) -> Callable[[object], bool]:
    """Whether an end has received that many fragments of an object."""
    incoming = end.session.incoming
    return lambda _: digest in incoming and incoming[digest].have >= fragments


def accept_into(got: list[bytes], pumps: dict[str, Pump], clock: Clock) -> Callable[[str, PumpEvent], None]:
    """An application that accepts every object and collects the payloads."""

    def act(name: str, event: PumpEvent) -> None:
        if isinstance(event, Rekeyed):
            pumps[name].session.rekey(event.salt)
        if isinstance(event, Arrived):
            got.append(event.payload)
            pumps[name].session.accept(event.digest, clock.now)

    return act


def test_objects_cross_both_ways_and_are_stored_before_the_application_hears(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    pumps = ends(cable, tmp_path)
    up, down = payload(9_000, 1), payload(5_000, 2)
    sent = {
        pumps["board"].session.offer(UPDATE, up, 0.0): up,
        pumps["ground"].session.offer(1, down, 0.0): down,
    }
    arrived: dict[bytes, bytes] = {}

    def act(name: str, event: PumpEvent) -> None:
        if isinstance(event, Arrived):
            (stored,) = [part for part in Spool(tmp_path / name, MIB).load() if part.digest == event.digest]
            assert bytes(stored.data) == event.payload
            arrived[event.digest] = event.payload
            pumps[name].session.accept(event.digest, clock.now)

    events = clock.run(
        pumps,
        lambda all_: told(Delivered, "ground")(all_) and told(Delivered, "board")(all_),
        carry=cable.carry,
        act=act,
    )
    assert arrived == sent
    assert [line.fields for line in lines(events["ground"], "port-open")] == [{"port": str(cable.a)}]
    for name in pumps:
        pumps[name].poll(clock.now)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["finished"]
        port = pumps[name].port_snapshot()
        assert (port.url, port.open, port.why, port.broken) == (str(getattr(cable, ENDS[name])), True, "", 0)
        assert port.tx_bytes > 5_000
        pumps[name].close(clock.now)
        assert not pumps[name].is_open
        assert pumps[name].port_snapshot() == dataclasses.replace(port, open=False)


def test_what_came_in_one_read_with_the_agreement_on_a_salt_is_taken(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    """A busy ground reads the HELLO that brings the salt and the message behind it at once."""
    ground = pump(str(cable.a), tmp_path / "ground", master=True, nonce=os.urandom)
    ground.poll(clock.now)
    os.read(cable.master_of_a(), 4096)  # its first HELLO is lost: the board does not listen yet
    board = pump(str(cable.b), tmp_path / "board", master=False, nonce=os.urandom)
    heard: list[bytes] = []
    for turn in range(400):
        clock.now += 0.01
        for event in board.poll(clock.now):
            if isinstance(event, Rekeyed):
                board.session.rekey(event.salt)
                board.session.send_message(b"health", clock.now)
        cable.carry()
        if turn % 20 == 19:  # it has had other things to do for 0.2 s
            for event in ground.poll(clock.now):
                if isinstance(event, Rekeyed):
                    ground.session.rekey(event.salt)
                heard += [event.payload] if isinstance(event, Message) else []
            cable.carry()
    assert heard == [b"health"]


def test_both_ends_killed_in_mid_transfer_send_little_again(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    whole = payload(60_000)
    pumps = ends(cable, tmp_path)
    for epoch in (2, 3):
        digest = pumps["board"].session.offer(UPDATE, whole, clock.now)
        clock.run(pumps, holds(pumps["ground"], digest, (epoch - 1) * 20), carry=cable.carry)
        for end in pumps.values():  # only the device is let go, as by kill -9: nothing more is saved
            assert end._port is not None
            end._port.close()
        pumps = ends(cable, tmp_path, clock.now, epoch)
    pumps["board"].session.offer(UPDATE, whole, clock.now)
    got: list[bytes] = []
    events = clock.run(pumps, told(Delivered, "board"), carry=cable.carry, act=accept_into(got, pumps, clock))
    assert got == [whole]
    assert not told(Refused)(events)
    fragments = -(-60_000 // (SERIAL.mtu_bytes - 22))
    sent_last = pumps["board"].session.snapshot(clock.now).fragments_sent
    assert sent_last <= fragments - 40 + 0.1 * fragments


def test_an_accepted_object_is_not_delivered_again_after_a_restart(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    whole = payload(3_000)
    got: list[bytes] = []
    for epoch in (1, 2):
        pumps = ends(cable, tmp_path, clock.now, epoch)
        pumps["board"].session.offer(UPDATE, whole, clock.now)
        clock.run(pumps, told(Delivered, "board"), carry=cable.carry, act=accept_into(got, pumps, clock))
        assert got == [whole]
        for end in pumps.values():
            end.close(clock.now)


def test_a_refused_object_leaves_nothing_behind(cable: PtyCable, clock: Clock, tmp_path: Path) -> None:
    pumps = ends(cable, tmp_path)
    pumps["board"].session.offer(UPDATE, payload(3_000), 0.0)

    def act(name: str, event: PumpEvent) -> None:
        if isinstance(event, Arrived):
            pumps[name].session.refuse(event.digest, Reason.REFUSED, clock.now)

    def cancelled(events: dict[str, list[PumpEvent]]) -> bool:
        return any(type(event).__name__ == "Cancelled" for event in events["board"])

    clock.run(pumps, cancelled, carry=cable.carry, act=act)
    pumps["ground"].poll(clock.now)
    assert list((tmp_path / "ground").iterdir()) == []


def test_what_its_sender_withdrew_is_off_the_disk_before_an_answer_leaves(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    pumps, folder = ends(cable, tmp_path), tmp_path / "ground"
    digest = pumps["board"].session.offer(UPDATE, payload(30_000), 0.0)
    clock.run(pumps, holds(pumps["ground"], digest, 10), carry=cable.carry)
    assert list(folder.glob("*.map")) != []
    pumps["board"].session.cancel(digest, clock.now)
    clock.run(pumps, told(Withdrawn, "ground"), carry=cable.carry)
    assert list(folder.iterdir()) == []


def test_a_port_that_vanishes_is_told_once_and_used_again_when_it_returns(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    whole = payload(20_000)
    pumps = ends(cable, tmp_path)
    digest = pumps["board"].session.offer(UPDATE, whole, 0.0)
    clock.run(pumps, holds(pumps["ground"], digest, 5), carry=cable.carry)
    cable.pull()
    down_until = clock.now + 10
    events = clock.run(pumps, lambda _: clock.now > down_until, carry=lambda: None)
    for name, path in (("ground", cable.a), ("board", cable.b)):
        (down,) = events[name]
        assert isinstance(down, PortEvent)
        assert (down.name, down.fields["port"]) == ("port-lost", str(path))
        assert not pumps[name].is_open
        port = pumps[name].port_snapshot()
        assert (port.open, port.why) == (False, "cannot open: No such file or directory")
        assert pumps[name].fileno() == -1
        assert clock.now <= pumps[name].wakeup(clock.now) <= clock.now + 1
    cable.plug()
    back_at = clock.now

    def act(name: str, event: PumpEvent) -> None:
        if lines([event], "port-open"):
            assert clock.now <= back_at + 1.1
        if isinstance(event, Arrived):
            assert event.payload == whole
            pumps[name].session.accept(event.digest, clock.now)

    events = clock.run(pumps, told(Delivered, "board"), carry=cable.carry, act=act)
    assert lines(events["ground"], "port-open")
    assert lines(events["board"], "port-open")
    assert pumps["board"].port_snapshot().tx_bytes > 20_000  # counted over both of its ports
    for end in pumps.values():
        end.close(clock.now)


def test_a_port_that_was_never_there_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    lonely = pump(str(tmp_path / "ttyUSB7"), tmp_path / "spool", master=True)
    assert not lonely.is_open  # nothing was opened by making it
    events = clock.run({"lonely": lonely}, lambda _: clock.now > 5)
    (down,) = events["lonely"]
    assert isinstance(down, PortEvent)
    assert down.name == "port-lost"
    assert "No such file" in down.fields["why"]


def test_a_url_that_is_not_understood_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(BadUrl):
        pump("ttyUSB0", tmp_path, master=True)


def deliver_without_disk(cable: PtyCable, clock: Clock, ground: Pump, make_room: Callable[[], None]) -> None:
    """An object larger than what the disk takes crosses, is stored once there is room, and is delivered."""
    whole = payload(60_000)
    pumps = {"ground": ground, "board": pump(str(cable.b), Path(cable.b.parent) / "board", master=False)}
    digest = pumps["board"].session.offer(UPDATE, whole, 0.0)
    arrived: list[bytes] = []

    def act(name: str, event: PumpEvent) -> None:
        if isinstance(event, Arrived):
            arrived.append(event.payload)

    events = clock.run(pumps, told(Arrived, "ground"), carry=cable.carry, act=act)
    full = lines(events["ground"], "disk-full")
    assert [line.fields["object"] for line in full] == [digest.hex()]
    assert ground.port_snapshot().spool_full > 0
    assert "No space" in full[0].fields["why"] or "limit" in full[0].fields["why"]
    assert arrived == [whole]
    assert ground.session.incoming[digest].dirty
    make_room()
    later = clock.now + 8
    clock.run(pumps, lambda _: clock.now > later, carry=cable.carry)
    assert not ground.session.incoming[digest].dirty
    ground.session.accept(digest, clock.now)
    clock.run(pumps, told(Delivered, "board"), carry=cable.carry)
    for end in pumps.values():
        end.close(clock.now)


def test_a_full_disk_is_told_once_and_the_object_kept_in_memory(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "32k") as disk:
        ground = pump(str(cable.a), disk / "spool", master=True)
        deliver_without_disk(cable, clock, ground, lambda: remount(disk, "size=1m"))
        finished = Spool(disk / "spool", MIB).finished()
        assert len(finished) == 1


def test_what_happened_before_a_failure_is_told_after_it(
    cable: PtyCable, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session tells of each thing once: a salt that was agreed upon, say, and never put in force, would
    leave both ends mute."""
    pumps = ends(cable, tmp_path)
    session = pumps["board"].session
    pumps["ground"].session.offer(1, payload(300), 0.0)
    transmit, failed = session.transmit, list[bool]()

    def fails_once(now: float) -> bytes | None:
        if session.incoming and all(each.complete for each in session.incoming.values()) and not failed:
            failed.append(True)
            raise MemoryError
        return transmit(now)

    monkeypatch.setattr(session, "transmit", fails_once)
    poll = pumps["board"].poll

    def polled(now: float) -> list[PumpEvent]:
        try:
            return poll(now)
        except MemoryError:
            return []

    monkeypatch.setattr(pumps["board"], "poll", polled)
    got: list[bytes] = []
    act = accept_into(got, pumps, clock)
    clock.run(pumps, told(Delivered, "ground"), carry=cable.carry, act=act)
    assert failed
    assert got == [payload(300)]


def test_a_corrupt_object_that_a_disk_does_not_let_go_of_is_told_and_comes_again(
    cable: PtyCable, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pumps = ends(cable, tmp_path)
    good = payload(60_000)
    digest = pumps["board"].session.offer(UPDATE, good, 0.0)
    clock.run(pumps, holds(pumps["ground"], digest, 20), carry=cable.carry)
    pumps["ground"].close(clock.now)
    part = tmp_path / "ground" / f"{digest.hex()}.part"
    part.write_bytes(b"?" + part.read_bytes()[1:])
    pumps = ends(cable, tmp_path, clock.now, epoch=2)
    pumps["board"].session.offer(UPDATE, good, clock.now)
    drop, refused = Spool.drop, list[bytes]()

    def refuses_once(self: Spool, name: bytes) -> None:
        if not refused:
            refused.append(name)
            raise OSError(30, "read-only file system")
        drop(self, name)

    monkeypatch.setattr(Spool, "drop", refuses_once)
    got: list[bytes] = []
    act = accept_into(got, pumps, clock)
    events = clock.run(pumps, told(Delivered, "board"), carry=cable.carry, act=act)
    assert refused == [digest]
    assert got == [good]
    full = lines(events["ground"], "disk-full")
    assert [line.fields["object"] for line in full] == [digest.hex()]


def test_an_object_above_the_spool_s_limit_is_told_once_and_kept_in_memory(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "ground", 50_000)
    url = str(cable.a)
    session = Session(
        Identity(0, 3, primary=True),
        Medium(SERIAL),
        Security(KEY),
        SessionState(epoch=1),
    )
    ground = Pump(lambda: open_port(url, SERIAL), session, spool)

    def make_room() -> None:
        spool.limit_bytes = MIB

    deliver_without_disk(cable, clock, ground, make_room)
    assert len(spool.finished()) == 1


def saved(folder: Path) -> int:
    """How many fragments a process that was started now would find."""
    return sum(part.held.bit_count() for part in Spool(folder, MIB).load())


def test_a_slow_object_is_saved_5_s_after_its_first_fragment_at_the_latest(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    """One fragment of a large object is less than the share that is saved at once."""
    pumps = ends(cable, tmp_path)
    digest = pumps["board"].session.offer(UPDATE, payload(400_000), 0.0)
    ground, incoming = pumps["ground"], pumps["ground"].session.incoming
    clock.run(pumps, holds(ground, digest, 1), carry=cable.carry)
    heard_at = clock.now
    assert saved(tmp_path / "ground") == 0
    assert ground.wakeup(heard_at) <= heard_at + 5
    clock.run({"ground": ground}, lambda _: clock.now > heard_at + 4.8)
    assert saved(tmp_path / "ground") == 0
    clock.run({"ground": ground}, lambda _: clock.now > heard_at + 5.01)
    assert (
        saved(tmp_path / "ground") == incoming[digest].have < 400_000 / 32 / incoming[digest].fragment_bytes
    )


def test_a_fast_object_is_saved_by_shares(cable: PtyCable, clock: Clock, tmp_path: Path) -> None:
    pumps = ends(cable, tmp_path)
    size = 60_000
    digest = pumps["board"].session.offer(UPDATE, payload(size), 0.0)
    worst = 0
    fragment_bytes = SERIAL.mtu_bytes - 22
    for have in range(1, size // fragment_bytes):
        clock.run(pumps, holds(pumps["ground"], digest, have), carry=cable.carry)
        worst = max(worst, have - saved(tmp_path / "ground"))
    in_a_gap = 0.25 * SERIAL.rate_up_bps / SERIAL.bits_per_byte  # bytes that arrive between two saves
    assert worst * fragment_bytes <= max(size / 32, in_a_gap) + 2 * fragment_bytes


def test_the_device_never_has_more_than_two_frames_to_send(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    fast = dataclasses.replace(SERIAL, rate_up_bps=100e6, rate_down_bps=100e6)  # faster than anyone reads
    board = pump(str(cable.b), tmp_path / "board", master=False, link=fast)
    for seed in range(20):
        board.session.offer(UPDATE, payload(60_000, seed), 0.0)
    ground = pump(str(cable.a), tmp_path / "ground", master=True, link=fast)
    clock.run({"ground": ground, "board": board}, lambda _: bool(ground.session.incoming), carry=cable.carry)
    worst = 0
    for _ in range(300):  # nobody reads any more
        clock.now += 0.05
        board.poll(clock.now)
        port = board._port
        assert port is not None
        worst = max(worst, port.kept_bytes())
        if port.kept_bytes() > SERIAL.mtu_bytes:
            assert board.wakeup(clock.now) > clock.now  # no spinning while the device is busy
            assert board.wants_write()
    assert worst <= 2 * facts_of("/dev/any").wire_bytes(SERIAL.mtu_bytes)


def test_what_a_stalled_device_did_not_take_in_a_contact_never_leaves(
    cable: PtyCable, clock: Clock, tmp_path: Path
) -> None:
    fast = dataclasses.replace(SERIAL, rate_up_bps=100e6, rate_down_bps=100e6)
    board = pump(str(cable.b), tmp_path / "board", master=False, link=fast)
    ground = pump(str(cable.a), tmp_path / "ground", master=True, link=fast)
    for end in (board, ground):
        end.session.plan([Window(0.0, 20.0), Window(30.0, 1e6, rate_bps=1e6)], 0.0)
    whole = payload(60_000)
    board.session.offer(UPDATE, whole, 0.0)
    clock.run({"ground": ground, "board": board}, lambda _: bool(ground.session.incoming), carry=cable.carry)
    while not board.wants_write() or select.select([], [board], [], 0.02)[1]:  # nobody reads any more
        assert clock.now < 15.0
        clock.now += 0.05
        board.poll(clock.now)
    assert board.wakeup(clock.now) <= 20.0
    clock.now = 20.0
    board.poll(clock.now)
    assert not board.wants_write()  # and `wait` is not woken by a device that takes bytes again
    left = board.port_snapshot().tx_bytes
    while cable.carry():  # the device is there again
        ground.poll(clock.now)
    for _ in range(50):
        clock.now += 0.1
        board.poll(clock.now)
        assert cable.carry() == 0
    assert board.port_snapshot().tx_bytes == left
    clock.now = 30.0
    pumps = {"ground": ground, "board": board}
    events = clock.run(pumps, told(Arrived, "ground"), carry=cable.carry)
    assert [event.payload for event in events["ground"] if isinstance(event, Arrived)] == [whole]


def test_over_udp_the_ground_learns_where_its_board_is(clock: Clock, tmp_path: Path) -> None:
    (number,) = free_ports(1)
    pumps = {
        "ground": pump(f"udp://?bind=127.0.0.1:{number}", tmp_path / "g", master=True, link=UDP),
        "board": pump(f"udp://127.0.0.1:{number}", tmp_path / "b", master=False, link=UDP),
    }
    whole = payload(30_000)
    pumps["board"].session.offer(UPDATE, whole, 0.0)

    def act(name: str, event: PumpEvent) -> None:
        if isinstance(event, Arrived):
            assert event.payload == whole
            pumps[name].session.accept(event.digest, clock.now)
            pumps[name].session.send_message(b"thank you", clock.now)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        events = clock.run(
            pumps,
            lambda all_: told(Delivered, "board")(all_) and told(Message, "board")(all_),
            act=act,
            carry=lambda: stranger.sendto(b"not a frame of anyone's here", ("127.0.0.1", number)),
        )
    assert not told(Refused)(events)
    assert pumps["ground"].session.snapshot(clock.now).malformed > 0
    for end in pumps.values():
        end.close(clock.now)


def test_wait_returns_when_something_arrives_and_not_before(cable: PtyCable, tmp_path: Path) -> None:
    pumps = ends(cable, tmp_path)
    for end in pumps.values():
        end.poll(0.0)
    start = time.monotonic()
    wait(pumps.values(), 0.05)
    assert time.monotonic() - start >= 0.05
    pumps["board"].session.send_message(b"hello", 1.0)
    pumps["board"].poll(1.0)
    events: list[PumpEvent] = []
    while not events:  # a pty hands on what it was given a moment later, maybe in parts
        if cable.carry():
            wait(pumps.values(), 30.0)
        events = pumps["ground"].poll(1.0)
    assert Message(b"hello") in events
    assert time.monotonic() - start < 10


def test_wait_returns_for_a_descriptor_beside_the_ports(cable: PtyCable, tmp_path: Path) -> None:
    pumps = ends(cable, tmp_path)
    reader, writer = os.pipe()
    os.write(writer, b"\0")
    start = time.monotonic()
    wait(pumps.values(), 30.0, also=[reader])
    assert time.monotonic() - start < 10
    os.close(reader)
    os.close(writer)


def test_wait_does_not_sleep_over_a_port_without_a_descriptor(tmp_path: Path) -> None:
    looped = pump("loop://", tmp_path / "spool", master=True)
    deadline = time.monotonic() + 10
    while not looped.is_open:  # a URL of pyserial's is opened in the background
        assert time.monotonic() < deadline
        looped.poll(time.monotonic())
    start = time.monotonic()
    wait([looped], 30.0)
    assert time.monotonic() - start < 5
    looped.close(1.0)
