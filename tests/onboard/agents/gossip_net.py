"""Nodes that gossip as the programs build them, with what they have on disk, in a world.

A kill takes all that is in memory; `boot` goes on from the disk. Every edge is a seeded channel.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firmware_sim.world.channel import Channel, Impairments, Side
from firmware_sim.world.world import AirLink, AirPort, World
from onboard.agents.gossip import GossipAgent, GossipPhase, GossipTraining
from onboard.board.budget import Pace
from onboard.codec.layout import Floats, Layout, layout
from onboard.config import GossipConfig, load_own
from onboard.learn.gossip import topology
from onboard.learn.gossip.algorithms import ALGORITHMS
from onboard.learn.gossip.descent import Descent
from onboard.learn.objectives import Objective
from onboard.learn.training import Recipe
from onboard.runtime.endpoint import Endpoint
from onboard.runtime.gossip import GossipProgram, linked, setup_of
from onboard.runtime.loop import Loop
from onboard.storage.keys import save_key
from onboard.wire.medium.contact_gate import Window

PIXELS, CLASSES = 784, 10
STEP_S = 0.05  # of a step of training, unless a net says else
STILL = 1e-30  # a learning rate at which no weight moves: what the mean of the models is, is known


def load_gossip(path: Path) -> GossipConfig:
    config = load_own(path)
    assert isinstance(config, GossipConfig)
    return config


class Softmax:
    """Logistic regression, see `learn.local.Graph`."""

    objective = Objective(outputs=CLASSES)
    takes_seed = False

    @cached_property
    def layout(self) -> Layout:
        return layout({"w": (CLASSES, PIXELS), "b": (CLASSES,)})

    def step(
        self, parameters: Mapping[str, Floats], x: Floats, y: npt.NDArray[np.int64], seed: int = 0
    ) -> tuple[float, Mapping[str, Floats], Mapping[str, Floats]]:
        flat = x.reshape(len(x), -1)
        scores = flat @ parameters["w"].T + parameters["b"]
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        rows = np.arange(len(y))
        loss = float(-np.log(odds[rows, y] + 1e-30).mean())
        odds[rows, y] -= 1
        odds /= len(y)
        return loss, {"w": odds.T @ flat, "b": odds.sum(axis=0)}, {}


class NetPace(Pace):
    """A step takes what the net says at the time."""

    def __init__(self, node: NetNode) -> None:
        super().__init__(1.0)
        object.__setattr__(self, "_node", node)

    def step_cpu_s(self, cpu_s: float, flops: float) -> float:
        step_s: float = self._node.step_s  # type: ignore[attr-defined]
        return step_s


class NetNode:
    """One program: what it has in `folder`, and the agent of its present life."""

    def __init__(self, number: int, folder: Path, toml: str, start: Floats, seed: int, step_s: float) -> None:
        self.number, self.folder = number, folder
        self._seed, self.step_s = seed, step_s
        folder.mkdir(parents=True)
        self.write(toml)
        self.start = start
        drawn = np.random.default_rng(number)
        self._y = drawn.integers(0, CLASSES, 40)
        self._x = drawn.integers(0, 128, (40, 1, 28, 28)).astype(np.uint8)
        self._x[np.arange(40), 0, self._y] = 255  # a row of the image says what it is
        self.lives = 0
        self.agent: GossipAgent | None = None
        self.contacts: dict[int, list[Window]] = {}  # with neighbours that are not always in sight
        self.links: dict[int, Endpoint] = {}
        self.air: dict[int, AirLink] = {}  # to each neighbour
        self.loop: Loop | None = None

    def write(self, toml: str) -> None:
        """Another configuration, from the next boot on."""
        (self.folder / "node.toml").write_text(toml)

    def boot(self, now: float) -> None:
        """Starts from the disk."""
        config = load_gossip(self.folder / "node.toml")
        self.lives += 1
        self._nonce = random.Random(f"{self._seed}/{self.number}/{self.lives}").randbytes
        self.agent, self.links = linked(
            config,
            self._training(config),
            now,
            lambda link: replace(link, opener=partial(self._port, link.end.id), nonce=self._nonce),
        )
        for peer, windows in self.contacts.items():
            self.links[peer].session.plan(windows, now)
        self._now = now
        program = GossipProgram(self.agent, self.links, NetPace(self), self._clock, lambda: 0.0)
        program.next_step_at = now + self.step_s
        self.loop = Loop(program, self._clock, self._clock)
        self.agent.resume(now)

    def kill(self) -> None:
        """As kill -9: only the disk is left."""
        self.agent, self.loop, self.links = None, None, {}
        for peer, air in self.air.items():
            air.disconnect(self._side(peer))

    def lose(self, start: Floats | None = None) -> None:
        """After a `kill`: an empty disk takes the place of this one, and the first model is `start`."""
        shutil.rmtree(self.folder / "state")
        self.start = self.start if start is None else start

    def act(self, now: float) -> None:
        """All that can be done now."""
        self._now = now
        while self.loop is not None and self.loop.turn(now):
            pass

    def wakeup(self, now: float) -> float:
        """When `act` next has something to do, if nothing is heard."""
        return math.inf if self.loop is None else self.loop.wakeup(now)

    def _clock(self) -> float:
        return self._now

    @property
    def vector(self) -> Floats:
        """The model of the present life."""
        assert self.agent is not None, f"node {self.number} is down"
        return self.agent.descent.vector

    def _training(self, config: GossipConfig) -> GossipTraining:
        descent = self._descent(config)
        return GossipTraining(
            descent, 1.0, partial(ALGORITHMS["rd-psgd"].make, setup_of(config, descent.vector))
        )

    def _descent(self, config: GossipConfig) -> Descent:
        own = config.gossip
        recipe = Recipe(batch_size=own.batch_size, learning_rate=own.learning_rate, momentum=own.momentum)
        start = {"w": self.start[: CLASSES * PIXELS].reshape(CLASSES, PIXELS)}
        start["b"] = self.start[CLASSES * PIXELS :]
        some = len(self._x) if own.trains else 0
        return Descent(
            Softmax(), start, self._x[:some], self._y[:some], recipe, seed=own.seed, node=self.number
        )

    def _port(self, peer: int) -> AirPort:
        return self.air[peer].connect(self._side(peer), self)

    def _side(self, peer: int) -> Side:
        return "ground" if self.number < peer else "board"


class GossipNet:
    """Nodes 1 to `nodes` in a ring, or those of `edges`, each with a random model of its own; node 0 trains
    nothing. contacts: (rise, set) of edges that have some, of which both ends know; cut: when an edge carries
    nothing, of which neither does. neighbour: keys of every [[neighbour]]; `gossip`: keys of [gossip]."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 4,
        *,
        seed: int = 1,
        edges: Collection[topology.Edge] = (),
        contacts: Mapping[tuple[int, int], Sequence[tuple[float, float]]] | None = None,
        neighbour: Mapping[str, Any] | None = None,
        cut: Mapping[tuple[int, int], tuple[float, float]] | None = None,
        frame_loss: float = 0.0,
        step_s: float = STEP_S,
        **gossip: Any,
    ) -> None:
        edges = edges or topology.ring(range(1, nodes + 1))
        weights = topology.metropolis(edges)
        self._neighbour = dict(neighbour or {})
        self._gossip = {"batch_size": 10, "learning_rate": STILL, "sparsity": 0.1, "epochs": 5} | gossip
        drawn = np.random.default_rng(seed).standard_normal(
            (len(weights), CLASSES * (PIXELS + 1)), np.float32
        )
        models = dict(zip(weights, drawn / 10, strict=True))
        self.weights = weights
        self.nodes = {
            n: NetNode(n, folder / str(n), self.toml(n), models[n], seed, step_s) for n in sorted(weights)
        }
        self._world = World()
        for a, b in edges:
            key = random.Random(f"{seed}/{a}/{b}").randbytes(32)
            for one, other in ((a, b), (b, a)):
                save_key(folder / str(one) / f"{other}.key", key)
            link = load_gossip(folder / str(a) / "node.toml").neighbours[0].link
            away = (cut or {}).get((a, b))
            windows = None if away is None else [(0.0, away[0]), (away[1], 1e9)]
            if contacts and (a, b) in contacts:
                windows = list(contacts[a, b])
                for one, other in ((a, b), (b, a)):
                    self.nodes[one].contacts[other] = [Window(rise, set_) for rise, set_ in windows]
            bad = Impairments(frame_loss=frame_loss, windows=windows)
            air = AirLink(self._world, Channel(link, bad, seed=hash((seed, a, b))))
            self.nodes[a].air[b] = self.nodes[b].air[a] = air
        self.before = self.total(models.values())
        for node in self.nodes.values():
            self._world.add(node)
            node.boot(0.0)

    def toml(self, number: int, **gossip: Any) -> str:
        """NODE.toml of a node, with changes to [gossip]."""
        lines = [f'[node]\nid = {number}\nname = "n{number}"\nboard = "raspberry-pi-4"', "[gossip]"]
        keys = self._gossip | {"trains": number != 0} | gossip
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        for peer, weight in self.weights[number].items():
            lines += ["[[neighbour]]", f"id = {peer}", 'port = "udp://127.0.0.1:9"', f'key = "{peer}.key"']
            lines += ['profile = "isl-2mbyte"', f"weight = {weight}"]
            keys = self._neighbour | ({"wait": False} if peer == 0 else {})
            lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        # All nodes are in this process, and what the tests before left in it counts as data of each.
        return "\n".join([*lines, "[budget]\ncheckpoint_s = 0.4\nmemory_mb = 8192\n"])

    @property
    def now(self) -> float:
        return self._world.now

    def boot(self, number: int) -> None:
        """A node that was killed starts again."""
        self.nodes[number].boot(self.now)

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> float:
        """Moves the clock from one thing to do to the next; returns the time at which it stopped."""
        for node in self.nodes.values():  # the test may have changed anything
            self._world.wake(node)
        while self._world.advance(until) and not stop():
            pass
        return self.now

    def over(self) -> bool:
        """Whether all nodes that live and train have come to their end."""
        return all(
            n.agent is None or n.agent.phase in (GossipPhase.OVER, GossipPhase.HOLDING)
            for n in self.nodes.values()
        )

    def drift(self) -> float:
        """How far the mean of all models is from what it was, at most over the coordinates."""
        after = self.total(node.vector for node in self.nodes.values())
        return float(np.abs(after - self.before).max() / len(self.nodes))

    def spread(self) -> float:
        """The standard deviation among the models, the mean over the coordinates."""
        return float(np.stack([node.vector for node in self.nodes.values()]).std(axis=0).mean())

    @staticmethod
    def total(vectors: Iterable[Floats]) -> npt.NDArray[np.float64]:
        """Their sum (P,)."""
        return np.sum([vector.astype(np.float64) for vector in vectors], axis=0)
