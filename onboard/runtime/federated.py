"""A federated board as the loop carries it: the agent, its link to the ground, and its training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from onboard.agents.federated import FederatedAgent
from onboard.agents.federated_state import KEPT, FederatedState
from onboard.board.budget import Pace, ResourceUsage
from onboard.config import GROUND, NodeConfig
from onboard.console.log import say
from onboard.link.recording import Recorder
from onboard.mission.health import State
from onboard.monitor.status_socket import link_view
from onboard.runtime.drive import Drive
from onboard.runtime.endpoint import Endpoint, EndpointConfig, tell_exposures
from onboard.runtime.limits import board_limits
from onboard.runtime.loop import Loop, NodeProgram
from onboard.storage.journal import Journal, count_restart, count_start
from onboard.storage.keys import load_keys
from onboard.trainer.job import Trainer
from onboard.wire.events import Event

log = logging.getLogger(__name__)


def board_agent(
    config: NodeConfig, trainer: Trainer, now: float, recorder: Recorder | None = None
) -> tuple[FederatedAgent, Endpoint]:
    """Returns the agent of a node with its journal, and its (still closed) link, recorded if wanted.

    Raises ConfigError, BadKey, OSError. The epoch is raised and durable before anything can be sent with it.
    """
    end = config.ground
    load_keys(end.key_path)  # before anything is written
    tell_exposures([end], config.state)
    journal = Journal(config.state, FederatedState, KEPT)
    known = count_start(journal, [GROUND])
    link = EndpointConfig(
        node=config.id,
        end=end,
        folder=config.state,
        spool=config.state / "spool",
        limits=board_limits(end, config.memory_bytes),
        label={"peer": "ground"},
        recorder=recorder,
    )
    endpoint = Endpoint(link, known.links[GROUND], known.taken, now)
    ledger = ResourceUsage(config.board, end.link, now)
    return FederatedAgent(config, endpoint.session, journal, known, ledger, trainer), endpoint


def carry(
    agent: FederatedAgent,
    endpoint: Endpoint,
    pace: Pace,
    *,
    report_every_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> None:
    """Runs until SIGTERM or SIGINT. `report_every_s` logs the agent's and the link's state that often."""
    agent.resume(clock())
    Loop(FederatedProgram(agent, endpoint, pace, clock), clock, wall).run(report_every_s)
    agent.trainer.stop()
    endpoint.pump.close(clock())


class FederatedProgram(NodeProgram):
    """The agent of one board, whose trainer works as fast as `pace` allows."""

    is_over = False

    def __init__(
        self, agent: FederatedAgent, endpoint: Endpoint, pace: Pace, clock: Callable[[], float]
    ) -> None:
        super().__init__(agent.config.state, {GROUND: endpoint})
        self.agent, self.endpoint = agent, endpoint
        self._drive, self._clock = Drive(agent, pace, clock()), clock

    @property
    def fds(self) -> Iterable[int]:
        """By which the trainer says that it is done with what it was asked."""
        return self.agent.trainer.fds

    def begin_again(self, peer: int, now: float) -> None:
        """Goes on in another epoch while the training goes on. Raises BadKey, OSError."""
        agent = self.agent
        self.endpoint.renew(count_restart(agent.journal, agent.known, peer), agent.known.taken, now)
        agent.session = self.endpoint.session
        if agent.known.phase == State.OFFERING:
            agent.offer_kept(now)
        agent.offer_result(now)

    def attend(self, now: float) -> None:
        self.agent.housekeeping(now)

    def handle(self, peer: int, event: Event, now: float) -> None:
        self.agent.handle(event, now)

    def step(self, now: float) -> None:
        self._drive.turn(now, self._clock)

    def relieve(self, now: float) -> str:
        return self.agent.relieve(now)

    def wakeup(self, now: float) -> float:
        return self._drive.wakeup()

    def status(self, now: float) -> dict[str, Any]:
        config = self.agent.config
        who = {"node": config.name, "board": config.board.name, "profile": config.ground.link.name}
        return who | self.agent.status() | {"link": link_view(self.endpoint.pump, now)}

    def report(self, now: float) -> None:
        step_s, link = self._drive.running_s(now), link_view(self.endpoint.pump, now)
        say(log, "doing", **self.agent.status(), step_s=step_s, link=link)
