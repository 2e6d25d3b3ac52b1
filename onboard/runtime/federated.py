"""Carries the agent on a real port: the one loop with a clock, between link, training and budget."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from typing import Any

from onboard.agents.federated import Agent
from onboard.agents.federated_state import KEPT, FederatedState
from onboard.board import admission
from onboard.board.budget import Pace, ResourceUsage
from onboard.config import GROUND, NodeConfig
from onboard.console.log import say
from onboard.link.limits import limits_for
from onboard.link.pump import wait
from onboard.link.recorder import Recorder
from onboard.mission.health import State
from onboard.monitor.status_socket import Lookout
from onboard.monitor.views import board_view, link_view
from onboard.runtime.drive import Drive
from onboard.runtime.endpoint import Endpoint, EndpointConfig, tell_exposures
from onboard.runtime.signals import stop_signals
from onboard.storage.boot_counter import count_restart, count_start
from onboard.storage.journal import Journal
from onboard.storage.keys import load_keys
from onboard.trainer.job import Trainer
from onboard.wire.events import (
    Event,
)
from onboard.wire.security.seal import SeqExhausted

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
MOST_UNTOLD = 256  # events that wait for the disk before the link is heard no further
RETRY_S = 5.0  # after a write that failed, such as on a full disk
MEMORY_AGAIN_S = 1.0  # after the board had no memory for the agent


def board_agent(
    config: NodeConfig, trainer: Trainer, now: float, recorder: Recorder | None = None
) -> tuple[Agent, Endpoint]:
    """Returns the agent of a node with its journal, and its (still closed) link, recorded if wanted.

    Raises ConfigError, BadKey, OSError. The epoch is raised and durable before anything can be sent with it.
    """
    end = config.ground
    load_keys(end.key_path)  # before anything is written
    tell_exposures([end], config.state)
    journal = Journal(config.state, FederatedState, KEPT)
    known = count_start(journal, [GROUND])
    limits = limits_for(end.port, end.bytes_per_contact, end.bytes_per_day)
    link = EndpointConfig(
        node=config.id,
        peer=GROUND,
        end=end,
        folder=config.state,
        spool=config.state / "spool",
        limits=admission.within(limits, config.memory_bytes),
        label={"peer": "ground"},
        recorder=recorder,
    )
    endpoint = Endpoint(link, known.links[GROUND], known.taken, now)
    ledger = ResourceUsage(config.board, end.link, now)
    return Agent(config, endpoint.session, journal, known, ledger, trainer), endpoint


def carry(
    agent: Agent,
    endpoint: Endpoint,
    pace: Pace,
    *,
    report_every_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> None:
    """Runs until SIGTERM or SIGINT. `report_every_s` logs the agent's and the link's state that often."""
    agent.resume(clock())
    untold: deque[Event] = deque()  # events whose effects the disk refused
    drive, retry_at = Drive(agent, pace), 0.0

    def view() -> dict[str, Any]:
        return board_view(agent, endpoint.pump, clock())

    report_due_s = clock() if report_every_s is not None else math.inf
    with stop_signals() as stop, closing(Lookout(agent.config.state)) as lookout:
        while not stop.asked:
            now = clock()
            try:
                heard, began_again = poll_link(agent, endpoint, now, wall())
                if began_again:
                    untold.clear()  # what these speak of comes again
                untold += heard
                pump = endpoint.pump
                pump.hears = len(untold) < MOST_UNTOLD
                agent.housekeeping(now)
                if now >= retry_at:
                    retry_at = _act(agent, untold, drive, now, clock)
                if now >= report_due_s and report_every_s is not None:
                    report_due_s = now + report_every_s
                    say(log, "doing", **agent.doing(), step_s=drive.running_s(now), link=link_view(pump, now))
                lookout.answer(view)
                step_at = max(drive.wakeup(), retry_at)
                wake_s = min(now + LONGEST_WAIT_S, step_at, report_due_s, pump.wakeup(now))
                trained = agent.trainer.fds if now >= retry_at else ()  # else what it says must wait
                wait([pump], wake_s - clock(), also=[stop.fd, *lookout.fds, *trained])
            except MemoryError:  # not the training's, which has a process of its own: the whole board's
                with contextlib.suppress(MemoryError):
                    agent.relieve(now)
                    wait([], MEMORY_AGAIN_S, also=[stop.fd])
    agent.trainer.stop()
    endpoint.pump.close(clock())


def poll_link(agent: Agent, endpoint: Endpoint, now: float, wall_s: float) -> tuple[list[Event], bool]:
    """Returns what the link brings, and whether it has begun again: a session that has used up its numbers
    is replaced while the training goes on."""
    try:
        return endpoint.poll(now, wall_s), False
    except SeqExhausted:
        try:
            endpoint.renew(count_restart(agent.journal, agent.known, GROUND), agent.known.taken, now)
        except OSError as error:
            say(log, "disk-full", level=logging.ERROR, path=str(agent.config.state), why=str(error))
            endpoint.pump.rest(now + RETRY_S)
            return [], False
        agent.session = endpoint.session
        if agent.known.phase == State.OFFERING:
            agent.offer_kept(now)
        agent.offer_result(now)
        return [], True


def _act(agent: Agent, untold: deque[Event], drive: Drive, now: float, clock: Callable[[], float]) -> float:
    """The agent acts on what it was told, and trains; returns when it may next, later where the disk
    refused."""
    try:
        while untold:
            agent.hear(untold[0], now)
            untold.popleft()
        drive.turn(now, clock)
    except OSError as error:
        say(log, "disk-full", level=logging.ERROR, path=str(agent.config.state), why=str(error))
        return now + RETRY_S
    return now
