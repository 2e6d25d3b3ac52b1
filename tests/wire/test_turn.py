"""On half-duplex the ends speak in turns: never together on an undisturbed channel, and never stuck."""

from __future__ import annotations

import random

import pytest

from onboard.wire.session import (
    Delivered,
)
from tests.wire.pair import HALF, UPDATE, Pair, data, link


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [300, 9000])
def test_half_duplex_never_collides_on_an_undisturbed_channel(seed: int, size: int) -> None:
    pair = Pair(HALF)
    rnd = random.Random(seed)
    todo = sorted((rnd.uniform(0, 300), rnd.choice(["ground", "board"]), n) for n in range(12))
    for at, side, nth in todo:
        pair.run(at)
        if nth % 3:
            pair.end(side).offer(UPDATE, data(size, nth), pair.now)  # type: ignore[arg-type]
        else:
            pair.end(side).session.tell(b"health", pair.now)  # type: ignore[arg-type, union-attr]
    pair.run(1000.0)
    delivered = len(pair.ground.seen(Delivered)) + len(pair.board.seen(Delivered))
    assert delivered == sum(1 for _, _, nth in todo if nth % 3)
    assert len(pair.ground.messages()) + len(pair.board.messages()) == sum(1 for *_, n in todo if n % 3 == 0)
    assert pair.channel.counters("ground").collided + pair.channel.counters("board").collided == 0


def test_both_ends_that_begin_together_take_turns() -> None:
    pair = Pair(HALF)
    pair.ground.offer(1, data(9000), 0.0)
    pair.board.offer(UPDATE, data(9000, 2), 0.0)
    pair.run(100.0, lambda: bool(pair.ground.seen(Delivered) and pair.board.seen(Delivered)))
    assert pair.ground.disk.objects
    assert pair.board.disk.objects
    assert pair.channel.counters("ground").collided + pair.channel.counters("board").collided == 0
    turns = sum(frame.over for _, _, frame in pair.sent)
    assert turns < 20


def test_a_turn_is_ten_seconds_of_airtime_at_most() -> None:
    slow = link(mtu_bytes=222, rate_up_bps=2400, rate_down_bps=2400)
    pair = Pair(slow)
    pair.board.offer(UPDATE, data(200_000), 0.0)
    pair.run(300.0)
    began = None
    turns = 0
    for at, side, frame in pair.sent:
        if side == "board":
            began = at if began is None else began
            if frame.over:
                assert at - began <= 10.0
                began = None
                turns += 1
    assert turns > 10


@pytest.mark.parametrize("seed", range(3))
def test_half_duplex_finishes_under_heavy_loss_both_ways(seed: int) -> None:
    pair = Pair(HALF, seed=seed, frame_loss=0.4)
    pair.ground.offer(1, data(6000), 0.0)
    pair.board.offer(UPDATE, data(6000, 2), 0.0)
    pair.run(600.0, lambda: bool(pair.ground.seen(Delivered) and pair.board.seen(Delivered)))
    assert pair.ground.disk.objects
    assert pair.board.disk.objects
