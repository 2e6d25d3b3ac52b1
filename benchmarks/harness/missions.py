"""Two missions, whole, of the programs' own loops on a virtual clock.

One has a ground station and two boards, in the other three nodes gossip. Both are over in some tens of
virtual seconds, and in half a real one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from click.testing import CliRunner

import groundstation.daemon
import groundstation.rounds.rounds
import onboard.agents.gossip
import onboard.cli
import onboard.runtime.endpoint
import onboard.runtime.federated
import onboard.runtime.gossip
import onboard.runtime.loop
import onboard.trainer.process
from benchmarks.claims.resilience.genuine import (
    Genuine,
    WatchedTrainer,
    watched_checkpoints,
    watched_descent,
    watched_gossip,
    watched_server,
    watched_session,
)
from benchmarks.harness.virtual import VirtualWorld
from groundstation import mission_data
from groundstation.cli import main
from groundstation.config import load_mission
from hw_profiles import load_link
from onboard.board.budget import Pace
from onboard.codec.pack import unpack
from onboard.config import load_own
from onboard.data import loading
from onboard.data.images import Images, save
from onboard.learn.federated.local import apply_delta
from onboard.learn.gossip import topology
from onboard.learn.gossip.algorithms import AlgorithmKind
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.scoring import evaluate
from onboard.mission.objects import decode_task
from onboard.storage.keys import save_key

IMAGES, TEST_IMAGES = 30, 100
FLOPS = 1.5e8  # a second: a step takes some tenths of one
LINK, EDGE = "bench-serial-115k2", "isl-2mbyte"
ROUNDS, DEADLINE_S = 2, 120.0
NODES, EPOCHS, PATIENCE_S = 3, 3, 5.0


@cache
def graphs() -> tuple[TrainGraph, InferGraph]:
    """Loaded once: it takes as long as a step."""
    return TrainGraph.load("lenet5"), InferGraph.load("lenet5")


@cache
def images(part: Literal["train", "test"], nth: int = 0) -> Images:
    """Of the digits; `nth`: of which node."""
    if part == "test":
        return loading.load("digits", part=part).take(np.arange(TEST_IMAGES))
    return loading.load("digits", part=part).take(np.arange(nth * IMAGES, (nth + 1) * IMAGES))


class VirtualMission:
    """What both have in common. `folder` has a folder for each program, by its name; `programs` are these."""

    programs: tuple[str, ...] = ()
    ends = False  # whether its programs end with it

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder, self.genuine = folder, Genuine()
        self.world = VirtualWorld(seed)
        self.errors = io.StringIO()  # what the programs wrote to standard error
        self._random = random.Random(f"{seed}/nonces")

    def boot(self, name: str) -> None:
        """Starts a program, as its user does."""
        self.world.start(name, partial(self._main, name))

    def _main(self, name: str) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Inside the block the programs are this mission's."""
        world, session = self.world, watched_session(self.genuine)
        changes: list[tuple[Any, str, Any]] = [
            (os, "urandom", self._random.randbytes), (secrets, "token_bytes", self._random.randbytes),
            (onboard.cli, "time", world.time), *self._changes(),
        ]  # fmt: skip
        loop, endpoint = onboard.runtime.loop, onboard.runtime.endpoint
        changes += [(loop, "wait", world.wait), (loop, "stop_signals", world.stop_signals)]
        changes += [(endpoint, "opener", world.opener), (endpoint, "Session", session)]
        with contextlib.ExitStack() as stack:
            for module, name, value in changes:
                stack.enter_context(patch.object(module, name, value))
            stack.enter_context(contextlib.redirect_stderr(self.errors))
            stack.enter_context(world.listening())
            try:
                yield
            finally:
                world.close()

    def _changes(self) -> list[tuple[Any, str, Any]]:
        raise NotImplementedError

    def over(self) -> bool:
        """Whether all has come to its end."""
        raise NotImplementedError

    def accuracy(self) -> float:
        """Of what all programs are left with, 0 to 1; 0 where there is nothing."""
        raise NotImplementedError

    def kept(self, name: str) -> list[Path]:
        """The files that a program has written for itself, relative to its folder."""
        root = self.folder / name
        found = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())
        return [path for path in found if self._is_kept(path)]

    def _is_kept(self, path: Path) -> bool:
        raise NotImplementedError


def run_program(folder: Path, flops: float) -> None:
    """The ground's or a node's own, to its end; the folder of the ground is named so."""
    if folder.name == "ground":
        groundstation.daemon.serve(load_mission(folder))
    else:
        onboard.cli.run_agent(load_own(folder / "node.toml"), Pace(1.0, flops), None)


def changes_of_rounds(world: VirtualWorld) -> list[tuple[Any, str, Any]]:
    """What takes a ground and its boards into the world, and spares them to load their graphs."""
    train, infer = graphs()
    program = partial(onboard.runtime.federated.FederatedProgram, clock=world.clock, wall=world.wall)
    return [
        (groundstation.daemon, "time", world.time),
        (groundstation.daemon, "TrainGraph", SimpleNamespace(load=lambda name: train)),
        (groundstation.daemon, "InferGraph", SimpleNamespace(load=lambda name: infer)),
        (onboard.runtime.federated, "FederatedProgram", program),
    ]


class VirtualRounds(VirtualMission):
    """A ground station and two boards."""

    programs = ("ground", "board-1", "board-2")

    def __init__(self, folder: Path, seed: str, *, encrypted: bool) -> None:
        super().__init__(folder, seed)
        shutil.copytree(_founded(_SCRATCH[-1], encrypted), folder, dirs_exist_ok=True)
        for number in (1, 2):
            self.world.lay(f"/dev/air{number}", load_link(LINK), "ground", f"board-{number}")

    def _main(self, name: str) -> None:
        run_program(self.folder / name, FLOPS)

    def _changes(self) -> list[tuple[Any, str, Any]]:
        world, train = self.world, graphs()[0]

        def trainer(shard: object, memory_bytes: int | None = None) -> WatchedTrainer:
            program = world.current()
            assert program is not None
            return WatchedTrainer(images("train", int(program.name[-1])), train, self.genuine)

        return [
            *changes_of_rounds(world),
            (groundstation.daemon, "mission_data", SimpleNamespace(load=lambda *_: _tested())),
            (groundstation.rounds.rounds, "Server", watched_server(self.genuine, IMAGES)),
            (onboard.trainer.process, "ProcessTrainer", trainer),
        ]

    def over(self) -> bool:
        life = self.world.life("ground")
        finished = (
            said.event == "finished" and said.program == "ground" and said.life == life
            for said in reversed(self.world.said)
        )  # fmt: skip
        return any(finished) and all(self._deployed(name) == self.genuine.final for name in self.programs[1:])

    def _deployed(self, name: str) -> bytes:
        try:
            return (self.folder / name / "state" / "deployed.bin").read_bytes()
        except OSError:
            return b""

    def accuracy(self) -> float:
        """Of the model that the boards were left with."""
        train, _ = graphs()
        return min(_judged(train, self._deployed(name)) for name in self.programs[1:])

    def _is_kept(self, path: Path) -> bool:
        return path.parts[0] not in ("node.toml", "node.key", "mission.toml", "keys", "boards", "data.npz")


@cache
def _tested() -> tuple[Any, Images]:
    seen, _ = mission_data.load("digits", graphs()[0], None, images("test").classes)
    return seen, images("test")


def _judged(train: TrainGraph, deployed: bytes) -> float:
    if not deployed:
        return 0.0
    task, weights = decode_task(deployed)
    start = train.initial(task.seed)
    return _accuracy(apply_delta(start, unpack(weights, train.layout).reconstruct()))


def _accuracy(weights: Any) -> float:
    test = images("test")
    *_, score = evaluate(graphs()[1], weights, test.x, test.y)
    return score.value


def board_node(number: int, link: str) -> str:
    """What `init` is told of board NUMBER, whose port has one name at both ends."""
    return f"board-{number},link={link},port=/dev/air{number},board-port=/dev/air{number}"


def init(folder: Path, nodes: Iterable[str], *options: str) -> None:
    """`groundstation init`, in this process."""
    named = [word for each in nodes for word in ("--node", each)]
    done = CliRunner().invoke(main, ["init", str(folder), *options, *named])
    assert done.exit_code == 0, done.output


@cache
def _founded(scratch: Path, encrypted: bool) -> Path:
    """A mission's folders, as `groundstation init` makes them; made once."""
    folder = scratch / f"rounds-{encrypted}"
    nodes = [f"{board_node(number, LINK)},encrypt={str(encrypted).lower()}" for number in (1, 2)]
    init(folder / "ground", nodes, "--rounds", str(ROUNDS), "--deadline", str(DEADLINE_S))
    toml = folder / "ground" / "mission.toml"
    text = toml.read_text()
    changes = {"epochs": 1, "bits_down": 0.2, "bits_up": 0.1, "shift_pixels": 0, "distortion": 0.0}
    for key, value in changes.items():
        head, found, rest = text.partition(f"\n{key} = ")
        assert found, key
        text = f"{head}{found}{value}\n{rest.partition(chr(10))[2]}"
    toml.write_text(text)
    for number in (1, 2):
        (folder / "ground" / "boards" / f"board-{number}").rename(folder / f"board-{number}")
        toml = folder / f"board-{number}" / "node.toml"
        toml.write_text(f"{toml.read_text()}\n[budget]\ncheckpoint_s = 0.1\n")
    (folder / "ground" / "boards").rmdir()
    return folder


class VirtualRing(VirtualMission):
    """Nodes that gossip, each with both others."""

    programs = tuple(f"node-{number}" for number in range(1, NODES + 1))
    ends = True

    def __init__(self, folder: Path, seed: str, *, encrypted: bool) -> None:
        super().__init__(folder, seed)
        shutil.copytree(_ring(_SCRATCH[-1], encrypted), folder, dirs_exist_ok=True)
        for a, b in topology.ring(range(1, NODES + 1)):
            self.world.lay(edge(a, b), load_link(EDGE), f"node-{a}", f"node-{b}")

    def _main(self, name: str) -> None:
        run_program(self.folder / name, FLOPS)

    def _changes(self) -> list[tuple[Any, str, Any]]:
        world, train = self.world, graphs()[0]
        program = partial(
            onboard.runtime.gossip.GossipProgram, clock=world.clock, wall=world.wall, cpu_clock=lambda: 0.0
        )
        return [
            (onboard.runtime.gossip, "GossipProgram", program),
            (onboard.runtime.gossip, "TrainGraph", SimpleNamespace(load=lambda name: train)),
            (onboard.runtime.gossip, "Descent", watched_descent(self.genuine)),
            (onboard.runtime.gossip, "ALGORITHMS", {"rd-psgd": AlgorithmKind(watched_gossip(self.genuine))}),
            (onboard.agents.gossip, "Checkpoints", watched_checkpoints(self.genuine)),
        ]  # fmt: skip

    def over(self) -> bool:
        return all(self.world.ended(name) == "by itself" for name in self.programs)

    def accuracy(self) -> float:
        """Of the worst node's model."""
        return min(self._node_accuracy(name) for name in self.programs)

    def _node_accuracy(self, name: str) -> float:
        try:
            with np.load(self.folder / name / "state" / "model.npz") as model:
                return _accuracy(dict(model))
        except (OSError, ValueError):
            return 0.0

    def _is_kept(self, path: Path) -> bool:
        return path.parts[0] == "state"


def edge(a: int, b: int) -> str:
    """The URL of the ports between two nodes."""
    return f"udp://127.0.0.1:{5000 + 100 * min(a, b) + max(a, b)}"


@cache
def _ring(scratch: Path, encrypted: bool) -> Path:
    """The nodes' folders; made once."""
    folder = scratch / f"ring-{encrypted}"
    edges = topology.ring(range(1, NODES + 1))
    weights = topology.metropolis(edges)
    for number, neighbours in weights.items():
        lines = [f'[node]\nid = {number}\nname = "node-{number}"\nboard = "raspberry-pi-4"\n[gossip]']
        settings: dict[str, Any] = {
            "batch_size": 10,
            "learning_rate": 0.05,
            "epochs": EPOCHS,
            "sparsity": 0.01,
        }
        lines += [f"{key} = {value}" for key, value in (settings | {"patience_s": PATIENCE_S}).items()]
        for peer, weight in neighbours.items():
            lines += ["[[neighbour]]", f"id = {peer}", f"port = {json.dumps(edge(number, peer))}"]
            lines += [f'key = "{peer}.key"', f'profile = "{EDGE}"', f"weight = {weight}"]
            lines += [f"encrypt = {str(encrypted).lower()}"]
        lines += ["[budget]\ncheckpoint_s = 0.3\nmemory_mb = 1000000\n"]
        node = folder / f"node-{number}"
        node.mkdir(parents=True)
        (node / "node.toml").write_text("\n".join(lines))
        save(node / "data.npz", images("train", number))
    for a, b in edges:
        key = random.Random(f"{a}/{b}").randbytes(32)
        for one, other in ((a, b), (b, a)):
            save_key(folder / f"node-{one}" / f"{other}.key", key)
    return folder


_SCRATCH: list[Path] = []


@contextlib.contextmanager
def founded_in(folder: Path) -> Iterator[None]:
    """Inside the block the first folders of all missions are made in this one, once."""
    _SCRATCH.append(folder)
    try:
        yield
    finally:
        _SCRATCH.pop()


MISSIONS: dict[str, Callable[..., VirtualMission]] = {"rounds": VirtualRounds, "ring": VirtualRing}
