"""Frames that are forged, damaged, replayed or make no sense change nothing but a counter."""

from __future__ import annotations

from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Message, PeerHeard
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Type
from onboard.wire.messages import Cancel, Offer, Reason, Report, digest
from onboard.wire.security.seal import Sealer
from onboard.wire.session import Session
from tests.onboard.wire.pair import FULL, KEY, UPDATE, ground_session


def frames_of(sender: Sealer, *made: tuple[Type, bytes, dict[str, int]]) -> list[bytes]:
    """Authentic frames, whatever they say."""
    return [sender.seal(kind, payload, **fields) for kind, payload, fields in made]  # type: ignore[arg-type]


def test_authentic_nonsense_changes_nothing_but_a_counter() -> None:
    session = ground_session()
    peer = Sealer(KEY, source=7, destination=0, epoch=1)
    name = digest(UPDATE, bytes(1000))
    offer = Offer(name, 1000, 200, UPDATE).encode()
    assert session.receive(peer.seal(Type.OFFER, offer, object_id=5), 0.0) == [PeerHeard()]
    session.offer(1, bytes(600), 0.0)
    while session.transmit(0.0):
        pass
    held = session.snapshot(0.0).objects
    report = Report(1, 1, name[:4], 1).encode(100)
    nonsense = frames_of(
        peer,
        (Type.DATA, bytes(200), {"object_id": 5, "fragment": 5}),
        (Type.DATA, bytes(199), {"object_id": 5, "fragment": 0}),
        (Type.DATA, b"", {"object_id": 5, "fragment": 1}),
        (Type.DATA, bytes(200), {"object_id": 6, "fragment": 0}),
        (Type.OFFER, offer[:-1], {"object_id": 8}),
        (Type.OFFER, offer, {"object_id": 0}),
        (Type.OFFER, Offer(name, 1001, 200, UPDATE).encode(), {"object_id": 9}),
        (Type.REPORT, report, {"object_id": 1}),  # of another object
        (Type.REPORT, report, {"object_id": 77}),
        (Type.REPORT, report[:5], {"object_id": 1}),
        (Type.DONE, bytes(16), {"object_id": 1}),
        (Type.DONE, bytes(3), {"object_id": 1}),
        (Type.CANCEL, bytes(16) + b"\5", {"object_id": 1}),
        (Type.CANCEL, b"", {"object_id": 1}),
        (Type.REPAIR, bytes(200), {"object_id": 5, "fragment": 1 << 8}),  # it has one generation
        (Type.REPAIR, bytes(200), {"object_id": 5, "fragment": 1}),  # the low byte is reserved
        (Type.REPAIR, bytes(199), {"object_id": 5}),
        (Type.REPAIR, bytes(200), {"object_id": 6}),
    )
    for nth, frame in enumerate(nonsense):
        assert session.receive(frame, 1.0) == []
        snapshot = session.snapshot(1.0)
        assert snapshot.objects == held
        assert snapshot.malformed + snapshot.orphans == nth + 1


def test_an_object_id_that_is_used_for_another_object_is_never_answered_for_the_first() -> None:
    """No peer of this version does so; `python -m benchmarks fuzz` did, and the REPORT had no receipt."""
    peer = Sealer(KEY, source=7, destination=0, epoch=1)
    first, second = (Offer(digest(UPDATE, bytes(size)), size, 200, UPDATE) for size in (1000, 2000))
    for then in (
        (Type.CANCEL, Cancel(second.digest, Reason.WITHDRAWN).encode()),
        (Type.OFFER, second.encode()),
    ):
        session = ground_session()
        for frame in frames_of(
            peer, *((*each, {"object_id": 4}) for each in ((Type.OFFER, first.encode()), then))
        ):
            session.receive(frame, 0.0)
        told = []
        while (raw := session.transmit(0.0)) is not None:
            told.append(framing.unproven(raw))
        assert [frame.type for frame in told] == [Type.REPORT]
        report = Report.decode(told[0].payload)
        assert report.unknown or report.prefix == second.digest[:4]
        assert first.digest in session.incoming  # and goes on when it is offered again


def test_forged_damaged_and_replayed_frames_change_nothing_but_a_counter() -> None:
    session = ground_session()
    peer = Sealer(KEY, source=7, destination=0, epoch=1)
    forger = Sealer(bytes(32), source=7, destination=0, epoch=9)
    message = peer.seal(Type.MSG, b"once")
    assert session.receive(message, 0.0) == [PeerHeard(), Message(b"once")]
    heard = session.snapshot(0.0)
    assert session.receive(message, 1.0) == []
    assert session.receive(forger.seal(Type.MSG, b"forged"), 1.0) == []
    assert session.receive(message[:-1], 1.0) == []
    assert session.receive(b"", 1.0) == []
    assert session.receive(bytes([message[0], message[1] ^ 8]) + message[2:], 1.0) == []
    snapshot = session.snapshot(1.0)
    assert (snapshot.replays, snapshot.bad_tags, snapshot.malformed) == (1, 3, 1)
    assert snapshot.last_heard == heard.last_heard
    assert session.replay_floor == (1, 1)


def test_a_floor_from_disk_keeps_old_frames_out() -> None:
    peer = Sealer(KEY, source=7, destination=0, epoch=3)
    frames = [peer.seal(Type.MSG, b"%d" % nth) for nth in range(5)]
    session = Session(
        Identity(0, 7, primary=True),
        Medium(FULL),
        Security(KEY),
        SessionState(epoch=2, replay_floor=(3, 4)),
    )
    assert [event for frame in frames for event in session.receive(frame, 0.0)] == [
        PeerHeard(),
        Message(b"4"),
    ]


def test_a_flood_of_unknown_data_is_answered_seldom_and_remembered_nowhere() -> None:
    session = ground_session()
    peer = Sealer(KEY, source=7, destination=0, epoch=1)
    answers = 0
    for nth in range(3000):
        now = nth * 0.01
        session.receive(peer.seal(Type.DATA, bytes(200), object_id=1 + nth % 500, fragment=nth), now)
        while (raw := session.transmit(now)) is not None:
            answers += 1
            assert len(raw) == framing.OVERHEAD_BYTES + 13
    assert 10 < answers < 200
    assert session.snapshot(30.0).orphans == 3000
    assert not session.incoming


def test_messages_that_wait_are_bounded_and_the_newest_stay() -> None:
    session = ground_session()
    ground = Session(
        Identity(7, 0, primary=False),
        Medium(FULL),
        Security(KEY),
        SessionState(epoch=1),
    )
    for nth in range(40):
        session.send_message(b"%d" % nth, 0.0, priority=1)
    heard = []
    now = 0.0
    while session.wakeup(now) < 1e6:
        now = session.wakeup(now)
        while (raw := session.transmit(now)) is not None:
            heard += [event.payload for event in ground.receive(raw, now) if isinstance(event, Message)]
    assert heard == [b"%d" % nth for nth in range(24, 40)]
