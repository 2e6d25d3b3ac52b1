"""Carries the agent on a real port: the one loop with a clock, between link, training and budget."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from typing import Any

from onboard.agents.federated import Agent
from onboard.agents.federated_state import KEPT, FederatedState
from onboard.board import admission
from onboard.board.budget import Pace, ResourceUsage
from onboard.config import GROUND, NodeConfig
from onboard.console.log import say
from onboard.link import Spool, opener, wire_bytes
from onboard.link.event_log import log_link_event
from onboard.link.limits import limits_for
from onboard.link.pump import OfPort, Pump, PumpEvent, wait
from onboard.link.recorder import Recorder
from onboard.mission.health import State
from onboard.monitor.status_socket import Lookout
from onboard.monitor.views import board_view, link_view
from onboard.runtime.contact_plan import kept_plan
from onboard.runtime.drive import Drive
from onboard.runtime.signals import stop_signals
from onboard.storage.boot_counter import count_start
from onboard.storage.journal import Journal
from onboard.storage.keys import load_keys
from onboard.storage.private import tell_exposure
from onboard.trainer.job import Trainer
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import (
    Event,
)
from onboard.wire.security.seal import SeqExhausted, next_epoch
from onboard.wire.session import Session

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
MOST_UNTOLD = 256  # events that wait for the disk before the link is heard no further
RETRY_S = 5.0  # after a write that failed, such as on a full disk
MEMORY_AGAIN_S = 1.0  # after the board had no memory for the agent


def board_agent(
    config: NodeConfig, trainer: Trainer, now: float, recorder: Recorder | None = None
) -> tuple[Agent, Pump]:
    """The agent of a node with its journal, its spool and its (still closed) port, recorded if wanted.

    Raises BadKey, OSError. The epoch is raised and durable before anything can be sent with it.
    """
    end = config.ground
    load_keys(end.key_path)  # before anything is written
    tell_exposure(end.key_path, "key")
    if end.encrypt:
        tell_exposure(config.state, "state")
    journal = Journal(config.state, FederatedState, KEPT)
    known = count_start(journal, FederatedState())
    spool = Spool(config.state / "spool", _limits(config).max_incoming_bytes)
    spool.retain((known.model, known.deployed))  # all that the journal can say it has acted on
    session = _session(config, known, spool.finished(), now)
    tap = (
        recorder.link(end.port, end.link, local=config.id, peer=GROUND, encrypted=end.encrypt)
        if recorder
        else None
    )
    pump = Pump(opener(end.port, end.link, tap), session, spool)
    agent = Agent(config, session, journal, known, ResourceUsage(config.board, end.link, now), trainer)
    return agent, pump


def _session(config: NodeConfig, known: FederatedState, done: Iterable[bytes], now: float) -> Session:
    """The board's end of its link, in the epoch that the journal holds."""
    end = config.ground
    return Session(
        Identity(config.id, GROUND, primary=False),
        Medium(end.link, wire_bytes=partial(wire_bytes, end.port)),
        Security(load_keys(end.key_path), nonce=os.urandom, encrypted=end.encrypt),
        SessionState(epoch=known.epoch, done=done, spent=known.spent),
        limits=_limits(config),
        now=now,
    )


def _limits(config: NodeConfig) -> Limits:
    end = config.ground
    limits = limits_for(end.port, end.bytes_per_contact, end.bytes_per_day)
    return admission.within(limits, config.memory_bytes)


def carry(
    agent: Agent,
    pump: Pump,
    pace: Pace,
    *,
    report_every_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> None:
    """Runs until SIGTERM or SIGINT. `report_every_s` logs the agent's and the link's state that often.

    Raises ConfigError for a contact plan that cannot be used.
    """
    path = agent.config.ground.contacts_path
    contacts = kept_plan(agent.config.state, path, agent.config.id, GROUND)
    agent.resume(clock())
    untold: deque[Event] = deque()  # events whose effects the disk refused
    drive, retry_at = Drive(agent, pace), 0.0

    def view() -> dict[str, Any]:
        return board_view(agent, pump, clock())

    report_due_s = clock() if report_every_s is not None else math.inf
    with stop_signals() as stop, closing(Lookout(agent.config.state)) as lookout:
        while not stop.asked:
            now = clock()
            try:
                if contacts is not None:
                    contacts.keep(pump.session, now, wall())
                before = pump
                pump, heard = poll_link(agent, pump, now)
                if pump is not before:
                    untold.clear()  # what these speak of comes again
                for event in heard:
                    log_link_event(event, peer="ground")
                    if not isinstance(event, OfPort):
                        untold.append(event)
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
    pump.close(clock())


def poll_link(agent: Agent, pump: Pump, now: float) -> tuple[Pump, list[PumpEvent]]:
    """What the link brings, and its pump. A session that has used up its numbers is begun again, as by a
    restart, while the training goes on."""
    try:
        return pump, pump.poll(now)
    except SeqExhausted:
        agent.known.epoch = next_epoch(agent.known.epoch)
        try:
            agent.journal.save(agent.known)
        except OSError as error:
            say(log, "disk-full", level=logging.ERROR, path=str(agent.config.state), why=str(error))
            pump.rest(now + RETRY_S)
            return pump, []
        session = agent.session = _session(agent.config, agent.known, pump.session.done, now)
        if agent.known.phase == State.OFFERING:
            agent.offer_kept(now)
        agent.offer_result(now)
        return pump.with_session(session, now), []


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
