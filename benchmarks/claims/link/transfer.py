"""One object over an emulated link: its goodput beside the link's bound; what outages and restarts cost.

Whole sessions with their disks on the virtual clock: sealed frames in COBS, OFFERs, REPORTs and repairs are
all on the air. The bound for L bytes of payload a frame is rate * (1 - p) * L / (L + 24), p the share of
frames that is lost on average. Times run from the offer until the last byte is there and the digest is right;
each row is the mean over the seeds. Bursts are a Gilbert channel's, of 5 frames on average.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import click

from benchmarks.harness.pair import LinkPair
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from firmware_sim.world.channel import Burst, Channel, Impairments, Side
from firmware_sim.world.disk import scratch
from hw_profiles import Link, load_link
from onboard.wire.events import Arrived
from onboard.wire.framing.frame import OVERHEAD_BYTES

KIND = 2  # an update: what the session does with an object does not depend on it
LOSSES = (0.0, 0.05, 0.2, 0.4)
BURST_FRAMES = 5.0
SEEDS = 20
FRAMING_BYTES = 24  # header, tag and COBS of the bound (docs/results/link-benchmarks.md)
FOREVER_S = 1e6

OUTAGE_S = 60.0
OUTAGE_BYTES = 1.3
RESTART_S = 0.25  # an agent's start takes 0.23 s of CPU (docs/results/benchmarks.md)
RESTART_BYTES, RESTART_LATER_S = 0.03, 2.0
ADAPTIVE = 0.93
ADAPTIVE_OBJECTS = 8

OPTIONS = (
    click.Option(
        ["--seeds"], type=click.IntRange(1, 1000), default=SEEDS, help="Runs to average a row over."
    ),
    click.Option(["--only"], default="", metavar="TEXT", help="Only the rows whose name begins so."),
)


@dataclass(frozen=True)
class TransferCase:
    """A link, an object, and the share of the bound that it reaches at least."""

    name: str
    link: Link
    size_bytes: int
    least: float


def radio(rate_bps: float, payload_bytes: int, *, half: bool = False, delay_s: float | None = None) -> Link:
    """The UHF radio at another rate and frame length; without `delay_s` as far away as in its profile."""
    uhf = load_link("uhf-9k6")
    return replace(
        uhf, rate_up_bps=rate_bps, rate_down_bps=rate_bps, mtu_bytes=payload_bytes + OVERHEAD_BYTES,
        half_duplex=half, frame_loss=0.0, bit_error_rate=0.0,
        delay_s=uhf.delay_s if delay_s is None else delay_s,
    )  # fmt: skip


KIB, MIB = 1 << 10, 1 << 20
SLOW = TransferCase("9.6 kbit/s", radio(9600, 200), 64 * KIB, 0.95)
MIDDLE = TransferCase("64 kbit/s", radio(64e3, 1024), MIB, 0.90)
FAST = TransferCase("16 Mbit/s", radio(16e6, 1400, delay_s=0.02), MIB, 0.90)
SLOW_HALF = TransferCase("9.6 kbit/s half-duplex", radio(9600, 200, half=True), 64 * KIB, 0.85)
MIDDLE_HALF = TransferCase("64 kbit/s half-duplex", radio(64e3, 1024, half=True), MIB, 0.85)
CASES = (SLOW, MIDDLE, FAST, SLOW_HALF, MIDDLE_HALF)
LONG_FRAMES = TransferCase("9.6 kbit/s, L 1024", radio(9600, 1024), 64 * KIB, 0.0)


@dataclass(frozen=True, slots=True)
class TransferOutcome:
    """When an object was whole at the ground, and the wire bytes of both ends until its sender knew."""

    arrived_s: float
    wire_bytes: int


Run = Callable[[int], list[float]]  # a seed's values, one for each row


@dataclass(frozen=True)
class Group:
    """Rows that are measured together: what each is, its unit and bound, and the run of a seed."""

    name: str
    run: Run
    rows: tuple[tuple[str, str, float | None, bool], ...]  # what, unit, bound, at least


def measure(tell: ProgressLine, *, seeds: int, only: str) -> list[Row]:
    """Takes about six minutes on one core with 20 seeds."""
    groups = [group for group in all_groups() if group.name.startswith(only)]
    if not groups:
        raise click.UsageError(f"--only {only!r}: no row begins so")
    rows = []
    for nth, group in enumerate(groups, start=1):
        values: list[list[float]] = []
        for seed in range(seeds):
            tell(f"{group.name} ({nth} of {len(groups)})")
            values.append(group.run(seed))
        for (what, unit, bound, at_least), of_row in zip(group.rows, zip(*values, strict=True), strict=True):
            rows.append(Row(f"{group.name}{what}", mean(of_row), unit, bound, at_least))
            if at_least:
                rows.append(Row("  in the worst run", min(of_row), unit))
    return rows


def all_groups() -> Iterator[Group]:
    """All that this benchmark measures, in the order of its table."""
    for case in CASES:
        for loss in LOSSES:
            yield _goodput(case, loss, None)
    for case in CASES:
        for loss in LOSSES[1:]:
            yield _goodput(case, loss, BURST_FRAMES)
    for ber in (1e-5, 1e-4):
        yield _adaptive(ber)
    yield _outage()
    for case in (SLOW, MIDDLE, SLOW_HALF, MIDDLE_HALF):
        for loss in (0.0, 0.05):
            for side in ("ground", "board"):
                yield _restart(case, loss, side)


def bound_bps(link: Link, loss: float) -> float:
    """Payload bits a second that the link's uplink carries at best with frames of its MTU."""
    payload_bytes = link.mtu_bytes - OVERHEAD_BYTES
    return link.rate_up_bps * (1 - loss) * payload_bytes / (payload_bytes + FRAMING_BYTES)


def best_bound_bps(link: Link, ber: float) -> float:
    """As `bound_bps` with frames of the best length, where each bit is wrong with probability `ber`."""
    lengths = range(1, link.mtu_bytes - OVERHEAD_BYTES + 1)
    return link.rate_up_bps * max(
        length / (length + FRAMING_BYTES) * (1 - ber) ** (8 * (length + FRAMING_BYTES)) for length in lengths
    )


def payload_of(size_bytes: int, seed: int) -> bytes:
    """Incompressible bytes."""
    return random.Random(seed).randbytes(size_bytes)


def _goodput(case: TransferCase, loss: float, burst_frames: float | None) -> Group:
    burst = None if burst_frames is None else Burst(loss, burst_frames)

    def run(seed: int) -> list[float]:
        outcome = send(case, seed, frame_loss=loss, burst=burst)
        return [8 * case.size_bytes / outcome.arrived_s / bound_bps(case.link, loss)]

    lost = f"{100 * loss:.0f} % lost" + (" in bursts" if burst else "")
    return Group(f"{case.name}, {lost}", run, (("", "of the bound", case.least, True),))


def _adaptive(ber: float) -> Group:
    """Several objects one after the other; the first one's losses are what the later ones' lengths follow."""
    link, size_bytes = LONG_FRAMES.link, LONG_FRAMES.size_bytes

    def run(seed: int) -> list[float]:
        arrived_s: list[float] = []
        with scratch() as folder:
            pair = LinkPair(folder, Channel(link, Impairments(bit_error_rate=ber), seed=seed))
            for nth in range(ADAPTIVE_OBJECTS):
                pair.board.offer(KIND, payload_of(size_bytes, ADAPTIVE_OBJECTS * seed + nth), pair.now)
                finish(pair)
                arrived_s.append(arrival_s(pair))
        bits = 8 * size_bytes
        first_bps = bits / arrived_s[0]
        later_bps = bits * (ADAPTIVE_OBJECTS - 1) / (arrived_s[-1] - arrived_s[0])
        best_bps = best_bound_bps(link, ber)
        return [later_bps / best_bps, first_bps / best_bps]

    return Group(
        f"9.6 kbit/s, bit errors {ber:.0e}",
        run,
        (
            (", length adapted to losses", "of the best bound", ADAPTIVE, True),
            (", the first object of a session", "of the best bound", None, False),
        ),
    )


def _outage() -> Group:
    case = LONG_FRAMES

    def run(seed: int) -> list[float]:
        airtime_s = 8 * case.size_bytes / bound_bps(case.link, 0.0)
        begins_s = random.Random(seed).uniform(0.1, 0.9) * airtime_s
        windows = [(0.0, begins_s), (begins_s + OUTAGE_S, FOREVER_S)]
        outcome = send(case, seed, windows=windows)
        return [outcome.wire_bytes / case.size_bytes, outcome.arrived_s - airtime_s - OUTAGE_S]

    return Group(
        f"{case.name}, {OUTAGE_S:.0f} s without contact",
        run,
        (
            (", bytes of both ends", "of the object's", OUTAGE_BYTES, False),
            (", later than the bound and the outage", "s", None, False),
        ),
    )


def _restart(case: TransferCase, loss: float, side: Side) -> Group:
    def run(seed: int) -> list[float]:
        calm = send(case, seed, frame_loss=loss)
        at_s = random.Random(seed).uniform(0.1, 0.9) * calm.arrived_s
        cut = send(case, seed, restart=(side, at_s), frame_loss=loss)
        later_s = cut.arrived_s - calm.arrived_s - RESTART_S
        return [100 * (cut.wire_bytes / calm.wire_bytes - 1), later_s]

    return Group(
        f"{case.name}, {100 * loss:.0f} % lost, {side} killed",
        run,
        (
            (", more bytes", "%", 100 * RESTART_BYTES, False),
            (", later than its time off", "s", RESTART_LATER_S, False),
        ),
    )


def send(
    case: TransferCase, seed: int, *, restart: tuple[Side, float] | None = None, **channel: Any
) -> TransferOutcome:
    """One object from the board to the ground. restart: which end is killed when, for RESTART_S."""
    with scratch() as folder:
        pair = LinkPair(folder, Channel(case.link, Impairments(**channel), seed=seed))
        pair.board.offer(KIND, payload_of(case.size_bytes, seed), 0.0)
        if restart is not None:
            side, at_s = restart
            pair.run(at_s)
            pair.ends[side].kill()
            pair.run(at_s + RESTART_S)
            pair.ends[side].boot(pair.now)
        finish(pair)
        return TransferOutcome(arrival_s(pair), pair.bytes_sent())


def finish(pair: LinkPair) -> None:
    """Runs until the board knows that its object is at the ground. Raises RuntimeError if it never does."""
    pair.run(FOREVER_S, lambda: not pair.board.offers)
    if pair.board.offers:
        raise RuntimeError(f"an object was not delivered in {FOREVER_S:.0f} s")


def arrival_s(pair: LinkPair) -> float:
    """When the last object was whole at the ground."""
    return max((at for at, event in pair.ground.events if isinstance(event, Arrived)), default=math.inf)
