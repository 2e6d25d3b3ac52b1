"""An agent fits beside a payload's software: its memory, its start, and what it sends when idle are bounded.

One mission with three boards, all of them real `onboard run` processes on pseudo-terminals: `serial` on a
cable at 115,200 baud, `radio` on a half-duplex 9.6 kbit/s radio, and `unheard`, whom no ground ever answers.
They start, wait, train LeNet-5 for a round (the first two), and are watched when all is done.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import process
from benchmarks.harness.lab import Lab, LabError, Site
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from onboard.data import loading, sources

IDLE_MB, TRAINING_MB = 64, 128
IDLE_SHARE_MB, TRAINING_SHARE_MB = 45, 85  # of what is shared with other programs, a share alone
IDLE_BYTES_A_MINUTE = 1000
START_CPU_S = 1.0

SERIAL, RADIO = Site("serial", "bench-serial-115k2"), Site("radio", "uhf-9k6")
UNHEARD = Site("unheard", "bench-serial-115k2")
SITES = (SERIAL, RADIO, UNHEARD)

IMAGES = 600  # a board's share in the demo
START_WITHIN_S, MISSION_WITHIN_S = 30.0, 300.0
SETTLE_S = 5.0  # last acknowledgements leave, and a UHF frame takes 0.4 s
MINUTE_S = 60.0
WATCH_S = 2 * MINUTE_S  # two of the reports that an agent sends every minute lie within
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def measure(tell: ProgressLine) -> list[Row]:
    """Runs the mission; returns the rows. Raises LabError, DataError. Takes about three minutes."""
    with tempfile.TemporaryDirectory(prefix="spacedml-footprint-") as folder, environment_of_a_user():
        lab = Lab(Path(folder))
        try:
            return list(_story(lab, Path(folder) / "imports", tell))
        finally:
            lab.close()


def _story(lab: Lab, imports: Path, tell: ProgressLine) -> Iterator[Row]:
    tell("making a mission")
    source = "mnist" if os.environ.get(sources.FOLDER_VARIABLE) else "digits"
    images = loading.load(source, (1, 28, 28), rows=IMAGES)
    lab.create_mission("mission", source, images, [SERIAL, RADIO])
    lab.create_mission("nobody", source, images, [UNHEARD])

    pids, cpus_s = {}, []
    for site in SITES:
        tell(f"starting the agent {site.name}")
        lab.lay(site)
        mission = "nobody" if site is UNHEARD else "mission"
        pid = pids[site.name] = lab.start_agent(mission, site, imports=imports if site is RADIO else None)
        lab.until(site.name, "port-open", START_WITHIN_S, partial(tell, f"starting the agent {site.name}"))
        cpus_s.append(process.cpu_s(pid))
    yield Row("CPU to start an agent", max(cpus_s), "s", START_CPU_S)

    lab.wait(SETTLE_S, partial(tell, "idle, before any training"))
    idle = [process.memory(pid).resident_bytes for pid in pids.values()]
    yield Row("idle agent, resident", max(idle) / 1e6, "MB", IDLE_MB)

    lab.start_ground("mission")
    trainers = [pids[site.name] for site in (SERIAL, RADIO)]
    held_bytes, shares_bytes = [0], [0]

    def look() -> None:
        tell(f"training on {source}")
        held_bytes.extend(_together(pid) for pid in trainers)
        shares_bytes.extend(_share_of_both(pid) for pid in trainers)

    lab.until("ground", "finished", MISSION_WITHIN_S, look)
    for site in (SERIAL, RADIO):
        if not lab.has_said(site.name, "trained"):
            raise LabError(f"{site.name}: the mission is finished and this board has not trained")
    yield Row("training LeNet-5, peak resident", max(held_bytes) / 1e6, "MB", TRAINING_MB)
    yield Row("  its share of what is in memory", max(shares_bytes) / 1e6, "MB", TRAINING_SHARE_MB)
    after = [process.memory(pid).resident_bytes for pid in trainers]
    yield Row("idle again after training, resident", max(after) / 1e6, "MB", IDLE_MB)

    idle = [process.share_bytes(pid) for pid in trainers]
    yield Row("  its share of what is in memory", max(idle) / 1e6, "MB", IDLE_SHARE_MB)

    lab.wait(SETTLE_S, partial(tell, "idle, with everything delivered"))
    began_s = {site.name: lab.crossed[site.name][-1][0] for site in SITES}
    before_s = process.cpu_s(pids[SERIAL.name])
    lab.wait(WATCH_S + SETTLE_S, partial(tell, "watching the idle links"))
    cpu_s = process.cpu_s(pids[SERIAL.name]) - before_s
    for site, whom in zip(SITES, ("in sight", "in sight", "nobody answers"), strict=True):
        watched = [(at_s, n) for at_s, n in lab.crossed[site.name] if at_s >= began_s[site.name]]
        most_bytes = busiest(watched, MINUTE_S)
        if not most_bytes:  # an agent reports its health every minute: this link is dead, not idle
            raise LabError(f"{site.name}: not a byte crossed its cable in {WATCH_S:.0f} s")
        what = f"idle link, {site.link}, {whom}, both directions"
        yield Row(what, most_bytes, "B in the busiest minute", IDLE_BYTES_A_MINUTE)
    yield Row("idle agent, CPU", 1000 * cpu_s * MINUTE_S / (WATCH_S + SETTLE_S), "ms a minute")

    lab.stop(RADIO.name)
    loaded = imports.read_text(encoding="utf-8").split()
    torch = [name for name in loaded if name.partition(".")[0] == "torch"]
    yield Row("modules an agent has loaded", len(loaded), "modules")
    yield Row("modules of torch among them", len(torch), "modules", 0)


def busiest(totals: Sequence[tuple[float, int]], span_s: float) -> int:
    """The most that a running total grew within any `span_s` between two readings (seconds, total), ordered
    in time; spans are as short as the readings allow but never shorter. Raises ValueError if none is."""
    most, first = -1, 0
    for at_s, total in totals:
        while first + 1 < len(totals) and totals[first + 1][0] <= at_s - span_s:
            first += 1
        if totals[first][0] <= at_s - span_s:
            most = max(most, total - totals[first][1])
    if most < 0:
        raise ValueError(f"{len(totals)} readings do not cover {span_s:g} s")
    return most


def _together(pid: int) -> int:
    """The most that an agent and the process that trains for it have held so far, pages of the program's
    files, which both have mapped, counted once; 0 where none trains."""
    with contextlib.suppress(ProcessLookupError):
        training = sum(process.memory(child).peak_bytes for child in process.children(pid))
        return process.memory(pid).data_bytes + training if training else 0
    return 0


def _share_of_both(pid: int) -> int:
    """The proportional share of memory of an agent and the process that trains for it now; 0 without one."""
    with contextlib.suppress(ProcessLookupError):
        training = [process.share_bytes(child) for child in process.children(pid)]
        return process.share_bytes(pid) + sum(training) if training else 0
    return 0


@contextlib.contextmanager
def environment_of_a_user() -> Iterator[None]:
    """Without the thread limits that `make bench` sets for other benchmarks: they would flatter the agent."""
    kept = {name: os.environ.pop(name) for name in THREADS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
