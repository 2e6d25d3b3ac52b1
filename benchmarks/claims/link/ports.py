"""Over real ports two processes reach what the virtual clock promises, and leave most of a core to others.

An object goes from a board's process to a ground's, each a pump on a port of its own, through the emulated
cable (a third process) that holds the link to its rate: pseudo-terminals and UDP at three rates. The same
link, sessions and object on the virtual clock are the measure, computed in the same run. Times are from the
offer until the object is whole and stored; the busy share is a process's CPU time over that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.claims.link.transfer import payload_of
from benchmarks.harness import process
from benchmarks.harness.lab import LabError
from benchmarks.harness.pair import LinkPair
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from firmware_sim.runs.processes import ProcessGroup, free_ports
from firmware_sim.world.channel import Channel
from firmware_sim.world.disk import scratch
from hw_profiles import Link, load_link
from onboard.mission.objects import UPDATE
from onboard.wire.events import Arrived

GOODPUT, BUSY = 0.9, 0.6
REPEATS = 3
WITHIN_S = 60.0
SIDES = ("ground", "board")

OPTIONS = (
    click.Option(["--only"], default="", metavar="TEXT", help="Only the rows whose name begins so."),
    click.Option(
        ["--repeats"], type=click.IntRange(1, 100), default=REPEATS, show_default=True,
        help="Runs of each; the one of the median goodput counts.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class PortCase:
    """A link and an object that keeps it busy for some seconds."""

    name: str
    link: Link
    size_bytes: int


@dataclass(frozen=True)
class PortRun:
    """What one transfer over real ports took. Busy shares of one core, by process."""

    goodput_bps: float
    busy: dict[str, float]


def link_at(rate_bps: float, profile: str = "bench-udp", bits_per_byte: int = 8) -> Link:
    """A clean full-duplex link of that rate, with frames of 1,400 B of payload."""
    return replace(
        load_link(profile), rate_up_bps=rate_bps, rate_down_bps=rate_bps, bits_per_byte=bits_per_byte,
        mtu_bytes=1422, frame_loss=0.0, bit_error_rate=0.0,
    )  # fmt: skip


CASES = (
    PortCase("115,200 baud", link_at(115_200, "bench-serial-115k2", 10), 48 << 10),
    PortCase("2 Mbit/s", link_at(2e6), 1 << 20),
    PortCase("16 Mbit/s", link_at(16e6), 8 << 20),
)


def measure(tell: ProgressLine, *, only: str, repeats: int) -> list[Row]:
    """Takes about a minute and a half, most of it waiting. Raises LabError."""
    return [
        row for case in CASES for port in ("pty", "udp") for row in _rows(case, port, only, repeats, tell)
    ]


def _rows(case: PortCase, port: str, only: str, repeats: int, tell: ProgressLine) -> Iterator[Row]:
    name = f"{port}, {case.name}"
    if not name.startswith(only):
        return
    tell(f"{name}, on the virtual clock")
    promised_bps = virtual_goodput_bps(case)
    runs = []
    for nth in range(repeats):
        tell(f"{name}, run {nth + 1} of {repeats}")
        runs.append(transfer(case, port))
    run = sorted(runs, key=lambda run: run.goodput_bps)[len(runs) // 2]
    share = run.goodput_bps / promised_bps
    yield Row(f"{name}: goodput of the virtual clock's", share, "", GOODPUT, at_least=True)
    yield Row("  goodput", run.goodput_bps / 1e3, "kbit/s")
    busiest = max(run.busy[side] for side in SIDES)
    bound = BUSY if case.link.rate_up_bps >= 16e6 else None
    yield Row("  busiest end's share of a core", busiest, "", bound)
    for who, busy in run.busy.items():
        yield Row(f"    {who}", busy, "")


def virtual_goodput_bps(case: PortCase) -> float:
    """What the same sessions reach over the same link where the clock waits for them."""
    with scratch() as folder:
        pair = LinkPair(folder, Channel(case.link, seed=1))
        pair.board.offer(UPDATE, payload_of(case.size_bytes, 1), 0.0)
        end_s = pair.run(1e6, lambda: any(isinstance(event, Arrived) for _, event in pair.ground.events))
    return 8 * case.size_bytes / end_s


def transfer(case: PortCase, port: str) -> PortRun:
    """One object over real ports, with processes that are started for it. Raises LabError."""
    with TemporaryDirectory(prefix="spacedml-ports-") as folder:
        lab = _Lab(Path(folder), case, port)
        try:
            return lab.run()
        finally:
            lab.close()


class _Lab:
    """The cable and its two ends, and what they said."""

    def __init__(self, folder: Path, case: PortCase, port: str) -> None:
        self._folder, self._case = folder, case
        self._said: dict[tuple[str, str], dict[str, Any]] = {}
        self._crew = ProcessGroup(folder / "logs")
        (folder / "link.toml").write_text(_toml(case.link))
        if port == "pty":
            self._cable = {side: str(folder / side) for side in SIDES}
            self._urls = dict(self._cable)
            if case.link.bits_per_byte == 8:  # the link is not a UART, and a pty has no speed of its own
                self._urls = {side: f"serial:{path}?baud=115200" for side, path in self._cable.items()}
        else:
            hosts = [f"127.0.0.1:{port}" for port in free_ports(4)]
            near = dict(zip(SIDES, hosts[:2], strict=True))  # of the cable
            far = dict(zip(SIDES, hosts[2:], strict=True))
            self._cable = {side: f"udp://{near[side]}?peer={far[side]}" for side in SIDES}
            self._urls = {side: f"udp://{near[side]}?bind={far[side]}" for side in SIDES}

    def run(self) -> PortRun:
        self._crew.start(
            "cable", "firmware_sim", "cable", "--link", str(self._folder / "link.toml"),
            "--ground", self._cable["ground"], "--board", self._cable["board"], "--report-every", "0.5",
        )  # fmt: skip
        self._until("cable", "")
        for side in SIDES:
            spec = {
                "side": side, "url": self._urls[side], "link": asdict(self._case.link),
                "folder": str(self._folder / f"spool-{side}"),
                "offer_bytes": self._case.size_bytes if side == "board" else 0,
            }  # fmt: skip
            if side == "board":
                cable_s = process.cpu_s(self._crew.members["cable"].process.pid)
            self._crew.start(side, "benchmarks.ends.port_end", json.dumps(spec))
            self._until(side, "PortUp")
        heard, arrived = self._until("ground", "PeerHeard"), self._until("ground", "Arrived")
        cable_s = process.cpu_s(self._crew.members["cable"].process.pid) - cable_s
        offered, delivered = self._until("board", "Offered"), self._until("board", "Delivered")
        took_s = arrived["at_s"] - offered["at_s"]
        busy = {
            "ground": (arrived["cpu_s"] - heard["cpu_s"]) / took_s,
            "board": (delivered["cpu_s"] - offered["cpu_s"]) / took_s,
            "cable": cable_s / took_s,
        }
        return PortRun(8 * self._case.size_bytes / took_s, busy)

    def close(self) -> None:
        for _ in self._crew.stop():
            pass

    def _until(self, name: str, event: str) -> dict[str, Any]:
        """The first event of that name; of the cable, which names none, its first report."""
        deadline_s = time.monotonic() + WITHIN_S
        while (name, event) not in self._said:
            for who, said in self._crew.listen(0.05):
                self._said.setdefault((who, said.get("event", "")), said)
            for member in self._crew.ended():
                raise LabError(f"{member.name} ended: {member.last_words()}")
            if time.monotonic() > deadline_s:
                raise LabError(f"{name}: no {event or 'report'} within {WITHIN_S:.0f} s")
        return self._said[name, event]


def _toml(link: Link) -> str:
    """A profile's file for the cable."""
    values = asdict(link)
    lines = [f'kind = "link"\ntitle = {json.dumps(values.pop("title"))}']
    del values["name"], values["sources"]
    lines += [f'{key} = {{ value = {json.dumps(value)}, source = "c: of this benchmark" }}'
              for key, value in values.items()]  # fmt: skip
    return "\n".join(lines) + "\n"
