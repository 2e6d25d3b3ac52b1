"""Carries a node that gossips on its real ports: one loop for its links, its training and its clock."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial

import numpy as np

from onboard.agents.exchange_log import ExchangeLog
from onboard.agents.gossip import EXCHANGES, GossipAgent
from onboard.agents.gossip_checkpoint import BEFORE, CHECKPOINT, MODEL
from onboard.agents.gossip_state import GossipPhase, GossipState, LinkState
from onboard.board import admission
from onboard.board.budget import MemoryCap, Pace
from onboard.config import GossipConfig, Neighbour
from onboard.console.log import say
from onboard.console.toml import ConfigError
from onboard.data import labels, loading
from onboard.learn.gossip.descent import Descent, Recipe
from onboard.learn.graph import GraphError, TrainGraph, initial
from onboard.link import Spool, opener, wire_bytes
from onboard.link.event_log import log_link_event
from onboard.link.limits import limits_for
from onboard.link.ports.port import Port
from onboard.link.pump import OfPort, Pump, PumpEvent, wait
from onboard.link.recorder import Recorder
from onboard.mission.objects import GOSSIP
from onboard.monitor.status_socket import Lookout
from onboard.monitor.views import gossip_view
from onboard.runtime.contact_plan import kept_plan
from onboard.runtime.federated import (
    LONGEST_WAIT_S,
    MEMORY_AGAIN_S,
    MOST_UNTOLD,
    RETRY_S,
)
from onboard.runtime.signals import stop_signals
from onboard.storage.boot_counter import count_start
from onboard.storage.journal import Journal
from onboard.storage.keys import BadKey, load_keys
from onboard.storage.private import tell_exposure
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import Event, PeerHeard
from onboard.wire.messages import digest
from onboard.wire.security.seal import Keys, SeqExhausted
from onboard.wire.session import Session

log = logging.getLogger(__name__)

Opener = Callable[[Neighbour], Callable[[], Port | None]]


def gossip_node(
    config: GossipConfig, images: loading.Images | None, now: float, recorder: Recorder | None = None
) -> tuple[GossipAgent, dict[int, Pump]]:
    """The agent of a node that gossips, and its links (still closed), recorded if wanted. images: None for
    one that trains nothing.

    Raises ConfigError for a model that is not there or not for these images, BadKey, OSError.
    """
    descent, flops_a_step, classes = descent_of(config, images)
    return linked(
        config, descent, flops_a_step, now, opener=partial(_opener, config, recorder), classes=classes
    )


def descent_of(config: GossipConfig, images: loading.Images | None) -> tuple[Descent, float, bytes]:
    """The node's training from the first model on, what a step costs (FLOP), and what its labels mean, as
    `Gossip` takes it; without images a model that is held. Raises ConfigError."""
    own = config.gossip
    try:
        graph = TrainGraph.load(config.model)
        x, y = np.empty((0, *graph.input_shape), np.uint8), np.empty(0, np.int64)
        if images is not None:
            x, y = images.x, images.y
        if graph.input_shape != x.shape[1:]:
            raise GraphError(f"takes images of {graph.input_shape}, here are {x.shape[1:]}")
        labels.whole("data", "y", y, graph.classes)
        recipe = Recipe(
            batch_size=own.batch_size,
            learning_rate=own.learning_rate,
            drops=own.drops,
            cosine_epochs=own.cosine_epochs,
            momentum=own.momentum,
            weight_decay=own.weight_decay,
            shift_pixels=own.shift_pixels,
            distortion=own.distortion,
        )
        start = initial(graph.shapes, own.seed)
        descent = Descent(graph, start, x, y, recipe, seed=own.seed, node=config.id)
    except ValueError as error:
        raise ConfigError(f"{config.path}: gossip.model = {own.model!r}: {error}") from None
    return descent, float(graph.flops_per_image * own.batch_size), _classes(config, images, graph.classes)


def _classes(config: GossipConfig, images: loading.Images | None, count: int) -> bytes:
    """What the node's labels mean: by its file, by its images, or else the labels themselves."""
    names = config.data_classes
    if names is None and images is not None and images.named:
        names = images.classes
    return b"" if names is None or names == labels.numbered(count) else labels.digest(names)


def linked(
    config: GossipConfig,
    descent: Descent,
    flops_a_step: float,
    now: float,
    *,
    opener: Opener,
    classes: bytes = b"",
    nonce: Callable[[int], bytes] = os.urandom,
) -> tuple[GossipAgent, dict[int, Pump]]:
    """The agent with its journal, and for each neighbour a session, a spool and a pump.

    opener: gives, for a neighbour, what opens its port. nonce: see Session.
    Raises BadKey, OSError. The epoch is raised and durable before anything can be sent with it.
    """
    keys = {each.id: _keys(index, each) for index, each in enumerate(config.neighbours)}
    for each in config.neighbours:
        tell_exposure(each.key_path, "key")
    if any(each.encrypt for each in config.neighbours):
        tell_exposure(config.state, "state")
    journal = Journal(config.state, GossipState, (CHECKPOINT, BEFORE, MODEL))
    known = count_start(journal, GossipState())
    exchanges = ExchangeLog(config.state / EXCHANGES)
    pumps = {}
    for each in config.neighbours:
        spool = Spool(config.state / "spool" / str(each.id), _limits(config, each).max_incoming_bytes)
        taken = [digest(GOSSIP, logged.taken) for logged in exchanges.of(each.id) if logged.taken]
        spool.retain(taken)  # the log alone says what was taken
        session = _session(config, each, keys[each.id], known, taken, nonce, now)
        pumps[each.id] = Pump(opener(each), session, spool)
    sessions = {peer: pump.session for peer, pump in pumps.items()}
    return GossipAgent(config, sessions, journal, known, exchanges, descent, flops_a_step, classes), pumps


def _session(
    config: GossipConfig,
    each: Neighbour,
    keys: Keys,
    known: GossipState,
    done: Iterable[bytes],
    nonce: Callable[[int], bytes],
    now: float,
) -> Session:
    """This end of the link with one neighbour, in the epoch that the journal holds."""
    tie = known.ties.get(each.id, LinkState())
    return Session(
        Identity(config.id, each.id, primary=config.id < each.id),
        Medium(each.link, wire_bytes=partial(wire_bytes, each.port)),
        Security(keys, nonce=nonce, encrypted=each.encrypt),
        SessionState(epoch=known.epoch, done=done, spent=tie.spent),
        limits=_limits(config, each),
        now=now,
    )


def _limits(config: GossipConfig, each: Neighbour) -> Limits:
    limits = limits_for(each.port, each.bytes_per_contact, each.bytes_per_day)
    return admission.within(limits, config.memory_bytes, len(config.neighbours))


def _keys(index: int, neighbour: Neighbour) -> dict[int, bytes]:
    try:
        return load_keys(neighbour.key_path)
    except BadKey as error:
        raise BadKey(f"neighbour[{index}].key: {error}") from None


def _opener(config: GossipConfig, recorder: Recorder | None, end: Neighbour) -> Callable[[], Port | None]:
    tap = None
    if recorder:
        tap = recorder.link(end.port, end.link, local=config.id, peer=end.id, encrypted=end.encrypt)
    return opener(end.port, end.link, tap)


def carry_gossip(
    agent: GossipAgent,
    pumps: Mapping[int, Pump],
    pace: Pace,
    *,
    report_every_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    cpu_clock: Callable[[], float] = time.process_time,
    wall: Callable[[], float] = time.time,
) -> None:
    """Runs until the agent is over, SIGTERM or SIGINT. `report_every_s` logs its and its links' state that
    often.

    Raises ConfigError for a contact plan that cannot be used.
    """
    config = agent.config
    cap = MemoryCap(config.memory_bytes)
    plans = {
        each.id: plan
        for each in config.neighbours
        if (plan := kept_plan(config.state, each.contacts_path, config.id, each.id))
    }
    links = dict(pumps)
    agent.resume(clock())
    untold: deque[tuple[int, Event]] = deque()  # events whose effects the disk refused
    next_step_at = retry_at = 0.0
    report_due_s = clock() if report_every_s is not None else math.inf
    with stop_signals() as stop, closing(Lookout(config.state)) as lookout:
        while not stop.asked and agent.phase is not GossipPhase.OVER:
            now = clock()
            try:
                for peer, plan in plans.items():
                    plan.keep(links[peer].session, now, wall())
                for peer in links:
                    heard, ended = poll_link(agent, links, peer, now)
                    if ended:
                        untold = deque(each for each in untold if each[0] not in ended)  # these come again
                    for event in heard:
                        log_link_event(event, peer=peer)
                        if not isinstance(event, OfPort):
                            untold.append((peer, event))
                    links[peer].hears = sum(whose == peer for whose, _ in untold) < MOST_UNTOLD
                try:
                    if now >= retry_at:
                        while untold:
                            agent.hear(*untold[0], now)
                            untold.popleft()
                        agent.tick(now)
                        if agent.trains and now >= next_step_at:
                            next_step_at = step(agent, pace, cap, now, clock, cpu_clock)
                except OSError as error:
                    say(log, "disk-full", level=logging.ERROR, path=str(config.state), why=str(error))
                    retry_at = now + RETRY_S
                if now >= report_due_s and report_every_s is not None:
                    report_due_s = now + report_every_s
                    say(log, "doing", **agent.doing(), links=gossip_view(agent, links, now)["links"])
                lookout.answer(lambda: gossip_view(agent, links, clock()))
                act_at = min(agent.wakeup(now), next_step_at if agent.trains else math.inf)
                wake_s = min(pump.wakeup(now) for pump in links.values())
                wake_s = min(now + LONGEST_WAIT_S, max(act_at, retry_at), report_due_s, wake_s)
                wait(links.values(), wake_s - clock(), also=[stop.fd, *lookout.fds])
            except MemoryError:  # not of a step, which is capped: the whole board's
                with contextlib.suppress(MemoryError):
                    agent.relieve(now)
                    wait([], MEMORY_AGAIN_S, also=[stop.fd])
    for pump in links.values():
        pump.close(clock())


def poll_link(
    agent: GossipAgent,
    links: dict[int, Pump],
    peer: int,
    now: float,
    nonce: Callable[[int], bytes] = os.urandom,
) -> tuple[list[PumpEvent], list[int]]:
    """What the link with one neighbour brings, and which of `links` have begun again, as after a restart: one
    whose session has used up its numbers."""
    try:
        return links[peer].poll(now), []
    except SeqExhausted:
        return [], _begin_again(agent, links, peer, now, nonce)


def _begin_again(
    agent: GossipAgent, links: dict[int, Pump], peer: int, now: float, nonce: Callable[[int], bytes]
) -> list[int]:
    try:
        agent.count_start()
    except OSError as error:
        say(log, "disk-full", level=logging.ERROR, path=str(agent.config.state), why=str(error))
        links[peer].rest(now + RETRY_S)
        return []
    index, each = next((i, each) for i, each in enumerate(agent.config.neighbours) if each.id == peer)
    before = links[peer]
    session = _session(agent.config, each, _keys(index, each), agent.known, before.session.done, nonce, now)
    agent.sessions[peer] = session
    agent.hear(peer, PeerHeard(), now)  # what it had offered, it offers again
    links[peer] = before.with_session(session, now)
    return [peer]


def step(
    agent: GossipAgent,
    pace: Pace,
    cap: MemoryCap,
    now: float,
    clock: Callable[[], float],
    cpu_clock: Callable[[], float],
) -> float:
    """One training step under the memory's cap, and what it cost; returns when the next may begin.

    Raises OSError (disk full)."""
    cpu_before_s = cpu_clock()
    try:
        with cap:
            flops = agent.advance()
    except Exception as error:  # a graph or a memory limit may raise anything, and the link must live on
        agent.fail(error, clock())
        return now
    cost_s = pace.step_cpu_s(cpu_clock() - cpu_before_s, flops)
    agent.charge(cost_s, clock())
    return pace.next_step_at(now, cost_s)
