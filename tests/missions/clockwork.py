"""A mission of the real agent, stations, rounds, journals, spools and database, on a clock of the test's.

Only the ports are the test's: what one end writes the other end reads at once. A kill takes all that is in
memory; `boot_*` goes on from the disk. Days pass in seconds, and nothing sleeps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import onboard.runtime.endpoint
from firmware_sim.world.channel import Side
from firmware_sim.world.world import AirPort
from groundstation.cli import main
from groundstation.commands import CommandDispatcher
from groundstation.config import load_mission
from groundstation.daemon import GroundProgram
from groundstation.rounds.rounds import Rounds
from groundstation.station import Station
from groundstation.store.store import Store
from hw_profiles import Link
from onboard.agents.federated import FederatedAgent
from onboard.board.budget import Pace
from onboard.config import load_node
from onboard.data import loading
from onboard.data.images import Images
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.link.ports.port import Port
from onboard.link.pump import Pump
from onboard.runtime.endpoint import Endpoint
from onboard.runtime.federated import FederatedProgram, board_agent
from onboard.runtime.loop import Loop
from onboard.trainer.in_process import LocalTrainer

TRAIN, INFER = TrainGraph.load("lenet5"), InferGraph.load("lenet5")
IMAGES = loading.load("digits", part="train").take(np.arange(20))
TEST = loading.load("digits", part="test").take(np.arange(30))
TICK_S = 0.02
FLOPS = 1e8  # a second: a step takes some tenths of one


class VirtualBoard:
    """One board: what it has in its folder, and the agent of its present life."""

    def __init__(self, toml: Path) -> None:
        self.toml, self.state = toml, toml.parent / "state"
        self.agent: FederatedAgent | None = None
        self.endpoint: Endpoint | None = None
        self.loop: Loop | None = None
        self.breaks: Callable[[], bool] = lambda: False  # whether a training fails
        self.parts: tuple[Images, Images | None] = IMAGES, None  # what it trains on, and what it holds out
        self.due_at = 0.0  # when it has something to do, if nothing is heard

    def boot(self, now: float) -> None:
        self.agent, self.endpoint = board_agent(load_node(self.toml), self._trainer(), now)
        self._now = now
        program = FederatedProgram(self.agent, self.endpoint, Pace(1.0, FLOPS), self._clock)
        self.loop = Loop(program, self._clock, self._clock)
        self.agent.resume(now)
        self.due_at = now

    def _trainer(self) -> LocalTrainer:
        images, held = self.parts
        return LocalTrainer(images, self._graph, held=held)

    def _clock(self) -> float:
        return self._now

    def _graph(self, name: str) -> TrainGraph:
        if self.breaks():
            raise MemoryError("needs more than there is")
        return TrainGraph.load(name)

    def kill(self) -> None:
        self.agent = self.endpoint = self.loop = None

    @property
    def pump(self) -> Pump | None:
        return self.endpoint and self.endpoint.pump

    def act(self, now: float) -> None:
        if self.loop is None or now < self.due_at:
            return
        self._now = now
        self.loop.turn(now)
        self.due_at = self.loop.wakeup(now)


class Clockwork:
    """One ground station and its boards, `board-1` and on. Made by the fixture `clockwork`."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        boards: int = 1,
        network: Path | None = None,
        data: str | None = None,
        **mission: object,
    ) -> None:
        self.now, self.wall_ahead_s = 1000.0, 1.8e9
        self.folder, self._caplog = folder / "mission", caplog
        caplog.set_level(logging.INFO)
        self._ports: dict[str, AirPort] = {}
        self.cut = False  # whether the air carries nothing
        monkeypatch.setattr(onboard.runtime.endpoint, "opener", self._opener)
        words = ["init", str(self.folder), "--rounds", "2", "--deadline", "120"]
        self.train, self.infer = TRAIN, INFER
        if network is not None:
            words += ["--model", str(network)]
            self.train, self.infer = TrainGraph.load(network), InferGraph.load(network)
        self.test = TEST
        if data is not None:
            words += ["--data", data]
            self.test = loading.load(
                data, self.train.input_shape, part="test", objective=self.train.objective
            )
        for number in range(1, boards + 1):
            words += ["--node", f"board-{number},port=/dev/air{number},board-port=/dev/air{number}-board"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        toml = self.folder / "mission.toml"
        text = toml.read_text()
        for key, value in ({"epochs": 1} | mission).items():
            head, found, rest = text.partition(f"\n{key} = ")
            assert found, key
            text = f"{head}{found}{value}\n{rest.partition(chr(10))[2]}"
        toml.write_text(text)
        self.boards = {
            number: VirtualBoard(self.folder / "boards" / f"board-{number}" / "node.toml")
            for number in range(1, boards + 1)
        }
        self.rounds: Rounds | None = None
        self.store = Store(self.folder / "mission.sqlite")
        self.stations: dict[int, Station] = {}

    def _opener(self, url: str, link: Link, tap: object) -> Callable[[], Port]:
        ground = url.removesuffix("-board")
        side: Side = "ground" if url == ground else "board"
        other = f"{url}-board" if side == "ground" else ground

        def send(wire: bytes) -> None:
            port = self._ports.get(other)
            if port is not None and not self.cut:
                port.hear(wire)
                self._wake(other)

        def port() -> Port:
            made = self._ports[url] = AirPort(side, link, send)
            return made

        return port

    # lives

    def _wake(self, url: str) -> None:
        """Whose port that is has something to read."""
        if not url.endswith("-board"):
            self._ground_due_at = self.now
            return
        number = int(url.removeprefix("/dev/air").removesuffix("-board"))
        self.boards[number].due_at = self.now

    def boot_ground(self) -> None:
        self.store.close()
        mission = load_mission(self.folder)
        self.store = Store(mission.database)
        self.store.begin(b"mission.", "test", mission.rules.seed, self.train.digest)
        self.stations = {node.id: Station(node, self.store, self.folder, self.now) for node in mission.nodes}
        self.rounds = Rounds(mission, self.store, self.stations, self.train, self.infer, self.test, self.wall)
        commands = CommandDispatcher(self.folder, self.store, self.stations, self.wall)
        self._ground = GroundProgram(self.rounds, commands, self.clock)
        self._ground_loop = Loop(self._ground, self.clock, self.wall)
        self._ground_due_at = self.now

    def kill_ground(self) -> None:
        self.rounds, self.stations = None, {}

    def boot(self) -> None:
        """All of them."""
        self.boot_ground()
        for board in self.boards.values():
            board.boot(self.now)

    def clock(self) -> float:
        """The monotonic clock of all."""
        return self.now

    def wall(self) -> float:
        """The ground's wall clock."""
        return self.now + self.wall_ahead_s

    # time

    def run(self, until: Callable[[], Any], limit_s: float = 600.0) -> float:
        """Lets time pass until that holds; returns how long it took. Fails after `limit_s`."""
        began = self.now
        for url in self._ports:  # the test may have changed anything
            self._wake(url)
        while not until():
            assert self.now - began < limit_s, f"not within {limit_s} s: {self.seen()[-12:]}"
            self.now += TICK_S
            for board in self.boards.values():
                board.act(self.now)
            self.act_on_the_ground()
        return self.now - began

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        self.run(lambda: self.now >= end, seconds + 1.0)

    def act_on_the_ground(self) -> None:
        if self.rounds is None or self.now < self._ground_due_at:
            return
        self._ground_loop.turn(self.now)
        while self._ground.wakeup(self.now) <= self.now:  # it is in the middle of work
            self._ground_loop.turn(self.now)
        self._ground_due_at = min(self._ground_loop.wakeup(self.now), self.now + 3 * TICK_S)  # see deadlines

    # what is seen

    def seen(self) -> list[tuple[str, dict[str, Any]]]:
        """The events that all have logged."""
        return [(record.getMessage(), getattr(record, "fields", {})) for record in self._caplog.records]

    def said(self, event: str, **fields: object) -> list[dict[str, Any]]:
        return [
            said
            for name, said in self.seen()
            if name == event and all(said.get(k) == v for k, v in fields.items())
        ]

    def states(self, number: int) -> dict[int, str]:
        return {answer["node"]: answer["state"] for answer in self.store.answers(number)}

    @property
    def over(self) -> bool:
        return self.rounds is not None and self.rounds.finished
