"""An agent outlives every memory budget: what cannot be trained the ground hears of, all else trains, all is
given back.

One mission with a board for each budget, all of them real `onboard run` processes on pseudo-terminals at
115,200 baud, and real rounds of LeNet-5. A board whose budget is too small fails every round; the ground has
to hear of each failure and goes on with the others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.claims.resilience.footprint import environment_of_a_user
from benchmarks.harness import process
from benchmarks.harness.lab import Lab, Site
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from onboard.data import loading, sources

OPTIONS = (
    click.Option(["--first", "first_mb"], default=48, show_default=True, help="The smallest budget, MiB."),
    click.Option(["--last", "last_mb"], default=128, show_default=True, help="The largest."),
    click.Option(["--step", "step_mb"], default=4, show_default=True, help="From one to the next."),
    click.Option(["--rounds"], default=3, show_default=True, type=click.IntRange(min=1)),
)
IMAGES = 600
START_WITHIN_S, MISSION_WITHIN_S = 120.0, 1800.0
SETTLE_S = 5.0
GROWN_PERCENT = 10.0


def measure(
    tell: ProgressLine, first_mb: int = 48, last_mb: int = 128, step_mb: int = 4, rounds: int = 3
) -> list[Row]:
    """Runs the mission; returns the rows. Raises LabError, DataError."""
    budgets_mb = range(first_mb, last_mb + 1, step_mb)
    with tempfile.TemporaryDirectory(prefix="spacedml-memory-") as folder, environment_of_a_user():
        lab = Lab(Path(folder))
        try:
            return list(_story(lab, budgets_mb, rounds, tell))
        finally:
            lab.close()


def _story(lab: Lab, budgets_mb: range, rounds: int, tell: ProgressLine) -> Iterator[Row]:
    sites = {budget: Site(f"mb{budget}", "bench-serial-115k2", memory_mb=budget) for budget in budgets_mb}
    source = "mnist" if os.environ.get(sources.FOLDER_VARIABLE) else "digits"
    lab.create_mission(
        "mission", source, loading.load(source, (1, 28, 28), rows=IMAGES), list(sites.values()), rounds=rounds
    )
    pids = {}
    for site in sites.values():
        lab.lay(site)
        pids[site.name] = lab.start_agent("mission", site)
        lab.until(site.name, "port-open", START_WITHIN_S, partial(tell, f"starting the agent {site.name}"))
    lab.wait(SETTLE_S, partial(tell, "idle, before any training"))
    before = {name: process.memory(pid).resident_bytes for name, pid in pids.items()}
    lab.start_ground("mission")
    lab.until("ground", "finished", MISSION_WITHIN_S, partial(tell, f"training on {source}"))
    lab.wait(SETTLE_S, partial(tell, "idle, after the last round"))  # LabError where an agent has ended
    after = {name: process.memory(pid).resident_bytes for name, pid in pids.items()}

    trained = {budget: _rounds(lab.said[site.name], "trained") for budget, site in sites.items()}
    for budget, site in sites.items():
        failed = _rounds(lab.said[site.name], "training-failed")
        heard = _rounds(
            [said for said in lab.said["ground"] if said.get("node") == site.name], "board-failed"
        )
        neither = rounds - len(trained[budget] | failed)
        yield Row(f"{budget} MiB: rounds trained", len(trained[budget]), "rounds")
        yield Row(
            f"{budget} MiB: failures that the ground has not heard of", len(failed - heard), "rounds", 0
        )
        yield Row(f"{budget} MiB: rounds neither trained nor failed", neither, "rounds", 0)
    enough = min((budget for budget in budgets_mb if len(trained[budget]) == rounds), default=None)
    if enough is not None:
        yield Row("the smallest budget that trains every round", enough, "MiB")
        lost = sum(rounds - len(trained[budget]) for budget in budgets_mb if budget > enough)
        yield Row("rounds that larger ones have not trained", lost, "rounds", 0)
    yield Row("idle agent before a round, resident", max(before.values()) / 1e6, "MB")
    yield Row("idle agent after the last round, resident", max(after.values()) / 1e6, "MB")
    grown = max(100 * (after[name] / before[name] - 1) for name in pids)
    yield Row("resident memory that an agent has kept", grown, "% of that before", GROWN_PERCENT)


def _rounds(said: list[dict[str, Any]], event: str) -> set[int]:
    return {line["round"] for line in said if line["event"] == event}
