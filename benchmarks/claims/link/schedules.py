"""Random schedules of all that can befall a link: every object ends identical, once, or by its deadline.

A seed draws a link, objects of both ends, commands, and a list of troubles, each for a while: frames are
dropped, doubled, overtaken, flipped, cut short and replayed, contacts open and close, planned or not, an end
is killed, or its power is cut, at any sync, so that the disk loses what was not synced. Then all is well
again, and must come to an end. Journal, spool, pump and session are the programs' own, on the virtual clock.
A schedule that breaks a rule is told with its seed: `--first SEED --count 1` plays it again.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import quantiles

import click

from benchmarks.claims.link.transfer import FOREVER_S, payload_of, radio
from benchmarks.harness.disk import Disk, PowerCut, watched
from benchmarks.harness.pair import Broken, LinkPair, PairedEnd, PairHooks
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from benchmarks.harness.weather import LinkWeather, Trouble
from firmware_sim.world.channel import SIDES, Channel, Impairments, Side
from firmware_sim.world.disk import scratch
from onboard.wire.config import Limits
from onboard.wire.framing import cobs
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import OVERHEAD_BYTES, Type
from onboard.wire.medium.contact_gate import Window
from onboard.wire.messages import digest as digest_of

COUNT = 2000
WAIT_FRAMES = 2.0
TIMER_S = 0.005  # no timer is finer: a frame time shorter than this counts as this long
SETTLED_WITHIN_S = 5000.0
IDLE_S = 600.0
RULES = (
    "every object ends identical or by its deadline",
    "nothing is delivered twice",
    "no replayed frame is taken",
    "what was saved is there",
    "no byte leaves outside a planned contact",
    "a link on which nothing is to be said is silent",
)

LINKS = {
    "9.6 kbit/s": radio(9600, 200),
    "9.6 kbit/s half-duplex": radio(9600, 200, half=True),
    "2 Mbit/s": radio(2e6, 1000, delay_s=0.01),
    "64 kbit/s, 0.3 s away": radio(64e3, 400, delay_s=0.3),
    "9.6 kbit/s, 29 B a frame": radio(9600, 29),
}

OPTIONS = (
    click.Option(["--first"], type=click.IntRange(0), default=0, help="The first schedule's seed."),
    click.Option(
        ["--count"], type=click.IntRange(1), default=COUNT, help="How many, one seed after another."
    ),
)


def troubles(source: random.Random, unit_s: float) -> Iterator[Trouble]:
    """Up to eight, each for some tens of frame times."""
    for _ in range(source.randrange(9)):
        yield Trouble(
            duration_s=source.uniform(0.05, 8.0) * unit_s,
            drop=source.choice((0.0, 0.0, 0.05, 0.3, 0.7, 1.0)),
            double=source.choice((0.0, 0.2)),
            flip=source.choice((0.0, 0.2)),
            truncate=source.choice((0.0, 0.2)),
            replay=source.choice((0.0, 0.3)),
            killed=source.choice((None, None, None, *SIDES)),
            power_cut=source.random() < 0.5,
            syncs_left=source.choice((None, None, source.randrange(12))),
        )


@dataclass
class ScheduledObject:
    """An object that was offered; `deadline_s` on the link's clock, inf for never."""

    receiver: Side
    payload: bytes
    deadline_s: float


@dataclass
class Schedule:
    """One seed's schedule; `play` it once. `tally` counts what happened, `waits` the frame times between
    each command's being queued during bulk, on a full-duplex link, and its first bit."""

    seed: int
    tally: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)

    def play(self) -> None:
        """Raises Broken."""
        source = self._random = random.Random(self.seed)
        self._link = LINKS[source.choice(sorted(LINKS))]
        link = self._link
        rate_bps = min(link.rate_up_bps, link.rate_down_bps)
        self._frame_s = max(cobs.wire_bytes(link.mtu_bytes) * 8 / rate_bps, TIMER_S)
        self._unit_s = 10 * cobs.wire_bytes(link.mtu_bytes) * 8 / rate_bps
        self._weather = LinkWeather(source, self.tally)
        self._taken: dict[tuple[Side, int], set[bytes]] = {}
        self._told: dict[bytes, tuple[Side, float]] = {}  # commands whose wait counts: who, since when
        self._wanted: dict[bytes, ScheduledObject] = {}
        windows = self._windows()
        self._plan = None
        if windows and source.random() < 0.5:
            self._plan = [Window(opens, closes) for opens, closes in windows]
            self.tally["planned contacts"] += len(windows)
        reorder = source.choice((0.0, 0.1))
        channel = Channel(
            link,
            Impairments(
                frame_loss=source.choice((0.0, 0.1, 0.3)), reorder=reorder, duplicate=reorder, windows=windows
            ),
            seed=self.seed,
        )
        with scratch() as folder:
            self._pair = LinkPair(
                folder, channel, limits=Limits(reorder_slack=source.choice((0, 3))),
                contacts=self._plan, hooks=PairHooks(self._weather, self._note_sent, self._check_taken),
            )  # fmt: skip
            self._disks = {side: Disk(folder / side) for side in SIDES}
            with watched(self._disks.values()):
                self._suffer()
                self._settle()

    # -- what happens ----------------------------------------------------------------------------------

    def _windows(self) -> list[tuple[float, float]] | None:
        """Some contacts, the last one without an end; None for always."""
        rnd, at, windows = self._random, 0.0, []
        for _ in range(rnd.choice((0, 0, 1, 3))):
            at += rnd.uniform(0.0, 6.0) * self._unit_s
            windows.append((at, at := at + rnd.uniform(0.2, 8.0) * self._unit_s))
        self.tally["times without contact"] += len(windows)
        return [*windows, (at + rnd.uniform(0.1, 6.0) * self._unit_s, FOREVER_S)] if windows else None

    def _suffer(self) -> None:
        rnd, pair = self._random, self._pair
        for _ in range(rnd.randint(1, 3)):
            self._offer(pair.board)
        for _ in range(rnd.randrange(3)):
            self._offer(pair.ground)
        for trouble in troubles(rnd, self._unit_s):
            ends_s = pair.now + trouble.duration_s
            if rnd.random() < 0.3:
                self._offer(rnd.choice((pair.ground, pair.board)))
            self._weather.trouble = trouble
            if trouble.killed is not None:
                self._kill(pair.ends[trouble.killed], power_cut=trouble.power_cut)
            elif trouble.syncs_left is not None:
                self._disks[rnd.choice(SIDES)].syncs_left = trouble.syncs_left
            while pair.now < ends_s:
                self._run(min(ends_s, pair.now + rnd.uniform(0.3, 2.0) * self._unit_s))
                self._command(rnd.choice((pair.ground, pair.board)))
            self._heal()

    def _settle(self) -> None:
        """All is well from here on."""
        pair = self._pair
        self._run(pair.now + SETTLED_WITHIN_S, settled=True)
        for digest, wanted in self._wanted.items():
            payload = pair.ends[wanted.receiver].taken.get(digest)
            if payload is not None and payload != wanted.payload:
                raise Broken(RULES[0], f"{digest.hex()} arrived as something else")
            if payload is None and pair.board.link_s(pair.now) < wanted.deadline_s:
                raise Broken(RULES[0], f"{digest.hex()} did not arrive")
            self.tally["objects ended by their deadline" if payload is None else "objects identical"] += 1
        for end in pair.ends.values():
            left = end.offers | end.session.incoming.keys()
            if left:
                raise Broken(RULES[0], f"{end.side} is left with {len(left)} objects")
        sent = pair.bytes_sent()
        self._run(pair.now + IDLE_S)
        if pair.bytes_sent() > sent:
            raise Broken(RULES[5], f"{pair.bytes_sent() - sent} B in {IDLE_S:.0f} s")

    def _offer(self, end: PairedEnd) -> None:
        rnd, now = self._random, self._pair.now
        if end.pump is None:
            return
        fragment_bytes = self._link.mtu_bytes - OVERHEAD_BYTES
        size_bytes = max(0, rnd.randrange(61) * fragment_bytes - rnd.randrange(20))
        payload = payload_of(size_bytes, rnd.getrandbits(32))
        deadline_s = rnd.choice((None, None, rnd.uniform(1.0, 20.0) * self._unit_s))
        kind = 2 if end.side == "board" else 1
        if digest_of(kind, payload) in self._wanted:
            return  # two empty ones are the same object
        digest = end.offer(kind, payload, now, priority=rnd.randrange(2, 8), deadline_s=deadline_s)
        receiver: Side = "ground" if end.side == "board" else "board"
        until_s = math.inf if deadline_s is None else end.link_s(now) + deadline_s
        self._wanted[digest] = ScheduledObject(receiver, payload, until_s)

    def _command(self, end: PairedEnd) -> None:
        if end.pump is None:
            return
        now, number = self._pair.now, b"command %d" % self.tally["commands"]
        self.tally["commands"] += 1
        busy, silent = bool(end.session.outgoing), end.session.silent
        end.session.send_message(number, now)
        if busy and not silent and self._in_contact(now, now) and not self._link.half_duplex:
            self._told[number] = (end.side, now)

    def _run(self, until: float, *, settled: bool = False) -> None:
        """The clock moves on, through power cuts; every object keeps its deadline."""
        pair = self._pair
        while True:
            try:
                pair.run(until, lambda: settled and self._quiet())
                break
            except PowerCut as cut:
                (end,) = [pair.ends[side] for side in SIDES if self._disks[side] is cut.disk]
                self._kill(end, power_cut=True)
        for end in pair.ends.values():
            if end.pump is None:
                continue
            late_s = end.link_s(pair.now) - 1e-3
            if any(self._wanted[digest].deadline_s < late_s for digest in end.offers):
                raise Broken(RULES[0], f"{end.side} goes on with an object whose deadline is over")
            if end.session.silent:  # a peer that does not answer is not told anything
                self._told = {number: who for number, who in self._told.items() if who[0] != end.side}

    def _kill(self, end: PairedEnd, *, power_cut: bool) -> None:
        if end.pump is None:
            return
        end.kill()
        if power_cut:
            self._disks[end.side].cut(self._random)
        self.tally["power cuts" if power_cut else "kills"] += 1
        self._told = {number: who for number, who in self._told.items() if who[0] != end.side}

    def _heal(self) -> None:
        """The trouble is over: both ends are up."""
        self._weather.trouble = None
        for side in SIDES:
            self._disks[side].syncs_left = None
            if self._pair.ends[side].pump is None:
                self._pair.ends[side].boot(self._pair.now)

    # -- what is watched -------------------------------------------------------------------------------

    def _quiet(self) -> bool:
        pair = self._pair
        on_its_way = pair.channel.next_due() < math.inf
        return not on_its_way and all(end.quiet(pair.now) for end in pair.ends.values())

    def _in_contact(self, on_s: float, until_s: float) -> bool:
        """Whether all of that time is in a planned contact, if there is a plan."""
        plan = self._plan
        return plan is None or any(window.rise <= on_s and until_s <= window.set for window in plan)

    def _note_sent(self, side: Side, wire: bytes, on_s: float, until_s: float) -> None:
        """A frame leaves; if it is a command that waited, that was its wait."""
        if not self._in_contact(on_s, until_s):
            raise Broken(RULES[4], f"{side} transmits from {on_s:.6f} to {until_s:.6f} s")
        frame = framing.unproven(cobs.decode(wire[:-1]))
        if frame.type is Type.MSG:
            told = self._told.pop(frame.payload, None)
            if told is not None:
                self.waits.append((on_s - told[1]) / self._frame_s)

    def _check_taken(self, end: PairedEnd, wire: bytes) -> None:
        """An end took a frame: the first time in this life, and nothing from before it."""
        raw = cobs.decode(wire[:-1])
        frame = framing.unproven(raw)
        transmission = frame.epoch, frame.seq
        taken = self._taken.setdefault((end.side, end.session.epoch), set())
        if raw in taken or transmission <= end.floor:
            raise Broken(RULES[2], f"{end.side} took epoch, seq {transmission}, floor {end.floor}")
        taken.add(raw)
        self.tally["frames taken"] += 1


def measure(tell: ProgressLine, *, first: int, count: int) -> list[Row]:
    """Takes about six minutes on one core with 2,000."""
    broken: Counter[str] = Counter()
    tally: Counter[str] = Counter()
    waits: list[float] = []
    started_s = time.monotonic()
    for nth in range(count):
        left_s = (time.monotonic() - started_s) * (count - nth) / max(nth, 1)
        tell(f"{count} schedules from seed {first}, {broken.total()} broken so far", left_s)
        schedule = Schedule(first + nth)
        try:
            schedule.play()
        except Broken as found:
            broken[found.rule] += 1
            click.echo(f"seed {schedule.seed}: {found}", err=True)
        tally += schedule.tally
        waits += schedule.waits
    rows = [Row("schedules", count, "")]
    rows += [Row(f"schedules in which it is broken that {rule}", broken[rule], "", 0) for rule in RULES]
    if len(waits) > 1:
        rows.append(
            Row("a command's wait, 99th percentile", quantiles(waits, n=100)[-1], "frames", WAIT_FRAMES)
        )
        rows.append(Row("  of so many that were queued during bulk", len(waits), "commands"))
    return rows + [Row(f"  {what}", number, "") for what, number in sorted(tally.items())]
