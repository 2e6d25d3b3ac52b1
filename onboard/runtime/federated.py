"""A federated board as the loop carries it: the agent, its link to the ground, and its training.

`Drive` alone decides when the trainer takes its next step: throttle, CPU accounting and emulated speed."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from onboard.agents.federated import FederatedAgent
from onboard.agents.federated_state import KEPT, FederatedState
from onboard.board.budget import CpuShare, Pace, ResourceUsage
from onboard.config import GROUND, NodeConfig
from onboard.console.log import say
from onboard.inference.downlink import AnswerDownlink
from onboard.inference.rules import DownlinkState
from onboard.inference.watch import ImageWatch
from onboard.learn.training import Stepped
from onboard.link.recording import Recorder
from onboard.mission.health import State
from onboard.monitor.status_socket import link_view
from onboard.runtime.endpoint import Endpoint, EndpointConfig, board_limits, tell_exposures
from onboard.runtime.loop import NodeProgram
from onboard.storage.journal import Journal, count_restart, count_start
from onboard.storage.keys import load_keys
from onboard.storage.model_slots import model_slots
from onboard.trainer.job import Begun, Checked, Failed, Report, Trainer, TrainingDone
from onboard.wire.events import Event

log = logging.getLogger(__name__)

STALLED_S = 120.0  # a step of ResNet-20 with 10 images takes a Raspberry Pi 4 some 3 s


def board_agent(
    config: NodeConfig, trainer: Trainer, now: float, recorder: Recorder | None = None
) -> tuple[FederatedAgent, Endpoint]:
    """Return a node's agent with its journal, and its (still closed) link, recorded if wanted. The epoch is
    durable before anything is sent with it. Raises ConfigError, BadKey, OSError."""
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
    endpoint = Endpoint(link, known.links[GROUND], (*known.taken, *model_slots(config).taken), now)
    ledger = ResourceUsage(config.board, end.link, now)
    return FederatedAgent(config, endpoint.session, journal, known, ledger, trainer), endpoint


class Drive:
    """Asks an agent's trainer for step after step, as fast as its share of the CPU allows, and passes on
    its reports."""

    def __init__(self, agent: FederatedAgent, cpu: CpuShare, now: float = 0.0) -> None:
        self._agent, self._cpu = agent, cpu
        self._work: object | None = None
        self._asked_at = now
        self._untold: deque[tuple[object, Report]] = deque()  # the disk refused their effects
        self._stall_told = False

    def turn(self, now: float, clock: Callable[[], float]) -> None:
        """Do all that can be done now. Raises OSError (disk full): call it again later."""
        if self._work is not self._agent.work:  # it was begun or given up since
            self._work, self._asked_at, self._stall_told = self._agent.work, now, False
        self._tell(clock)
        if self._agent.ready and now >= self._cpu.next_at:
            self._asked_at, self._stall_told = now, False
            self._agent.ask(now)
            self._tell(clock)  # a trainer in this process has done it by now
        elif self.running_s(now) > STALLED_S and not self._stall_told:
            self._stall_told = True
            say(log, "training-stalled", level=logging.WARNING, seconds=round(self.running_s(now)))

    def wakeup(self) -> float:
        """Return when `turn` next has something to do, if the trainer reports nothing before."""
        return self._cpu.next_at if self._untold or self._agent.ready else math.inf

    def running_s(self, now: float) -> float:
        """Return how long the present step (or the start) has taken; 0 where none is under way."""
        return now - self._asked_at if self._agent.work is not None and not self._agent.ready else 0.0

    def _tell(self, clock: Callable[[], float]) -> None:
        """A step is charged when it is reported; what the disk refuses is told again, at no charge."""
        for report in self._agent.trainer.reports():
            if isinstance(report, Checked):
                self._agent.installer.checked(report)
                continue
            if not isinstance(report, Failed):
                self._book(report)
            self._untold.append((self._agent.work, report))
        while self._untold:
            work, report = self._untold[0]
            if work is self._agent.work and work is not None:
                self._agent.take(report, clock())
            self._untold.popleft()

    def _book(self, report: Begun | Stepped | TrainingDone) -> None:
        if isinstance(report, Begun):  # what an emulated board's start would take, its profile does not say
            cost_s = report.cpu_s if self._cpu.pace.train_flops is None else 0.0
        else:
            cost_s = self._cpu.pace.step_cpu_s(report.cpu_s, self._agent.flops_a_step)
        self._cpu.book(self._asked_at, cost_s)
        self._agent.charge(cost_s)


class FederatedProgram(NodeProgram):
    """The program of one board, whose trainer works as fast as `pace` allows."""

    is_over = False

    def __init__(
        self,
        agent: FederatedAgent,
        endpoint: Endpoint,
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(agent, {GROUND: endpoint}, clock, wall)
        self.agent, self.endpoint = agent, endpoint
        cpu = CpuShare(pace, clock())
        self._drive = Drive(agent, cpu, clock())
        self._watch: ImageWatch | None = None
        if (said := agent.config.infer) is not None:
            self._watch = ImageWatch(agent.config, said, lambda: agent.known.deployed, cpu, agent.spend, wall)
            agent.answers = self._watch.health
        self._downlink: AnswerDownlink | None = None
        if self._watch is not None and said is not None and said.downlink is not None:
            kept, ring = agent.known.downlink, self._watch.ring
            self._downlink = AnswerDownlink(said.downlink, said.watch, ring, kept, self._keep_downlink)

    @property
    def fds(self) -> Iterable[int]:
        watched = () if self._watch is None else self._watch.fds
        return [*self.agent.trainer.fds, *watched]

    def _keep_downlink(self, state: DownlinkState) -> None:
        self.agent.known.downlink = state
        self.agent.journal.save(self.agent.known)

    def begin_again(self, peer: int, now: float) -> None:
        """Renew the link in another epoch while the training goes on. Raises BadKey, OSError."""
        agent = self.agent
        taken = (*agent.known.taken, *agent.installer.taken)
        self.endpoint.renew(count_restart(agent.journal, agent.known, peer), taken, now)
        agent.session = self.endpoint.session
        if self._downlink is not None:
            self._downlink.offer_again()
        if agent.known.phase == State.OFFERING:
            agent.offer_kept(now)
        agent.offer_result(now)
        agent.installer.asks_again(now)

    def attend(self, now: float) -> None:
        self.agent.housekeeping(now)

    def handle(self, peer: int, event: Event, now: float) -> None:
        if self._downlink is None or not self._downlink.handle(event):
            self.agent.handle(event, now)

    def step(self, now: float) -> None:
        self._drive.turn(now, self._clock)
        self.agent.installer.step(now)
        if self._watch is not None:
            self._watch.turn(now, self._clock)
        if self._downlink is not None:
            self._downlink.turn(self.agent.session, now)

    def wakeup(self, now: float) -> float:
        watch_at = math.inf if self._watch is None else self._watch.wakeup()
        sends_at = math.inf if self._downlink is None else self._downlink.wakeup()
        return min(self._drive.wakeup(), self.agent.installer.wakeup(now), watch_at, sends_at)

    def relieve(self, now: float) -> str:
        if self._watch is not None:
            self._watch.stop()
        return super().relieve(now)

    def run(self, report_every_s: float | None) -> None:
        super().run(report_every_s)
        if self._watch is not None:
            self._watch.stop()

    def status(self, now: float) -> dict[str, Any]:
        config = self.agent.config
        who = {"node": config.name, "board": config.board.name, "profile": config.ground.link.name}
        return who | self._doing() | {"link": link_view(self.endpoint.pump, now)}

    def report(self, now: float) -> None:
        step_s, link = self._drive.running_s(now), link_view(self.endpoint.pump, now)
        say(log, "doing", **self._doing(), step_s=step_s, link=link)

    def _doing(self) -> dict[str, Any]:
        watched = {} if self._watch is None else {"answers": self._watch.status()}
        return self.agent.status() | watched
