"""Real agents, a real ground daemon and real ports in one folder, of which nothing is left afterwards.

Every program is the one that a user starts; a cable's ends are pseudo-terminals, and its counts are taken
where a program's bytes meet the air, framing included.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from firmware_sim.runs.processes import ProcessGroup
from onboard.data import loading
from onboard.data.images import Images, save, shards

LISTEN_S = 0.05
PORTS_WITHIN_S = 20.0


class LabError(RuntimeError):
    """An experiment cannot go on: a program ended before its time or did not do its part; one line."""


KEEP = click.Option(
    ["--keep"], type=click.Path(path_type=Path), default=None,
    help="An empty folder in which all that the programs wrote is kept, whatever becomes of it.",
)  # fmt: skip


def init_mission(folder: Path, nodes: Iterable[str], *options: str) -> None:
    """Founds a mission as its user does. Raises LabError."""
    named = [word for node in nodes for word in ("--node", node)]
    command = [sys.executable, "-m", "groundstation", "init", str(folder), *options, *named]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"groundstation init: {done.stderr.strip()}")


def share_digits(mission: Path, boards: Sequence[str], images: int) -> None:
    """Gives each of a mission's boards so many of the digits."""
    digits = loading.load("digits", part="train").take(np.arange(images * len(boards)))
    for board, shard in zip(boards, shards(digits, len(boards), 0), strict=True):
        save(mission / "boards" / board / "data.npz", shard)


@dataclass(frozen=True)
class Site:
    """A board of an experiment, with a serial cable of the link's profile between it and the ground."""

    name: str
    link: str
    board: str = "raspberry-pi-4"
    memory_mb: int | None = None  # its budget, where it is not the board profile's


class Lab:
    """The programs of one experiment, what they said, and the bytes that crossed their cables."""

    def __init__(self, folder: Path) -> None:
        self.said: dict[str, list[dict[str, Any]]] = defaultdict(list)  # by program, its log's JSON lines
        self.crossed: dict[str, list[tuple[float, int]]] = defaultdict(list)
        """By site: (seconds on the cable's clock, bytes so far in both directions), about once a second."""
        self._folder = folder
        self._crew = ProcessGroup(folder / "logs")

    def create_mission(
        self, mission: str, source: str, images: Images, sites: list[Site], *, rounds: int = 1
    ) -> None:
        """A mission in which every site holds `images`; the ground judges on `source`'s."""
        nodes = [
            f"{site.name},board={site.board},link={site.link},cpu-share=1,"
            f"port={self._end(site, 'ground')},board-port={self._end(site, 'board')}"
            for site in sites
        ]
        init_mission(self._folder / mission, nodes, "--data", source, "--rounds", str(rounds))
        for site in sites:
            save(self._board(mission, site) / "data.npz", images)
            if site.memory_mb is not None:
                toml = self._board(mission, site) / "node.toml"
                budget = f"[budget]\nmemory_mb = {site.memory_mb}\n"
                toml.write_text(toml.read_text().replace("[budget]\n", budget))

    def lay(self, site: Site) -> None:
        """Lays the cable of a site; both of its ports exist when this returns."""
        ends = {side: self._end(site, side) for side in ("ground", "board")}
        ends["ground"].parent.mkdir(exist_ok=True)
        self._crew.start(
            f"cable:{site.name}", "firmware_sim", "cable", "--link", site.link, "--report-every", "1",
            "--ground", str(ends["ground"]), "--board", str(ends["board"]),
        )  # fmt: skip
        deadline_s = time.monotonic() + PORTS_WITHIN_S
        while not all(end.exists() for end in ends.values()):
            if time.monotonic() > deadline_s:
                raise LabError(f"cable:{site.name}: no ports after {PORTS_WITHIN_S:.0f} s")
            self.listen()

    def start_agent(self, mission: str, site: Site, *, imports: Path | None = None) -> int:
        """Starts `onboard run` on the site's board; returns its process id. With `imports`, the modules that
        it had loaded are written there when it ends."""
        command = ["onboard", "run", str(self._board(mission, site) / "node.toml"), "--log", "json"]
        if imports is not None:
            command = ["benchmarks.ends.witness", str(imports), *command]
        self._crew.start(site.name, *command)
        return self._crew.members[site.name].process.pid

    def start_ground(self, mission: str) -> None:
        """Starts `groundstation serve`, which goes on serving when its mission is finished."""
        self._crew.start("ground", "groundstation", "serve", str(self._folder / mission), "--log", "json")

    def listen(self) -> None:
        """Takes what the programs say now. Raises LabError if one has ended."""
        for name, event in list(self._crew.listen(LISTEN_S)):
            kind, _, site = name.partition(":")
            if kind == "cable":
                crossed_bytes = event["ground"]["bytes"] + event["board"]["bytes"]
                self.crossed[site].append((event["t_s"], crossed_bytes))
            else:
                self.said[name].append(event)
        for member in self._crew.ended():
            raise LabError(f"{member.name} ended: {member.last_words()}")

    def until(self, name: str, event: str, within_s: float, tell: Callable[[], None]) -> None:
        """Listens until a program's log tells of `event`, with a call of `tell` now and then.

        Raises LabError after `within_s`.
        """
        deadline_s = time.monotonic() + within_s
        while not self.has_said(name, event):
            if time.monotonic() > deadline_s:
                raise LabError(f"{name}: no {event!r} in its log after {within_s:.0f} s")
            tell()
            self.listen()

    def wait(self, wait_s: float, tell: Callable[[float], None]) -> None:
        """Listens for `wait_s`; `tell` is given the seconds that are left, now and then."""
        deadline_s = time.monotonic() + wait_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            tell(left_s)
            self.listen()

    def has_said(self, name: str, event: str) -> bool:
        """Whether a program's log tells of this event."""
        return any(said["event"] == event for said in self.said[name])

    def stop(self, name: str) -> None:
        """Ends one program, in order (SIGTERM)."""
        for _ in self._crew.stop([name]):
            pass

    def close(self) -> None:
        """Ends every program that still runs."""
        for _ in self._crew.stop():
            pass

    def _board(self, mission: str, site: Site) -> Path:
        return self._folder / mission / "boards" / site.name

    def _end(self, site: Site, side: str) -> Path:
        return self._folder / "ports" / f"{site.name}.{side}"
