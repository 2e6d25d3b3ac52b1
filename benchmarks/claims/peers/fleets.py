"""Two ways to train one network on the same boards' images: this project's programs, and Flower's.

Each starts its programs in a yard's namespaces as a user would, and tells of the rounds that its ground has
closed. No TLS and no encryption on either side.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.claims.peers.star import GROUND, address
from benchmarks.claims.peers.yard import Turns, Yard
from benchmarks.ends import inside
from benchmarks.harness.lab import LabError, init_mission
from firmware_sim.runs.run import RunConfig
from hw_profiles import Link
from onboard.data.images import save
from onboard.learn.graph import TrainGraph

MODEL = "lenet5"
EPOCHS, LEARNING_RATE, DECAY = 3, 3e-3, 0.9  # `[train]` of a mission
ROUNDS = 20
UDP_PORT, TCP_PORT = 4800, 8000
LISTENS_WITHIN_S = 60.0
ENDS = Path(inside.__file__).parent
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "PYTHONPATH": "",
}  # fmt: skip


@dataclass(frozen=True)
class SharedTask:
    """What both have: boards, their images, the test images, first weights, and the accuracy to reach."""

    folder: Path
    boards: tuple[str, ...]
    target: float
    seed: int

    @classmethod
    def create(
        cls, folder: Path, boards: tuple[str, ...], images: int, target: float, seed: int
    ) -> SharedTask:
        """Draws `images` of MNIST for each board, and first weights. Raises DataError."""
        folder.mkdir()
        graph = TrainGraph.load(MODEL)
        shares, test = RunConfig(images=images, out=folder).load(graph, len(boards), seed)
        for name, share in zip((*boards, "test"), (*shares, test), strict=True):
            save(folder / f"{name}.npz", share)
        weights: dict[str, Any] = {**graph.initial(seed)}
        np.savez(folder / "weights.npz", **weights)
        return cls(folder, boards, target, seed)


@dataclass(frozen=True)
class ClosedRound:
    """What a ground said of a round; `at_s` by this computer's monotonic clock."""

    at_s: float
    results: int
    accuracy: float


class Contender(Protocol):
    """A contender."""

    def boot(self) -> Turns[None]:
        """Starts the boards, and what they connect to before there is anything to do."""
        ...

    def begin(self) -> None:
        """Starts the rounds."""
        ...

    def closed(self) -> list[ClosedRound]:
        """The rounds so far."""
        ...


class OurFleet:
    """`groundstation serve` and `onboard run` over UDP, with a training method of ours."""

    def __init__(self, yard: Yard, task: SharedTask, method: str) -> None:
        self._yard, self._task, self._method = yard, task, method
        self._mission = yard.folder / "mission"

    def boot(self) -> Turns[None]:
        """Founds the mission and starts the agents, whom nobody answers yet. Raises LabError."""
        yield from self._yard.up()
        profile = self._yard.folder / "link.toml"
        profile.write_text(link_profile(self._yard.spec.link))
        nodes = []
        for number, board in enumerate(self._task.boards):
            here, there = (f"{address(number, side)}:{UDP_PORT + number}" for side in ("ground", "board"))
            ports = f"port=udp://{there}?bind={here},board-port=udp://{here}?bind={there}"
            nodes.append(f"{board},board=raspberry-pi-4,link={profile},cpu-share=1,{ports}")
        rules = ("--data", "mnist", "--rounds", str(ROUNDS), "--target", str(self._task.target))
        init_mission(self._mission, nodes, *rules, "--seed", str(self._task.seed))
        toml = self._mission / "mission.toml"
        toml.write_text(with_method(toml.read_text(), self._method))
        for board in self._task.boards:
            folder = self._mission / "boards" / board
            shutil.copy(self._task.folder / f"{board}.npz", folder / "data.npz")
            run = [sys.executable, "-m", "onboard", "run", str(folder / "node.toml"), "--log", "json"]
            self._yard.start(board, board, run, {})

    def begin(self) -> None:
        """Starts the ground's daemon, which goes on when the rounds are over."""
        serve = [sys.executable, "-m", "groundstation", "serve", str(self._mission), "--log", "json"]
        self._yard.start(GROUND, GROUND, serve, {})

    def closed(self) -> list[ClosedRound]:
        """The rounds of the daemon's log, whose times are those of the computer's wall clock."""
        offset_s = time.time() - time.monotonic()
        return [
            ClosedRound(said["at"] - offset_s, len(said["answered"]), said["accuracy"])
            for said in self._yard.said[GROUND]
            if said["event"] == "closed"
        ]


class FlowerFleet:
    """Flower's SuperLink, a SuperNode on every board, and `flwr run` with an app of ours."""

    def __init__(self, yard: Yard, task: SharedTask, python: Path) -> None:
        self._yard, self._task, self._bin = yard, task, python.parent
        self._app, self._events = yard.folder / "app", yard.folder / "events.jsonl"

    def boot(self) -> Turns[None]:
        """Starts the SuperLink and, once it listens, the nodes. Raises LabError."""
        yield from self._yard.up()
        ends = self._app / "benchmarks" / "ends"
        ends.mkdir(parents=True)
        for folder in (ends.parent, ends):
            (folder / "__init__.py").touch()
        for name in ("flower_app.py", "flower_learning.py"):
            shutil.copy(ENDS / name, ends / name)
        (self._app / "pyproject.toml").write_text(self._pyproject())
        self._start(GROUND, GROUND, "flower-superlink", "--insecure", "--host", "0.0.0.0",
                    "--port", str(TCP_PORT), "--disable-runtime-dependency-installation")  # fmt: skip
        yield from self._yard.until(
            partial(self._yard.listens, GROUND, TCP_PORT), LISTENS_WITHIN_S, "no SuperLink"
        )
        for number, board in enumerate(self._task.boards):
            self._start(board, board, "flower-supernode", "--insecure",
                        "--superlink", f"{address(number, 'ground')}:{TCP_PORT}",
                        "--node-config", f'images="{self._task.folder / board}.npz"')  # fmt: skip

    def begin(self) -> None:
        """Starts a run of the app."""
        home = self._home(GROUND)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n'
            f'[superlink.here]\naddress = "127.0.0.1:{TCP_PORT}"\ninsecure = true\n'
        )
        self._start("run", GROUND, "flwr", "run", str(self._app), "here", "--stream")

    def closed(self) -> list[ClosedRound]:
        """The rounds that the app's ground has told of."""
        lines = self._events.read_text().splitlines() if self._events.exists() else []
        told = [json.loads(line) for line in lines]
        return [
            ClosedRound(said["at_s"], said["results"], said["accuracy"])
            for said in told
            if said["event"] == "Closed"
        ]

    def _start(self, role: str, where: str, program: str, *arguments: str) -> None:
        settings = {**QUIET, "FLWR_HOME": str(self._home(where)), "PATH": f"{self._bin}:/usr/bin:/bin"}
        self._yard.start(role, where, [str(self._bin / program), *arguments], settings)

    def _home(self, where: str) -> Path:
        home = self._yard.folder / f"home-{where}"
        home.mkdir(exist_ok=True)
        return home

    def _pyproject(self) -> str:
        config = {
            "boards": len(self._task.boards), "epochs": EPOCHS, "rate": LEARNING_RATE, "decay": DECAY,
            "rounds": ROUNDS, "target": self._task.target, "round-limit-s": 3600.0,
            "weights": str(self._task.folder / "weights.npz"), "test": str(self._task.folder / "test.npz"),
            "events": str(self._events),
        }  # fmt: skip
        return (
            '[project]\nname = "beside"\nversion = "1.0.0"\nlicense = "Apache-2.0"\ndependencies = []\n\n'
            '[tool.flwr.app]\npublisher = "spacedml"\n\n[tool.flwr.app.components]\n'
            'serverapp = "benchmarks.ends.flower_app:ground"\n'
            'clientapp = "benchmarks.ends.flower_app:board"\n\n[tool.flwr.app.config]\n'
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items())
        )


def flower_version(python: str) -> str:
    """Raises LabError where that interpreter lacks flwr or torch."""
    ask = "from importlib.metadata import version; version('torch'); print(version('flwr'))"
    try:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    except OSError as error:
        raise LabError(f"--flower-python {python}: {error.strerror}") from None
    if done.returncode:
        raise LabError(f"--flower-python {python}: {done.stderr.strip().rpartition(chr(10))[2]}")
    return done.stdout.strip()


def link_profile(link: Link) -> str:
    """A profile file of the link, for a mission. Its rate is both ways'."""
    profile = (Path(__file__).parents[3] / "hw_profiles" / "links" / "sband-256k.toml").read_text()
    return re.sub(r"(rate_\w+_bps = \{ value = )[0-9_]+", rf"\g<1>{int(link.rate_up_bps)}", profile)


def with_method(toml: str, method: str) -> str:
    """A mission's file whose boards train by this method, for as many epochs as by any other."""
    toml = re.sub(r'(?m)^method = ".*"$', f'method = "{method}"', toml)
    return re.sub(r"(?m)^epochs = \d+$", f"epochs = {EPOCHS}", toml) if method == "fedavg" else toml
