"""One transmission reaches every listener whole, at the cost of the worst of them, and none else."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware_sim.world.channel import Channel, Impairments
from onboard.wire.broadcast import Broadcast, group_id
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import (
    Arrived,
    Cancelled,
    Delivered,
    Evicted,
    Expired,
    GroupAnswer,
    Message,
    Refused,
    Withdrawn,
)
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import BROADCAST, GROUP_ID, OVERHEAD_BYTES, Frame, Type
from onboard.wire.messages import Cancel, Done, Offer, Reason, Report, digest
from onboard.wire.security.seal import Sealer
from onboard.wire.session import Session
from tests.onboard.wire.net import GROUND, GROUP_KEY, MODEL, Net, node_key, wire_bytes
from tests.onboard.wire.pair import FAST, FULL, HALF, data, link, uhf_full

FAR = uhf_full(400, rate_up_bps=64e3, rate_down_bps=64e3, delay_s=0.3)
LINKS = {"full": FULL, "half": HALF, "fast": FAST, "far": FAR, "small frames": uhf_full(29)}


def whole(net: Net, payload: bytes) -> bool:
    """Whether every listener has it."""
    return all(station.objects == {digest(MODEL, payload): payload} for station in net.stations.values())


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("size", [0, 1, 200, 5000])
def test_an_object_of_any_size_reaches_all(name: str, size: int) -> None:
    net = Net(LINKS[name], [1, 2, 254])
    object_digest = net.start(data(size))
    net.run(100.0)
    assert whole(net, data(size))
    assert sorted((node, event) for _, node, event in net.events) == [
        (node, Delivered(object_digest)) for node in (1, 2, 254)
    ]
    assert net.broadcast is not None
    assert net.broadcast.over
    assert net.broadcast.wakeup(net.now) == math.inf


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(LINKS)),
    seed=st.integers(0, 2**32),
    losses=st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5]), min_size=1, max_size=5),
    fragments=st.integers(0, 60),
    reorder=st.sampled_from([0.0, 0.1]),
    ber=st.sampled_from([0.0, 1e-4]),
    kills=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5)), max_size=3),
)
def test_all_listeners_end_with_the_object_once_whatever_is_lost(
    name: str, seed: int, losses: list[float], fragments: int, reorder: float, ber: float,
    kills: list[tuple[float, int]],
) -> None:  # fmt: skip
    """Frames are lost, flipped, doubled and overtaken, and listeners lose what they had half received."""
    chosen = LINKS[name]
    nodes = dict(enumerate(losses, start=1))
    net = Net(chosen, nodes, seed=seed, losses=nodes, reorder=reorder, duplicate=reorder, bit_error_rate=ber)
    payload = random.Random(seed).randbytes(fragments * (chosen.mtu_bytes - OVERHEAD_BYTES))
    net.start(payload)
    once_s = (fragments + 1) * chosen.mtu_bytes * chosen.bits_per_byte / chosen.rate_down_bps
    for at, node in sorted(kills):
        net.run(at * 2 * once_s)
        if node in net.stations and not net.stations[node].objects:
            net.stations[node].boot(net.now)
    net.run(5000.0)
    assert net.broadcast is not None
    assert net.broadcast.over
    assert whole(net, payload)
    assert {node for _, node, event in net.events if isinstance(event, Delivered)} == set(nodes)


@pytest.mark.parametrize("chosen", [FULL, HALF], ids=["full", "half"])
@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2, 0.4])
def test_ten_listeners_cost_little_more_than_the_worst_of_them(chosen, loss: float) -> None:  # type: ignore[no-untyped-def]
    """Bytes sent against the bound of a single listener, size (L + 24) / L / (1 - p)."""
    net = Net(chosen, range(1, 11), seed=3, frame_loss=loss)
    net.start(data(40_000))
    net.run(1000.0)
    assert whole(net, data(40_000))
    bound = 40_000 * 224 / 200 / (1 - loss)
    assert net.bytes_down() <= (1.03 if loss == 0 else 1.3) * bound
    ten_times = 10 * bound
    assert net.bytes_down() < ten_times / 7


def test_repairs_serve_different_holes_at_once() -> None:
    net = Net(FULL, range(1, 6), seed=8, frame_loss=0.1)
    net.start(data(40_000))
    net.run(1000.0)
    assert whole(net, data(40_000))
    lost = [station.channel.counters("ground").lost for station in net.stations.values()]
    assert net.broadcast is not None
    again = net.broadcast.fragments_sent + net.broadcast.repairs_sent - 200
    assert again < 0.6 * sum(lost)  # to each its own would be all of them, and those lost again
    assert again <= 1.5 * max(lost) + 10


def test_nobody_speaks_unless_asked() -> None:
    net = Net(FULL, [1, 2, 3], frame_loss=0.2)
    net.start(data(20_000))
    net.run(1000.0)
    polls = sum(frame.type is Type.POLL for _, frame in net.sent)
    answers = sum(s.channel.counters("board").frames for s in net.stations.values())
    assert 3 <= answers <= polls
    for _, frame in net.sent:
        assert frame.destination == BROADCAST
        assert frame.object_id >= GROUP_ID
        assert frame.poll == (frame.type is Type.POLL)


def test_on_half_duplex_answers_meet_no_other_frame() -> None:
    net = Net(HALF, range(1, 6))
    net.start(data(20_000))
    net.run(1000.0)
    assert whole(net, data(20_000))
    for station in net.stations.values():
        assert station.channel.counters("ground").collided == station.channel.counters("board").collided == 0
        assert station.channel.counters("board").frames <= 2


def test_what_a_listener_holds_from_before_is_not_sent_to_it_alone() -> None:
    net = Net(FULL, [1, 2])
    first = net.start(data(20_000))
    net.run(8.0)
    held = [station.board.incoming[first].held.bit_count() for station in net.stations.values()]
    assert min(held) > 30
    net.sent.clear()
    net.sealer = Sealer(GROUP_KEY, source=GROUND, destination=BROADCAST, epoch=2)  # the ground restarts
    assert net.start(data(20_000)) == first
    net.run(1000.0)
    assert whole(net, data(20_000))
    fragments = [frame.fragment for _, frame in net.sent if frame.type is Type.DATA]
    assert len(fragments) < 100 - min(held) + 10  # but for those that went out before both had answered


def test_an_absent_listener_keeps_no_other_waiting_and_is_asked_ever_less_often() -> None:
    net = Net(FULL, [1, 2])
    net.stations[2].channel = Channel(FULL, Impairments(windows=[], overhead_bytes=2), seed=1)
    net.start(data(20_000), deadline_s=200.0)
    net.run(150.0)
    delivered = [(at, node) for at, node, event in net.events if isinstance(event, Delivered)]
    assert [node for _, node in delivered] == [1]
    assert delivered[0][0] < 22.0
    assert net.broadcast is not None
    assert set(net.broadcast.waiting) == {2}
    late = [frame for at, frame in net.sent if at > 60.0]
    assert {frame.type for frame in late} == {Type.POLL}
    assert len(late) <= 90 / 8 + 1
    net.run(300.0)
    assert (200.0, -1, Expired(net.broadcast.digest)) in [(round(at, 3), n, e) for at, n, e in net.events]
    assert net.broadcast.over
    assert not net.stations[1].board.incoming


def test_a_late_riser_gets_it_too() -> None:
    net = Net(FULL, [1, 2])
    net.stations[2].channel = Channel(FULL, Impairments(windows=[(40.0, 1e9)], overhead_bytes=2), seed=1)
    net.start(data(20_000))
    net.run(1000.0)
    assert whole(net, data(20_000))
    assert net.now < 40.0 + 8.0 + 25.0


@pytest.mark.parametrize("reason", [Reason.WITHDRAWN, Reason.EXPIRED])
def test_an_end_before_its_time_is_told(reason: Reason) -> None:
    net = Net(FULL, [1, 2])
    name = net.start(data(20_000), deadline_s=5.0 if reason is Reason.EXPIRED else None)
    net.run(5.0)
    assert net.broadcast is not None
    if reason is Reason.WITHDRAWN:
        net.broadcast.cancel(net.now)
    net.run(60.0, on=True)
    assert net.broadcast.over
    for station in net.stations.values():
        ends = [event for _, event in station.events if isinstance(event, Withdrawn | Expired)]
        assert [event.digest for event in ends] == [name]
        assert not station.board.incoming


def test_a_listener_may_refuse() -> None:
    net = Net(FULL, [1, 2], limits=Limits(max_object_bytes=1000))
    name = net.start(data(5000))
    net.run(100.0)
    assert {(node, event) for _, node, event in net.events} == {
        (node, Cancelled(name, Reason.TOO_LARGE)) for node in (1, 2)
    }
    net.stations[1].limits = Limits()
    for station in net.stations.values():
        assert [event for _, event in station.events] == [Refused(name, Reason.TOO_LARGE, 5000, 1000)]


def test_left_overs_of_broadcasts_make_room() -> None:
    net = Net(FULL, [1], limits=Limits(max_incoming=1))
    old = net.start(data(20_000))
    net.run(5.0)
    new = net.start(data(2000, 2))  # the first is dropped without a word
    net.run(100.0)
    assert [event for _, event in net.stations[1].events if isinstance(event, Evicted)] == [Evicted(old)]
    assert list(net.stations[1].objects) == [new]


def test_one_after_another_under_one_sealer() -> None:
    net = Net(FULL, [1, 2], frame_loss=0.1)
    for nth in range(3):
        net.start(data(3000, nth))
        net.run(net.now + 100.0)
    for station in net.stations.values():
        assert list(station.objects.values()) == [data(3000, nth) for nth in range(3)]
    seqs = [frame.seq for _, frame in net.sent]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_session_goes_on_beside_a_broadcast() -> None:
    net = Net(FULL, [1, 2], frame_loss=0.1)
    net.start(data(20_000))
    net.stations[1].board.offer(2, data(3000, 7), 0.0)
    net.stations[1].board.send_message(b"well", 0.0)
    told = []
    station = net.stations[1]
    plain = station.ground.receive

    def receive(frame: bytes, now: float):  # type: ignore[no-untyped-def]
        events = plain(frame, now)
        for event in events:
            told.append(event)
            if isinstance(event, Arrived):
                station.ground.accept(event.digest, now)
        return events

    station.ground.receive = receive  # type: ignore[method-assign]
    net.run(200.0)
    assert whole(net, data(20_000))
    assert Message(b"well") in told
    assert any(isinstance(event, Arrived) and event.payload == data(3000, 7) for event in told)


def listener(state: SessionState | None = None) -> Session:
    """Node 1, which listens to the ground."""
    return Session(
        Identity(1, GROUND, primary=False),
        Medium(FULL),
        Security(node_key(1), group_key=GROUP_KEY),
        state or SessionState(epoch=1),
    )


def group_sealer(epoch: int = 1) -> Sealer:
    """The ground's."""
    return Sealer(GROUP_KEY, source=GROUND, destination=BROADCAST, epoch=epoch)


def test_hostile_broadcasts_change_nothing_but_a_counter() -> None:
    session, ground = listener(), group_sealer()
    name = digest(MODEL, bytes(1000))
    offer = Offer(name, 1000, 200, MODEL).encode()
    assert session.receive(ground.seal(Type.OFFER, offer, object_id=group_id(name)), 0.0) == []
    held = session.snapshot(0.0).objects
    forger = Sealer(bytes(32), source=GROUND, destination=BROADCAST, epoch=9)
    own = Sealer(node_key(1), source=GROUND, destination=BROADCAST, epoch=9)
    other = Sealer(GROUP_KEY, source=2, destination=BROADCAST, epoch=9)
    first = ground.seal(Type.OFFER, offer, object_id=group_id(name))
    session.receive(first, 0.0)
    before = session.snapshot(0.0)
    nonsense = [
        forger.seal(Type.DATA, bytes(200), object_id=group_id(name)),
        own.seal(Type.DATA, bytes(200), object_id=group_id(name)),
        other.seal(Type.DATA, bytes(200), object_id=group_id(name)),
        first,
        first[:-1],
        ground.seal(Type.DATA, bytes(199), object_id=group_id(name)),
        ground.seal(Type.DATA, bytes(200), object_id=group_id(name), fragment=5),
        ground.seal(Type.REPAIR, bytes(200), object_id=group_id(name), fragment=1 << 8),
        ground.seal(Type.DATA, bytes(200), object_id=1),
        ground.seal(Type.OFFER, offer, object_id=1),
        ground.seal(Type.OFFER, offer[:-1], object_id=group_id(name)),
        ground.seal(Type.DATA, bytes(200), object_id=group_id(name) ^ 1),
        ground.seal(Type.DONE, Done(name).encode(), object_id=group_id(name)),
        ground.seal(Type.REPORT, Report(1, 1).encode(60), object_id=group_id(name)),
        ground.seal(Type.MSG, b"to all", object_id=group_id(name)),
        ground.seal(Type.CANCEL, b"", object_id=group_id(name)),
    ]
    for nth, frame in enumerate(nonsense, start=1):
        assert session.receive(frame, 1.0) == []
        now = session.snapshot(1.0)
        assert now.objects == held
        counted = [s.bad_tags + s.replays + s.malformed + s.orphans + s.misaddressed for s in (now, before)]
        assert counted[0] - counted[1] == nth
        assert session.wakeup(1.0) == math.inf  # none of it was answered


def test_a_session_without_the_group_s_key_hears_no_broadcast() -> None:
    session = Session(
        Identity(1, GROUND, primary=False),
        Medium(FULL),
        Security(node_key(1)),
        SessionState(epoch=1),
    )
    name = digest(MODEL, bytes(1000))
    offer = Offer(name, 1000, 200, MODEL).encode()
    assert session.receive(group_sealer().seal(Type.OFFER, offer, object_id=group_id(name)), 0.0) == []
    assert not session.incoming
    assert session.snapshot(0.0).misaddressed == 1
    assert session.group_replay_floor == (0, 0)


def test_the_floor_of_broadcasts_is_their_own() -> None:
    session = listener(SessionState(epoch=1, replay_floor=(7, 7), group_replay_floor=(1, 2)))
    ground = group_sealer()
    name = digest(MODEL, bytes(1000))
    offer = Offer(name, 1000, 200, MODEL).encode()
    frames = [ground.seal(Type.OFFER, offer, object_id=group_id(name)) for _ in range(3)]
    for frame in frames:
        session.receive(frame, 0.0)
    assert session.snapshot(0.0).replays == 2
    assert session.group_replay_floor == (1, 3)
    assert session.replay_floor == (7, 7)


def test_answers_that_make_no_sense_only_count() -> None:
    ground = group_sealer()
    broadcast = Broadcast(MODEL, data(2000), [1, 2], sealer=ground, medium=Medium(FULL), now=0.0)
    while broadcast.transmit(0.0):
        pass

    def held() -> dict[int, int]:
        return {node: receiver.object.acknowledged for node, receiver in broadcast.waiting.items()}

    before = held()

    def answer(kind: Type, payload: bytes, object_id: int = broadcast.object_id) -> GroupAnswer:
        return GroupAnswer(Frame(kind, 1, GROUND, 1, 5, object_id=object_id, payload=payload), 0.0)

    prefix = broadcast.digest[:4]
    nonsense = [
        (9, answer(Type.DONE, Done(broadcast.digest).encode())),
        (1, answer(Type.DONE, Done(bytes(16)).encode())),
        (1, answer(Type.DONE, b"")),
        (1, answer(Type.DONE, Done(broadcast.digest).encode(), GROUP_ID | broadcast.object_id ^ 1)),
        (1, answer(Type.CANCEL, Cancel(bytes(16), 3).encode())),
        (1, answer(Type.REPORT, b"")),
        (1, answer(Type.REPORT, Report(1, 99, prefix, 1).encode(60))),  # a seq not yet sent
        (1, answer(Type.REPORT, Report(2, 1, prefix, 1).encode(60))),
        (1, answer(Type.REPORT, Report(1, 1, b"none", 1).encode(60))),
        (1, answer(Type.REPORT, Report(1, 1, prefix, 1 << 10).encode(60))),
    ]
    for nth, (node, each) in enumerate(nonsense, start=1):
        assert broadcast.handle(node, each, 1.0) == []
        assert broadcast.orphans + broadcast.malformed == nth
        assert held() == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": 256}, "kind 256"),
        ({"deadline_s": 0}, "deadline of 0"),
        ({"payload": bytes(200 * 65536)}, "65536 fragments"),
        ({"sealer": Sealer(GROUP_KEY, source=0, destination=3, epoch=1)}, "to node 3"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, object], match: str) -> None:
    wanted: dict[str, object] = {"kind": MODEL, "payload": b"", "sealer": group_sealer(), **options}
    with pytest.raises(ValueError, match=match):
        Broadcast(listeners=[1], medium=Medium(FULL), now=0.0, **wanted)  # type: ignore[arg-type]


def test_without_listeners_nothing_is_sent() -> None:
    broadcast = Broadcast(MODEL, data(2000), [], sealer=group_sealer(), medium=Medium(FULL), now=0.0)
    assert broadcast.over
    assert broadcast.transmit(0.0) is None
    assert broadcast.wakeup(0.0) == math.inf
    assert broadcast.tick(1e9) == []


def test_the_pace_of_the_link_is_kept() -> None:
    net = Net(FULL, [1, 2, 3], frame_loss=0.2)
    net.start(data(20_000))
    net.run(200.0)
    on_air = 0.0
    for at, frame in net.sent:
        on_air = max(on_air, at) + wire_bytes(len(frame.payload) + OVERHEAD_BYTES) * 8 / 9600
        assert on_air - at <= 2 * 224 * 8 / 9600 + 1e-3


def test_the_shipped_radio_carries_a_broadcast() -> None:
    radio = link("uhf-9k6", bit_error_rate=1e-5)
    net = Net(radio, [1, 2, 3])
    net.start(data(30_000))
    end = net.run(500.0)
    assert whole(net, data(30_000))
    assert end < 1.35 * 30_000 * (radio.mtu_bytes + 2) / (radio.mtu_bytes - framing.OVERHEAD_BYTES) * 8 / 9600
