"""One board's link with the ground through many passes, and what it is held to meanwhile.

`tally` counts what was offered and how it ended, and what must not be: bytes outside of the plan, replays
that were taken. Allowances are counted here once more, from what is on the air.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claims.link.transfer import payload_of
from benchmarks.harness.pair import Broken, LinkPair, PairedEnd, PairHooks
from benchmarks.harness.passes import heard, passes
from firmware_sim.world.channel import SIDES, Burst, Channel, Impairments, Side
from hw_profiles import load_link
from onboard.wire.config import Limits
from onboard.wire.events import Arrived, Delivered, Expired
from onboard.wire.framing import cobs
from onboard.wire.framing import frame as framing

LINK = load_link("uhf-9k6")
LOSS = Burst(0.05, 5.0)
LIMITS = Limits(bytes_per_contact=150_000, bytes_per_day=1_200_000)  # ten minutes carry 720,000 B one way
KINDS: dict[Side, int] = {"ground": 1, "board": 2}
LOOK_S = 20.0  # how often the progress of objects is looked at
HAS_LEFT = 0.75  # of an allowance: up to there objects may use it, whatever restarts have cost
REMEMBERED, REPLAYABLE = 0.02, 200  # the share of frames that may be played again, and at most so many
DAY_MINUTES = 24 * 60
RECORD_S = 900.0  # so old the last record of what was spent may be


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object on its way: its sender, and what makes its payload."""

    side: Side
    size_bytes: int
    seed: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A frame that an end took in its life of that epoch: the sender's (epoch, seq), its bytes in COBS."""

    side: Side
    life: int
    transmission: tuple[int, int]
    chunk: bytes


class Leg:
    """The link of board `nth`, up to `until_s` on the virtual clock; from `calm_s` on no pass is missed."""

    def __init__(self, nth: int, folder: Path, *, seed: int, calm_s: float, until_s: float) -> None:
        self.random = random.Random(f"{seed}/{nth}")
        self.plan = passes(self.random, until_s)
        rough = [window for window in self.plan if window.rise < calm_s]
        calm = [(window.rise, window.set) for window in self.plan[len(rough) :]]
        self.tally: Counter[str] = Counter()
        self.wanted: dict[bytes, Wanted] = {}
        self.longest_stall_s = 0.0
        self._stalled_s = dict.fromkeys(SIDES, 0.0)
        self._seen: dict[Side, tuple[int, ...]] = {}
        self._sets = [window.set for window in self.plan]
        self._by_minute = {side: array("q", bytes(8 * math.ceil(until_s / 60 + 1))) for side in SIDES}
        self._by_contact = {side: array("q", bytes(8 * len(self.plan))) for side in SIDES}
        self._old: list[Taken] = []
        self._new_disk_minute = 0  # of the board
        self._down_from: dict[Side, float] = {}
        self._unknown_s = dict.fromkeys(SIDES, 0.0)  # time that an end cannot know to have passed
        windows = heard(self.random, rough) + calm
        self.pair = LinkPair(
            folder, Channel(LINK, Impairments(burst=LOSS, windows=windows), seed=seed * 256 + nth),
            limits=LIMITS, contacts=self.plan, nonce=self.random.randbytes,
            hooks=PairHooks(mangle=self._hear, sent=self._send),
        )  # fmt: skip

    # -- what is done to it ----------------------------------------------------------------------------

    def offer(self, side: Side, size_bytes: int, *, priority: int, deadline_s: float | None = None) -> None:
        """An object for the other side, unless the program that would send it is down."""
        end = self.pair.ends[side]
        if end.pump is not None:
            wanted = Wanted(side, size_bytes, self.random.getrandbits(48))
            payload = payload_of(size_bytes, wanted.seed)
            digest = end.offer(KINDS[side], payload, self.pair.now, priority=priority, deadline_s=deadline_s)
            self.wanted[digest] = wanted
            self.tally["objects"] += 1

    def tell(self, side: Side, payload: bytes) -> None:
        """A message."""
        if (pump := self.pair.ends[side].pump) is not None:
            pump.session.send_message(payload, self.pair.now)

    def take_back(self) -> None:
        """The board's largest object is not wanted any more."""
        board = self.pair.board
        largest = max(board.offers, key=lambda digest: self.wanted[digest].size_bytes, default=None)
        if board.pump is not None and largest is not None:
            board.cancel(largest, self.pair.now)
            self.tally["objects taken back"] += self.wanted.pop(largest, None) is not None

    def kill(self, side: Side) -> None:
        """As kill -9."""
        if self.pair.ends[side].pump is not None:
            self.tally["kills"] += 1
            self._down_from[side] = self.pair.now
            self.pair.ends[side].kill()

    def boot(self, side: Side) -> None:
        """Starts that end again, if it is down."""
        if self.pair.ends[side].pump is None:
            self._unknown_s[side] += self.pair.now - self._down_from[side] + RECORD_S
            self.pair.ends[side].boot(self.pair.now)

    def lose_disk(self) -> None:
        """The board comes back with an empty disk."""
        self.kill("board")
        self.pair.board.lose()
        lost = [digest for digest, wanted in self.wanted.items() if wanted.side == "board"]
        for digest in lost:
            del self.wanted[digest]
        self.tally["objects lost with a disk"] += len(lost)
        self._new_disk_minute = int(self.pair.now / 60) + 1
        self.boot("board")

    def replay(self) -> None:
        """An end hears a frame that it has taken before. It may do so again if its next start forgot that it
        had, with all that the frame brought about."""
        if not self._old:
            return
        old = self.random.choice(self._old)
        end = self.pair.ends[old.side]
        if end.pump is None:
            return
        forgotten = end.session.epoch != old.life and old.transmission > end.floor
        self.tally["replays"] += 1
        self.tally["replays taken"] += self._takes(old.side, old.chunk) and not forgotten

    # -- what it is held to ----------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """The clock moves on. Raises Broken."""
        self.pair.run(until)
        for end in self.pair.ends.values():
            self._settle(end)

    def look(self) -> None:
        """For how long nothing of an end's objects went on, though it could have."""
        for side, end in self.pair.ends.items():
            seen = self._progress(end)
            stalls = seen is not None and seen == self._seen.get(side)
            self._seen[side] = seen or ()
            self._stalled_s[side] = self._stalled_s[side] + LOOK_S if stalls else 0.0
            self.longest_stall_s = max(self.longest_stall_s, self._stalled_s[side])

    def of_contact(self, side: Side) -> float:
        """The most of a contact's allowance that an end used."""
        return max(self._by_contact[side], default=0) / LIMITS.bytes_per_contact

    def of_day(self, side: Side) -> float:
        """The most of a day's allowance that it used in any 24 hours. With its disk goes what was counted."""
        new = self._new_disk_minute if side == "board" else 0
        minutes = self._by_minute[side]
        return max(map(_most_of_day, (minutes[:new], minutes[new:]))) / LIMITS.bytes_per_day

    def stray_files(self) -> int:
        """Files of objects that are over."""
        stray = 0
        for end in self.pair.ends.values():
            known = {f"{digest.hex()}.{kind}" for digest in end.session.incoming for kind in ("part", "map")}
            known |= {"finished", "spool", "journal.0", "journal.1", *(digest.hex() for digest in end.offers)}
            stray += sum(path.name not in known for path in end.folder.rglob("*"))
        return stray

    def journal_bytes(self) -> int:
        """The largest slot of a journal."""
        ends = self.pair.ends.values()
        return max(path.stat().st_size for end in ends for path in end.folder.glob("journal.*"))

    # -- one rule each ---------------------------------------------------------------------------------

    def _settle(self, end: PairedEnd) -> None:
        """What has come to an end at its sender, and how."""
        peer = self.pair.ground if end is self.pair.board else self.pair.board
        for _, event in end.events:
            if isinstance(event, Arrived):
                wanted = self.wanted.get(event.digest)
                if wanted is not None and event.payload != payload_of(wanted.size_bytes, wanted.seed):
                    raise Broken("every object arrives identical", event.digest.hex())
                end.taken[event.digest] = b""  # it was looked at
            elif isinstance(event, Delivered) and self.wanted.pop(event.digest, None) is not None:
                self.tally["objects delivered"] += 1
                if event.digest not in peer.taken and not self.tally["objects lost with a disk"]:
                    raise Broken("what is said to be delivered has arrived", event.digest.hex())
            elif isinstance(event, Expired) and self.wanted.pop(event.digest, None) is not None:
                self.tally["objects ended by their deadline"] += 1
        end.events.clear()
        end.messages.clear()
        for digest in [digest for digest, wanted in self.wanted.items() if wanted.side == end.side]:
            if digest not in end.offers:  # its deadline passed while the end was down
                del self.wanted[digest]
                self.tally["objects ended by their deadline"] += 1

    def _progress(self, end: PairedEnd) -> tuple[int, ...] | None:
        """What changes when an object of this end goes on; None where none can."""
        now, pair = self.pair.now, self.pair
        nth = self._contact(now)
        if nth is None or not (pair.channel.is_open(now) and pair.channel.is_open(now - LOOK_S)):
            return None
        if any(each.pump is None for each in pair.ends.values()) or not end.offers:
            return None
        for side in SIDES:
            since = int((now - self._unknown_s[side]) / 60) - DAY_MINUTES
            day = self._by_minute[side][max(0, since) : int(now / 60) + 1]
            if (
                self._by_contact[side][nth] > HAS_LEFT * LIMITS.bytes_per_contact
                or sum(day) > HAS_LEFT * LIMITS.bytes_per_day
            ):
                return None
        held = (each.held for each in end.session.snapshot(now).objects if not each.incoming)
        return (end.session.epoch, len(end.offers), sum(held))

    def _contact(self, now: float) -> int | None:
        """The number of the one that is open."""
        nth = bisect_right(self._sets, now)
        return nth if nth < len(self.plan) and self.plan[nth].rise <= now else None

    def _send(self, side: Side, wire: bytes, on_s: float, until_s: float) -> None:
        nth = self._contact(on_s)
        self.tally["frames"] += 1
        if nth is None or until_s > self.plan[nth].set:
            self.tally["bytes outside of contacts"] += len(wire)
        else:
            self._by_contact[side][nth] += len(wire)
            self._by_minute[side][int(on_s / 60)] += len(wire)

    def _takes(self, side: Side, chunk: bytes) -> bool:
        """Whether an end that is up takes the frame that it hears now."""
        end, now = self.pair.ends[side], self.pair.now
        before = end.session.frames_received
        end.port.hear(chunk + b"\0")
        end.poll(now)
        return end.session.frames_received > before

    def _hear(self, wire: bytes, now: float) -> list[bytes]:
        """Of what an end takes, some may be played to it again, hours later."""
        if self.random.random() > REMEMBERED:
            return [wire]
        chunk = wire[:-1]
        try:
            frame = framing.unproven(cobs.decode(chunk))
        except (cobs.BadCobs, framing.BadFrame):
            return [wire]
        side: Side = "ground" if frame.destination == 0 else "board"
        if self.pair.ends[side].pump is None or frame.type is framing.Type.HELLO or wire[-1]:
            return [wire]
        if self._takes(side, chunk):
            if len(self._old) >= REPLAYABLE:
                self._old.pop(self.random.randrange(REPLAYABLE))
            epoch = self.pair.ends[side].session.epoch
            self._old.append(Taken(side, epoch, (frame.epoch, frame.seq), chunk))
        return []


def _most_of_day(minutes: array[int]) -> int:
    """The largest sum of 24 hours."""
    sent = most = sum(minutes[:DAY_MINUTES])
    for last in range(DAY_MINUTES, len(minutes)):
        sent += minutes[last] - minutes[last - DAY_MINUTES]
        most = max(most, sent)
    return most
