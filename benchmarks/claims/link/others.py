"""Beside the kernel's TCP and CFDP class 2 on the same emulated link: who brings an object over, how soon.

In real time, between two network namespaces with a TUN device each; what is sent into one comes out of the
other at the link's rate, after its delay, unless it is lost (`air`). To the link all IP packets are equal;
MTU, losses and outages are the same for all. Ours is a session with its spool on a UDP port, TCP the kernel's
with cubic and with bbr, CFDP cfdp-py over UDP, with its own limits of two tries and with none. Needs root.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import click

from benchmarks.harness.air import ADDRESSES
from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.race import Course, RaceOutcome, Racer, run_all
from benchmarks.harness.result import Row
from firmware_sim.world.channel import Side
from onboard.link.ports.udp import IPV4_UDP_BYTES

SEEDS = 3
AT_ONCE = 16
OURS = "ours"
PORT = 5000
CONGESTION = ("cubic", "bbr")
DEFAULT_LIMIT = 2  # of RemoteEntityConfig in cfdp-py 0.7.0
NO_LIMIT = 1_000_000
USUAL_RATIO = 1.5  # of a race's time to the bound's, until some have ended

OPTIONS = (
    click.Option(
        ["--seeds"], type=click.IntRange(1, 100), default=SEEDS, show_default=True, help="Runs of each."
    ),
    click.Option(["--only"], default="", metavar="TEXT", help="Only the links whose name begins so."),
    click.Option(
        ["--cfdp-python"], metavar="PATH",
        help="A Python interpreter that has cfdp-py; without it, this one if it has.",
    ),
)  # fmt: skip

KIB, MIB = 1 << 10, 1 << 20
SLOW = Course("9.6 kbit/s", 9600, 0.01, 576, 64 * KIB)
FAR = Course("64 kbit/s, 300 ms there and back", 64e3, 0.15, 1052, 256 * KIB)
FAST = Course("16 Mbit/s, 40 ms there and back", 16e6, 0.02, 1450, MIB, alone=True)
LOSSES = (0.0, 0.05, 0.2)
COURSES = (
    *(
        replace(course, name=f"{course.name}, {100 * loss:.0f} % lost", loss=loss)
        for course in (SLOW, FAR, FAST)
        for loss in LOSSES
    ),
    replace(SLOW, name="9.6 kbit/s, an outage of 60 s", outage_s=60.0),
)


def measure(tell: ProgressLine, *, seeds: int, only: str, cfdp_python: str | None) -> list[Row]:
    """Takes about eleven minutes with three seeds, nearly all of it waiting. Raises LabError."""
    courses = [course for course in COURSES if course.name.startswith(only)]
    if not courses:
        raise click.UsageError(f"--only {only!r}: no link begins so")
    there = _congestion_controls()
    racers = [ours(), *(tcp(name) for name in CONGESTION if name in there)]
    left_out = [name for name in CONGESTION if name not in there]
    rows = [Row(f"TCP {name}: not in this kernel, left out", 0, "runs") for name in left_out]
    version = _cfdp_version(cfdp_python)
    if version is None:
        rows.append(Row("CFDP: no cfdp-py in this interpreter (--cfdp-python), left out", 0, "runs"))
    else:
        racers += cfdp(cfdp_python or sys.executable, version)
    entries = [(course, racer, seed) for course in courses for racer in racers for seed in range(seeds)]
    outcomes = _run(tell, entries)
    for course in courses:
        found = {racer.name: [outcomes[course, racer, seed] for seed in range(seeds)] for racer in racers}
        for name in found:
            rows += _rows(course, name, found)
    return rows


def ours() -> Racer:
    """A session, a pump and a spool on a UDP port."""
    return Racer(OURS, "benchmarks.ends.port_end", sys.executable, _our_spec)


def _our_spec(course: Course, side: Side) -> dict[str, Any]:
    peer: Side = "board" if side == "ground" else "ground"
    return {
        "url": f"udp://{ADDRESSES[peer]}:{PORT}?bind={ADDRESSES[side]}:{PORT}",
        "link": asdict(course.link),
        "offer_bytes": course.size_bytes if side == "board" else 0,
    }


def tcp(congestion: str) -> Racer:
    """The kernel's TCP with that congestion control."""
    spec = partial(_tcp_spec, congestion)
    return Racer(f"TCP {congestion}", "benchmarks.ends.tcp_end", sys.executable, spec)


def _tcp_spec(congestion: str, course: Course, side: Side) -> dict[str, Any]:
    return {"address": ADDRESSES["ground"], "congestion": congestion, "size_bytes": course.size_bytes}


def cfdp(python: str, version: str) -> list[Racer]:
    """cfdp-py class 2 as it gives up by default, and as it never does."""
    return [
        Racer(f"cfdp-py {version}, {limits}", "benchmarks.ends.cfdp_end", python, partial(_cfdp_spec, limit))
        for limit, limits in ((DEFAULT_LIMIT, "default limits"), (NO_LIMIT, "no limits"))
    ]


def _cfdp_spec(limit: int, course: Course, side: Side) -> dict[str, Any]:
    return {
        "addresses": ADDRESSES, "rate_bps": course.rate_bps, "limit": limit,
        "packet_bytes": course.mtu_bytes - IPV4_UDP_BYTES, "timer_s": cfdp_timer_s(course),
    }  # fmt: skip


def cfdp_timer_s(course: Course) -> float:
    """Of its acknowledgements and NAKs: two round trips and eight packets, so that it waits for what is on
    its way, and through a run of losses. Its own 10 s would be too long for all but the slowest link."""
    return 4 * course.delay_s + 8 * 8 * course.mtu_bytes / course.rate_bps


def _congestion_controls() -> list[str]:
    return Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()


def _cfdp_version(python: str | None) -> str | None:
    """None where it is not there. Raises LabError if the user said that it was."""
    ask = "import cfdppy, importlib.metadata as m; print(m.version('cfdp-py'))"
    try:
        done = subprocess.run([python or sys.executable, "-c", ask], capture_output=True, text=True)
        why = done.stderr.strip().rpartition("\n")[2]
    except OSError as error:
        why = str(error)
    else:
        if done.returncode == 0:
            return done.stdout.strip()
    if python is not None:
        raise LabError(f"--cfdp-python {python}: {why}")
    return None


Entry = tuple[Course, Racer, int]


def _run(tell: ProgressLine, entries: list[Entry]) -> dict[Entry, RaceOutcome]:
    """The fast ones first, one at a time, then the slow ones side by side."""
    outcomes: dict[Entry, RaceOutcome] = {}
    began_s = time.monotonic()
    for alone in (True, False):
        chosen = [entry for entry in entries if entry[0].alone == alone]
        with closing(run_all(chosen, 1 if alone else AT_ONCE)) as turns:
            for ended in turns:
                outcomes |= {chosen[number]: outcome for number, outcome in ended}
                left_s = _expected_s(entries, outcomes) - (time.monotonic() - began_s)
                tell(f"{len(outcomes)} of {len(entries)} runs have ended", left_s)
    return outcomes


def _expected_s(entries: list[Entry], outcomes: dict[Entry, RaceOutcome]) -> float:
    """Of all: one whose object has not arrived takes as many times the bound's time as most of its kind."""
    took_s = {
        entry: outcome.arrived_s for entry, outcome in outcomes.items() if outcome.arrived_s is not None
    }
    expected_s = 0.0
    for alone, at_once in ((True, 1), (False, AT_ONCE)):
        kind = [entry for entry in entries if entry[0].alone == alone]
        bound_s = {entry: entry[0].airtime_s + entry[0].outage_s for entry in kind}
        ratio = median([took_s[entry] / bound_s[entry] for entry in kind if entry in took_s] or [USUAL_RATIO])
        expected_s += sum(took_s.get(entry, ratio * bound_s[entry]) for entry in kind) / at_once
    return expected_s


def _rows(course: Course, name: str, found: dict[str, list[RaceOutcome]]) -> Iterator[Row]:
    """Of one racer on one link. Means are over the runs that ended, so they flatter whoever ends few."""
    outcomes = found[name]
    arrived_s = [outcome.arrived_s for outcome in outcomes if outcome.arrived_s is not None]
    bound = len(outcomes) if name == OURS else None
    yield Row(f"{course.name}: {name}", len(arrived_s), f"of {len(outcomes)} ended", bound, at_least=True)
    wire_bytes = mean(outcome.wire_bytes for outcome in outcomes)
    yield Row("  bytes on the air", wire_bytes / course.size_bytes, "of the object's")
    if not arrived_s:
        return
    yield Row("  until the last byte", mean(arrived_s), "s")
    yield Row("  goodput", _goodput(course, outcomes), "of the rate")
    if name != OURS and any(outcome.arrived_s for outcome in found[OURS]):
        yield Row("  ours over it", _goodput(course, found[OURS]) / _goodput(course, outcomes), "")


def _goodput(course: Course, outcomes: list[RaceOutcome]) -> float:
    """Mean share of the link's rate; time without contact does not count against it."""
    return mean(
        8 * course.size_bytes / (outcome.arrived_s - course.outage_s) / course.rate_bps
        for outcome in outcomes
        if outcome.arrived_s is not None
    )
