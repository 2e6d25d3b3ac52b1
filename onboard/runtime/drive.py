"""When the trainer may take its next step: the one place of throttle, CPU accounting and emulated speed."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable

from onboard.agents.federated import FederatedAgent
from onboard.board.budget import Pace
from onboard.console.log import say
from onboard.trainer.job import Begun, Failed, Report, Stepped, TrainingDone

log = logging.getLogger(__name__)

STALLED_S = 120.0  # a step of ResNet-20 with 10 images takes a Raspberry Pi 4 some 3 s


class Drive:
    """Asks an agent's trainer for one step after the other, as fast as `pace` allows, and tells the agent
    what came of each."""

    def __init__(self, agent: FederatedAgent, pace: Pace, now: float = 0.0) -> None:
        self._agent, self._pace = agent, pace
        self._work: object | None = None
        self._asked_at = self._next_at = now
        self._untold: deque[tuple[object, Report]] = deque()  # the disk refused their effects
        self._stall_told = False

    def turn(self, now: float, clock: Callable[[], float]) -> None:
        """Does all that can be done now. Raises OSError (disk full): call it again later."""
        if self._work is not self._agent.work:  # it was begun or given up since
            self._work, self._asked_at, self._stall_told = self._agent.work, now, False
        self._tell(clock)
        if self._agent.ready and now >= self._next_at:
            self._asked_at, self._stall_told = now, False
            self._agent.ask(now)
            self._tell(clock)  # a trainer in this process has done it by now
        elif self.running_s(now) > STALLED_S and not self._stall_told:
            self._stall_told = True
            say(log, "training-stalled", level=logging.WARNING, seconds=round(self.running_s(now)))

    def wakeup(self) -> float:
        """When `turn` next has something to do, if the trainer reports nothing before."""
        if self._untold:
            return self._next_at
        return self._next_at if self._agent.ready else math.inf

    def running_s(self, now: float) -> float:
        """For how long the step (or the start) that is under way has been; 0 where none is."""
        return now - self._asked_at if self._agent.work is not None and not self._agent.ready else 0.0

    def _tell(self, clock: Callable[[], float]) -> None:
        """The cost of a step counts when it is reported; what the disk refuses is told again, and costs
        nothing."""
        for report in self._agent.trainer.reports():
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
            cost_s = report.cpu_s if self._pace.train_flops is None else 0.0
            self._next_at = max(self._next_at, self._pace.next_step_at(self._asked_at, cost_s))
        else:
            cost_s = self._pace.step_cpu_s(report.cpu_s, self._agent.flops_a_step)
            self._next_at = self._pace.next_step_at(self._asked_at, cost_s)
        self._agent.charge(cost_s)
