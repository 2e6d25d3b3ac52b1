"""The simulated channel keeps the rules of the air and the frequencies it promises, on a virtual clock."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_sim.world.channel import Burst, Channel, Impairments, Side
from hw_profiles import Link, load_link

FULL = dataclasses.replace(load_link("sband-256k"), bit_error_rate=0.0)
HALF = dataclasses.replace(load_link("uhf-9k6"), bit_error_rate=0.0)

DIRECTIONS: list[tuple[Side, Side]] = [("ground", "board"), ("board", "ground")]

sides = st.sampled_from(["ground", "board"])
traffic = st.lists(st.tuples(sides, st.binary(min_size=1, max_size=300), st.floats(0, 2)), max_size=30)


def drain(channel: Channel) -> list[tuple[float, Side, bytes]]:
    """Everything that still arrives, each with the moment the channel said it would."""
    heard = []
    while (at := channel.next_due()) < math.inf:
        heard += [(at, side, frame) for side, frame in channel.due(at)]
    return heard


def play(channel: Channel, plan: list[tuple[Side, bytes, float]]) -> list[tuple[float, Side, bytes]]:
    """Send each frame `gap` seconds after the one before, looking at `due` whenever it has something."""
    now, heard = 0.0, []
    for side, frame, gap in plan:
        now += gap
        while (at := channel.next_due()) <= now:
            heard += [(at, to, f) for to, f in channel.due(at)]
        channel.send(side, frame, now)
    return heard + drain(channel)


def test_a_clean_frame_takes_its_air_time_and_the_delay() -> None:
    channel = Channel(FULL, seed=1)
    channel.send("board", bytes(1000), 5.0)
    (at, side, frame) = drain(channel)[0]
    assert (side, frame) == ("ground", bytes(1000))
    assert at == pytest.approx(5.0 + 8000 / 256e3 + 0.0069)


def test_rates_of_the_two_directions_and_bits_a_byte_are_kept_apart() -> None:
    link = dataclasses.replace(FULL, rate_up_bps=1000.0, rate_down_bps=500.0, bits_per_byte=10, delay_s=0.0)
    channel = Channel(link, Impairments(overhead_bytes=28), seed=1)
    channel.send("board", bytes(72), 0.0)
    channel.send("ground", bytes(72), 0.0)
    assert channel.busy_until("board") == pytest.approx(1.0)
    assert channel.busy_until("ground") == pytest.approx(2.0)
    assert channel.counters("board").bytes == 100


@given(traffic)
def test_no_side_ever_gets_more_through_than_its_rate(plan: list[tuple[Side, bytes, float]]) -> None:
    heard = play(Channel(FULL, seed=1), plan)
    assert len(heard) == len(plan)
    for side in ("ground", "board"):
        arrivals = [(at, len(frame)) for at, to, frame in heard if to == side]
        for (before, _), (at, size) in pairwise(arrivals):
            assert at - before >= size * 8 / 256e3 - 1e-9


@given(traffic)
def test_full_duplex_without_losses_keeps_order_and_content(plan: list[tuple[Side, bytes, float]]) -> None:
    heard = play(Channel(FULL, seed=1), plan)
    for sender, receiver in DIRECTIONS:
        assert [f for _, to, f in heard if to == receiver] == [f for side, f, _ in plan if side == sender]


@given(traffic, st.sampled_from([FULL, HALF]), st.integers(0, 2**32))
def test_every_copy_of_every_frame_is_accounted_for(
    plan: list[tuple[Side, bytes, float]], link: Link, seed: int
) -> None:
    channel = Channel(
        link,
        Impairments(
            frame_loss=0.2, bit_error_rate=1e-3, duplicate=0.2, reorder=0.2, windows=[(1, 4), (6, 20)]
        ),
        seed=seed,
    )
    heard = play(channel, plan)
    for sender, receiver in DIRECTIONS:
        n = channel.counters(sender)
        assert n.frames == sum(side == sender for side, _, _ in plan)
        assert n.bytes == sum(len(f) for side, f, _ in plan if side == sender)
        assert n.delivered == sum(to == receiver for _, to, _ in heard)
        assert n.frames + n.duplicated == n.delivered + n.lost + n.collided + n.cut


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=40), st.data())
def test_fates_depend_on_the_seed_and_not_on_when_anybody_calls(
    frames: list[bytes], data: st.DataObject
) -> None:
    smooth, jerky = (
        Channel(FULL, Impairments(frame_loss=0.3, duplicate=0.3, bit_error_rate=0.01), seed=7)
        for _ in range(2)
    )
    first = play(smooth, [("board", frame, 0.0) for frame in frames])
    now, second = 0.0, []
    for frame in frames:
        now += data.draw(st.floats(0, 1))
        jerky.send("board", frame, now)
        if data.draw(st.booleans()):
            jerky.send("ground", b"the other side has a stream of its own", now)
        second += jerky.due(now)
    second += [(side, frame) for _, side, frame in drain(jerky)]
    # A second copy may wait for its turn, so the order differs with the gaps; what arrives does not.
    assert sorted(f for _, _, f in first) == sorted(f for side, f in second if side == "ground")


def test_another_seed_is_another_run() -> None:
    runs = set()
    for seed in range(5):
        channel = Channel(FULL, Impairments(frame_loss=0.5), seed=seed)
        play(channel, [("board", bytes([i]), 0.1) for i in range(64)])
        runs.add(channel.counters("board").lost)
        assert 10 < channel.counters("board").lost < 54
    assert len(runs) > 1


def test_loss_duplication_and_reordering_happen_as_often_as_asked() -> None:
    channel = Channel(FULL, Impairments(frame_loss=0.05, duplicate=0.1, reorder=0.2), seed=3)
    play(channel, [("board", bytes(10), 0.01)] * 20000)
    n = channel.counters("board")
    kept = n.frames - n.lost
    # Four standard deviations of a binomial.
    for got, out_of, p in ((n.lost, n.frames, 0.05), (n.duplicated, kept, 0.1), (n.reordered, kept, 0.2)):
        assert abs(got - out_of * p) < 4 * math.sqrt(out_of * p * (1 - p))


def test_reordered_frames_are_overtaken_but_not_lost() -> None:
    frames = [i.to_bytes(2, "big") * 20 for i in range(500)]
    heard = play(Channel(FULL, Impairments(reorder=0.2), seed=3), [("board", frame, 0.0) for frame in frames])
    arrived = [frame for _, _, frame in heard]
    assert arrived != frames
    assert sorted(arrived) == frames
    assert max(abs(arrived.index(frame) - i) for i, frame in enumerate(frames)) <= 4


def test_bit_errors_happen_as_often_as_asked_anywhere_in_the_frame() -> None:
    channel = Channel(FULL, Impairments(bit_error_rate=1e-3), seed=3)
    heard = play(channel, [("board", bytes(100), 0.01)] * 1000)
    wrong = [int.from_bytes(frame, "big") for _, _, frame in heard]
    flips = sum(w.bit_count() for w in wrong)
    assert abs(flips - 800) < 4 * math.sqrt(800)  # 800,000 bits, Poisson
    assert channel.counters("board").flipped == sum(w != 0 for w in wrong)
    either_half = [sum((w >> shift) & (2**400 - 1) > 0 for w in wrong) for shift in (0, 400)]
    assert min(either_half) > 0.7 * max(either_half)


@pytest.mark.parametrize(("ber", "expected"), [(0.0, bytes(9)), (1.0, b"\xff" * 9)])
def test_bit_error_rates_at_the_ends(ber: float, expected: bytes) -> None:
    heard = play(Channel(FULL, Impairments(bit_error_rate=ber), seed=1), [("board", bytes(9), 0.0)])
    assert heard[0][2] == expected


@pytest.mark.parametrize(("loss", "length"), [(0.05, 1.0), (0.2, 5.0), (0.4, 20.0)])
def test_bursts_have_the_mean_loss_and_the_mean_length(loss: float, length: float) -> None:
    channel = Channel(FULL, Impairments(burst=Burst(loss, length)), seed=3)
    n = 40000
    heard = play(channel, [("board", i.to_bytes(4, "big"), 0.01) for i in range(n)])
    arrived = {int.from_bytes(frame, "big") for _, _, frame in heard}
    lost = [i not in arrived for i in range(n)]
    bursts = sum(b and not a for a, b in zip([False, *lost], lost, strict=False))
    assert sum(lost) / n == pytest.approx(loss, rel=0.15)
    assert sum(lost) / bursts == pytest.approx(length, rel=0.15)


# -- half-duplex ---------------------------------------------------------------------------------------


def test_frames_that_overlap_on_a_half_duplex_link_are_both_lost() -> None:
    channel = Channel(HALF, seed=1)
    channel.send("board", bytes(120), 0.0)
    channel.send("ground", bytes(120), 0.05)
    assert drain(channel) == []
    assert channel.counters("board").collided == channel.counters("ground").collided == 1


def test_a_transmitter_that_comes_on_while_the_tail_is_still_arriving_drowns_only_that() -> None:
    channel = Channel(HALF, seed=1)
    channel.send("board", bytes(120), 0.0)
    off = channel.busy_until("board")
    channel.send("ground", bytes(120), off + HALF.delay_s / 2)
    assert [side for _, side, _ in drain(channel)] == ["board"]


def test_taking_turns_nothing_collides_and_each_turn_is_keyed_once() -> None:
    channel = Channel(HALF, seed=1)
    now = 0.0
    for side in ("board", "ground", "board"):
        for _ in range(3):
            channel.send(side, bytes(120), now)
        now = channel.busy_until(side) + HALF.delay_s
    assert len(drain(channel)) == 9
    assert channel.counters("board").airtime_s == pytest.approx(6 * 0.1 + 2 * HALF.keying_s)
    assert channel.counters("ground").airtime_s == pytest.approx(3 * 0.1 + HALF.keying_s)


def test_a_side_that_was_silent_keys_again() -> None:
    channel = Channel(HALF, seed=1)
    channel.send("board", bytes(120), 0.0)
    channel.send("board", bytes(120), channel.busy_until("board") + HALF.keying_s / 2)
    channel.send("board", bytes(120), channel.busy_until("board") + HALF.keying_s * 2)
    assert channel.counters("board").airtime_s == pytest.approx(3 * 0.1 + 2 * HALF.keying_s)


def test_two_that_speak_at_once_key_once_each() -> None:
    channel = Channel(HALF, seed=1)
    for nth in range(4):
        for side in ("ground", "board"):
            channel.send(side, bytes(120), 0.05 * nth)
    for side in ("ground", "board"):
        assert channel.counters(side).airtime_s == pytest.approx(4 * 0.1 + HALF.keying_s)
    assert drain(channel) == []


# -- contacts ------------------------------------------------------------------------------------------


@given(traffic, st.lists(st.floats(0, 30), min_size=2, max_size=6, unique=True), st.integers(0, 99))
def test_zero_bytes_outside_windows(
    plan: list[tuple[Side, bytes, float]], edges: list[float], seed: int
) -> None:
    edges = sorted(edges)[: len(edges) // 2 * 2]
    windows = list(zip(edges[::2], edges[1::2], strict=True))
    channel = Channel(FULL, Impairments(windows=windows, duplicate=0.3, reorder=0.3), seed=seed)
    for at, _, _ in play(channel, plan):
        sent = at - FULL.delay_s
        assert any(opens - 1e-9 <= sent <= closes + 1e-9 for opens, closes in windows)


def test_a_frame_that_a_window_cuts_at_either_edge_is_lost() -> None:
    channel = Channel(FULL, Impairments(windows=[(1.0, 2.0)]), seed=1)
    airtime_s = channel.airtime_s("board", 1000)
    for start in (1.0 - airtime_s / 2, 1.0 + airtime_s, 2.0 - airtime_s / 2):
        channel.send("board", bytes(1000), start)
    assert len(drain(channel)) == 1
    assert channel.counters("board").cut == 2
    assert [channel.is_open(t) for t in (0.9, 1.5, 2.1)] == [False, True, False]


def test_the_contact_closes_once_at_the_byte_asked_for() -> None:
    channel = Channel(FULL, Impairments(cut_after_bytes=2500, cut_s=10.0), seed=1)
    heard = play(channel, [("board", bytes(1000), 1.0)] * 20)
    # Frames 1 and 2 pass, 3 is cut in its middle, the next ten seconds are dark, the rest passes.
    at_cut = 3.0 + channel.airtime_s("board", 500)
    assert [round(at - channel.airtime_s("board", 1000) - FULL.delay_s) for at, _, _ in heard] == [
        1,
        2,
        *range(14, 21),
    ]
    assert (channel.is_open(at_cut - 0.001), channel.is_open(at_cut + 0.001)) == (True, False)
    assert (channel.is_open(at_cut + 9.999), channel.is_open(at_cut + 10.001)) == (False, True)


def test_the_cut_takes_what_the_ground_has_on_the_air_too() -> None:
    channel = Channel(FULL, Impairments(cut_after_bytes=500, cut_s=1.0), seed=1)
    channel.send("ground", bytes(1000), 0.0)
    channel.send("board", bytes(1000), 0.0)
    assert drain(channel) == []
    assert channel.counters("ground").cut == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"frame_loss": 1.5}, r"frame_loss 1\.5 is not a probability"),
        ({"bit_error_rate": -1e-9}, r"bit_error_rate -1e-09 is not a probability"),
        ({"duplicate": math.nan}, r"duplicate nan is not"),
        ({"windows": [(5, 5)]}, r"window 5:5 closes before it opens"),
        ({"windows": [(0, 5), (4, 6)]}, r"opens at 4 overlaps the one that closes at 5"),
        ({"cut_after_bytes": -1}, r"cut after -1 bytes"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Channel(FULL, Impairments(**options), seed=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("loss", "length"), [(1.0, 2), (-0.1, 2), (0.1, 0.5), (0.9, 2)])
def test_impossible_bursts_are_refused(loss: float, length: float) -> None:
    with pytest.raises(ValueError, match=r"burst"):
        Burst(loss, length)
