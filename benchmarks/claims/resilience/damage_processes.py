"""Real processes whose files are damaged: missions over UDP on this computer, and a real SIGKILL in each."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.claims.resilience.harm import damaged
from benchmarks.claims.resilience.naming import names
from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from firmware_sim.runs.processes import ProcessGroup, free_ports
from onboard.data import loading
from onboard.data.images import Images, save
from onboard.learn.gossip import topology
from onboard.storage.keys import save_key

PROCESSES = 40
AT_ONCE = 3
WITHIN_S = 180.0  # for a mission; most take ten seconds, more where others keep the machine busy
MOMENT_S = 8.0  # of the kill, at most: by then a mission may be over
IMAGES = 30
LISTEN_S = 0.05
NODES = (1, 2, 3)
OWN = ("node.toml", "mission.toml", "data.npz", "keys", "boards")  # what the user gave, and not the program


@dataclass
class Raid:
    """One mission of processes, and the damage to one of them. `broken`: what should not have been."""

    number: int
    seed: int
    folder: Path
    crew: ProcessGroup
    what: str = ""
    broken: list[tuple[str, str]] = field(default_factory=list)
    took_s: float = 0.0
    aside: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # what others said meanwhile

    def start(self) -> None:
        """Makes the mission's files, and starts its programs."""
        self._random = rnd = random.Random(f"processes/{self.seed}/{self.number}")
        self._said: list[dict[str, Any]] = []  # warnings of the victim's second life
        self._is_ring, self._encrypted = rnd.random() < 0.35, rnd.random() < 0.5
        self._programs = _ring(self.folder, self._encrypted) if self._is_ring else self._founded()
        self._victim = rnd.choice(list(self._programs))
        self._started_s = time.monotonic()
        self._kill_s = self._started_s + rnd.uniform(0.5, MOMENT_S)
        self._path: Path | None = None
        for name in self._programs:
            self._run(name)

    def hear(self, program: str, event: dict[str, Any]) -> None:
        """One of its programs said something."""
        if program == self._name(self._victim) and event.get("level") in ("warning", "error"):
            self._said.append(event)

    def over(self, now: float) -> bool:
        """Goes on; whether the mission has come to its end, or its time has."""
        if self._path is None and now >= self._kill_s:
            self._raid()
        for name in self._programs:
            code = self.crew.members[self._name(name)].process.poll()
            if code not in (None, 0):
                words = self.crew.members[self._name(name)].last_words()
                self.broken.append(("a program does not come up, or ends", f"{name}: {code}: {words}"))
        if now - self._started_s > WITHIN_S:
            self.broken.append(("the mission does not end", f"in {WITHIN_S:.0f} s"))
        return bool(self.broken) or (self._path is not None and self._is_done())

    def _is_done(self) -> bool:
        """A ground ends with its mission, and nodes that gossip after their last epoch."""
        last = list(self._programs) if self._is_ring else ["ground"]
        return all(self.crew.members[self._name(name)].process.poll() == 0 for name in last)

    def finish(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Ends its programs; yields what all missions say meanwhile."""
        yield from self.crew.stop([self._name(name) for name in self._programs])
        self.took_s = time.monotonic() - self._started_s
        naming = [event for event in self._said if self._path is not None and names(self._path, event)]
        if len(naming) > 1:
            self.broken.append(("the damage is told more than once", f"{naming[:3]}"))
        shutil.rmtree(self.folder)

    def _raid(self) -> None:
        """Kills the victim, damages one of its files, and starts it again."""
        name, root = self._name(self._victim), self._programs[self._victim][0]
        files = [path for path in sorted(root.rglob("*")) if path.is_file() and self._is_kept(root, path)]
        if not files:  # it has hardly begun
            return
        self.crew.members[name].process.kill()
        self.crew.members[name].process.wait()
        self.aside += [each for each in self.crew.stop([name]) if each[0] != name]
        self._said.clear()  # what it said before does not count
        files = [path for path in files if path.is_file()]
        self._path = path = self._random.choice(files)
        others = [other.read_bytes() for other in files if other != path]
        harm = damaged(path, others, None, self.folder / "canary", self._random)
        self.what = f"{self._victim}{', encrypted' if self._encrypted else ''}: {path.relative_to(root)}, "
        self.what += f"{harm.kind}, after {self._kill_s - self._started_s:.1f} s"
        self._run(self._victim)

    @staticmethod
    def _is_kept(root: Path, path: Path) -> bool:
        first = path.relative_to(root).parts[0]
        return first not in OWN and not first.endswith(".key")

    def _run(self, name: str) -> None:
        self.crew.start(self._name(name), *self._programs[name][1], "--log", "json")

    def _name(self, program: str) -> str:
        return f"{self.number}:{program}"

    def _founded(self) -> dict[str, tuple[Path, list[str]]]:
        """A mission of two boards: each program's folder and command."""
        mission, words = self.folder / "mission", ["--rounds", "2", "--deadline", "60"]
        for number in (1, 2):
            port = f"port=udp://127.0.0.1:{free_ports(1)[0]},link=bench-udp,cpu-share=1"
            words += ["--node", f"board-{number},{port},encrypt={str(self._encrypted).lower()}"]
        done = subprocess.run(
            [sys.executable, "-m", "groundstation", "init", str(mission), *words],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise LabError(f"groundstation init: {done.stderr.strip()}")
        programs = {"ground": (mission, ["groundstation", "serve", str(mission), "--exit-when-finished"])}
        for number in (1, 2):
            board = mission / "boards" / f"board-{number}"
            save(board / "data.npz", _images(number))
            programs[board.name] = board, ["onboard", "run", str(board / "node.toml")]
        return programs


def _ring(folder: Path, encrypted: bool) -> dict[str, tuple[Path, list[str]]]:
    """Nodes that gossip: each program's folder and command."""
    edges = topology.ring(NODES)
    weights = topology.metropolis(edges)
    ways = [way for edge in edges for way in (edge, edge[::-1])]
    ports = dict(zip(ways, free_ports(len(ways)), strict=True))  # of a, towards b
    programs = {}
    for number, neighbours in weights.items():
        node = folder / f"node-{number}"
        node.mkdir(parents=True)
        lines = [f'[node]\nid = {number}\nname = "{node.name}"\nboard = "raspberry-pi-4"\n[gossip]']
        lines += ["batch_size = 10\nlearning_rate = 0.05\nepochs = 8\nsparsity = 0.01\npatience_s = 5"]
        for peer, weight in neighbours.items():
            url = f"udp://127.0.0.1:{ports[peer, number]}?bind=127.0.0.1:{ports[number, peer]}"
            lines += [f'[[neighbour]]\nid = {peer}\nport = "{url}"\nkey = "{peer}.key"']
            lines += [f'profile = "bench-udp"\nweight = {weight}\nencrypt = {str(encrypted).lower()}']
        (node / "node.toml").write_text("\n".join([*lines, "[budget]\ncheckpoint_s = 0.3\n"]))
        save(node / "data.npz", _images(number))
        programs[node.name] = node, ["onboard", "run", str(node / "node.toml")]
    for a, b in edges:
        key = random.Random(f"{a}/{b}").randbytes(32)
        save_key(folder / f"node-{a}" / f"{b}.key", key)
        save_key(folder / f"node-{b}" / f"{a}.key", key)
    return programs


def _images(nth: int) -> Images:
    return loading.load("digits", part="train").take(np.arange(nth * IMAGES, (nth + 1) * IMAGES))


def raids(count: int, seed: int, tell: ProgressLine) -> list[Raid]:
    """Plays so many, some side by side. Raises LabError. Nothing is left of them."""
    played: list[Raid] = []
    running: dict[str, Raid] = {}
    with TemporaryDirectory(prefix="spacedml-damage-") as scratch:
        crew = ProcessGroup(Path(scratch) / "logs")

        def hear(said: Iterator[tuple[str, dict[str, Any]]]) -> None:
            for who, event in said:
                if (raid := running.get(who.partition(":")[0])) is not None:
                    raid.hear(who, event)

        try:
            while len(played) < count:
                if len(running) < AT_ONCE and (number := len(played) + len(running)) < count:
                    raid = running[f"{number}"] = Raid(number, seed, Path(scratch) / f"{number}", crew)
                    raid.start()
                hear(crew.listen(LISTEN_S))
                over = [raid for raid in running.values() if raid.over(time.monotonic())]
                for raid in running.values():
                    hear(iter(raid.aside))
                    raid.aside.clear()
                for raid in over:
                    hear(raid.finish())
                    del running[f"{raid.number}"]
                    played.append(raid)
                broken = sum(bool(raid.broken) for raid in played)
                tell(f"real processes: {len(played)} of {count} missions are over, {broken} broken")
        finally:
            for _ in crew.stop():
                pass
    return played
