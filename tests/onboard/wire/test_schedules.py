"""Whatever a channel and two power supplies do, every object ends identical and once, and no replay is taken.

A schedule is a list of troubles, each for a while, one after the other. Frames are dropped, doubled,
overtaken, flipped, cut short and replayed, the contact closes, either end is killed and loses what it had not
saved. Then the channel is well again, and everything must arrive.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.harness.weather import LinkWeather, Trouble
from firmware_sim.world.channel import Side
from hw_profiles import Link
from onboard.wire.config import Limits
from onboard.wire.events import Arrived
from onboard.wire.messages import digest
from tests.onboard.wire.pair import Pair, link, uhf_full

LINKS = {
    "full": uhf_full(),
    "half": link(mtu_bytes=222),
    "fast": uhf_full(1000, rate_up_bps=2e6, rate_down_bps=2e6, delay_s=0.01),
    "asymmetric": uhf_full(200, rate_up_bps=1e6),
    "small frames": uhf_full(29),
    "far": uhf_full(400, rate_up_bps=64e3, rate_down_bps=64e3, delay_s=0.3),
}


troubles = st.builds(
    Trouble,
    duration_s=st.floats(0.05, 8.0),
    drop=st.sampled_from([0.0, 0.0, 0.05, 0.3, 0.7, 1.0]),
    double=st.sampled_from([0.0, 0.2]),
    flip=st.sampled_from([0.0, 0.2]),
    truncate=st.sampled_from([0.0, 0.2]),
    replay=st.sampled_from([0.0, 0.3]),
    killed=st.sampled_from([None, None, None, "ground", "board"]),
    power_cut=st.just(False),
    syncs_left=st.none(),
)


def settle(pair: Pair, until: float) -> float:
    """Run until both ends have nothing left to send."""
    return pair.run(until, lambda: not pair.ground.disk.outgoing and not pair.board.disk.outgoing)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    link_name=st.sampled_from(sorted(LINKS)),
    seed=st.integers(0, 2**32),
    up=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    down=st.lists(st.integers(0, 60), max_size=2),
    loss=st.sampled_from([0.0, 0.1, 0.3]),
    reorder=st.sampled_from([0.0, 0.1]),
    slack=st.sampled_from([0, 3]),
    accept_after_s=st.sampled_from([0.0, 0.2, 3.0]),
    schedule=st.lists(troubles, max_size=8),
)
def test_every_object_ends_identical_and_once(
    link_name: str,
    seed: int,
    up: list[int],
    down: list[int],
    loss: float,
    reorder: float,
    slack: int,
    accept_after_s: float,
    schedule: list[Trouble],
) -> None:
    chosen: Link = LINKS[link_name]
    weather = LinkWeather(random.Random(seed), Counter())
    pair = Pair(
        chosen,
        seed=seed,
        limits=Limits(reorder_slack=slack),
        accept_after_s=accept_after_s,
        mangle=weather,
        frame_loss=loss,
        reorder=reorder,
        duplicate=reorder,
    )
    rnd = random.Random(seed)
    unit_s = 10 * chosen.mtu_bytes * chosen.bits_per_byte / min(chosen.rate_up_bps, chosen.rate_down_bps)
    wanted: dict[str, dict[bytes, bytes]] = {"ground": {}, "board": {}}
    for end, receiver, kind, sizes in (
        (pair.board, "ground", 2, up),
        (pair.ground, "board", 1, down),
    ):
        for fragments in sizes:
            payload = rnd.randbytes(max(0, fragments * (chosen.mtu_bytes - 22) - rnd.randrange(20)))
            wanted[receiver][end.offer(kind, payload, 0.0)] = payload
    for trouble in schedule:
        weather.trouble = trouble
        if trouble.killed is not None:
            pair.end(trouble.killed).kill()
        pair.run(pair.now + trouble.duration_s * unit_s)
        if trouble.killed is not None:
            pair.end(trouble.killed).boot(pair.now)
    weather.trouble = None
    healed = pair.now
    settle(pair, healed + 5000.0)
    for end in (pair.ground, pair.board):
        assert {name: payload for name, (_, payload) in end.disk.objects.items()} == wanted[end.side]
        assert not end.disk.outgoing
        assert end.session is not None
        assert not end.session.incoming
    pair.run(pair.now + 10.0)  # what was on its way when the last DONE was heard is answered
    before = len(pair.sent)
    pair.run(pair.now + 600.0)
    assert len(pair.sent) == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    link_name=st.sampled_from(["full", "half"]),
    seed=st.integers(0, 2**32),
    killed=st.sampled_from(["ground", "board"]),
    at=st.floats(0.05, 0.95),
    down_s=st.floats(0.1, 60.0),
    loss=st.sampled_from([0.0, 0.05]),
)
def test_a_kill_at_any_moment_costs_a_tenth_at_most(
    link_name: str, seed: int, killed: Side, at: float, down_s: float, loss: float
) -> None:
    """DATA transmitted beyond one of each fragment and those that the channel lost: 10 % of 120 fragments."""
    pair = Pair(LINKS[link_name], seed=seed, frame_loss=loss)
    payload = random.Random(seed).randbytes(120 * 200)
    name = pair.board.offer(2, payload, 0.0)
    pair.run(at * 120 * 224 * 8 / 9600)
    pair.end(killed).kill()
    pair.run(pair.now + down_s)
    pair.end(killed).boot(pair.now)
    settle(pair, pair.now + 1000.0)
    assert pair.ground.disk.objects == {name: (2, payload)}
    sent = sum(len(frame.payload) for _, side, frame in pair.sent if side == "board" and frame.type == 2)
    lost = pair.channel.counters("board").lost * 200
    assert sent - len(payload) - lost <= 0.10 * len(payload)
    assert len({e.digest for e in pair.ground.seen(Arrived) if isinstance(e, Arrived)}) == 1
    assert digest(2, payload) == name
