"""Carries a node that gossips on its real ports: one loop for its links, its training and its clock."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np

from onboard.agents.exchange_log import ExchangeLog
from onboard.agents.gossip import EXCHANGES, GossipAgent, GossipTraining
from onboard.agents.gossip_checkpoint import BEFORE, CHECKPOINT, MODEL
from onboard.agents.gossip_state import GossipPhase, GossipState
from onboard.board import admission
from onboard.board.budget import MemoryCap, Pace
from onboard.codec.layout import Floats
from onboard.codec.mask import share_of
from onboard.codec.values import Form
from onboard.config import GossipConfig, Neighbour
from onboard.console.log import say
from onboard.console.toml import ConfigError
from onboard.data import labels, loading
from onboard.learn.gossip.algorithms import ALGORITHMS, GossipSetup
from onboard.learn.gossip.descent import Descent, Recipe
from onboard.learn.graph import GraphError, TrainGraph, initial
from onboard.link.limits import limits_for
from onboard.link.pump import Pump, wait
from onboard.link.recorder import Recorder
from onboard.monitor.status_socket import Lookout
from onboard.monitor.views import gossip_view
from onboard.runtime.endpoint import Endpoint, EndpointConfig, tell_exposures
from onboard.runtime.federated import (
    LONGEST_WAIT_S,
    MEMORY_AGAIN_S,
    MOST_UNTOLD,
    RETRY_S,
)
from onboard.runtime.signals import stop_signals
from onboard.storage.boot_counter import count_restart, count_start
from onboard.storage.journal import Journal
from onboard.storage.keys import BadKey, load_keys
from onboard.wire.events import Event, PeerHeard
from onboard.wire.security.seal import SeqExhausted

log = logging.getLogger(__name__)


def gossip_node(
    config: GossipConfig, images: loading.Images | None, now: float, recorder: Recorder | None = None
) -> tuple[GossipAgent, dict[int, Endpoint]]:
    """Returns the agent of a node that gossips, and its links (still closed), recorded if wanted. images:
    None for one that trains nothing.

    Raises ConfigError for a model that is not there or not for these images, BadKey, OSError.
    """
    return linked(config, training_of(config, images), now, lambda link: replace(link, recorder=recorder))


def training_of(config: GossipConfig, images: loading.Images | None) -> GossipTraining:
    """Returns the node's training from the first model on; without images, a model that it holds. Raises
    ConfigError."""
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
    setup = setup_of(config, descent.vector, _classes(config, images, graph.classes))
    flops_a_step = float(graph.flops_per_image * own.batch_size)
    return GossipTraining(descent, flops_a_step, partial(ALGORITHMS["rd-psgd"], setup))


def setup_of(config: GossipConfig, start: Floats, classes: bytes = b"") -> GossipSetup:
    """Returns what the node's algorithm begins with; start: the first model, float32 (P,)."""
    own = config.gossip
    return GossipSetup(
        node=config.id,
        weights={each.id: each.weight for each in config.neighbours},
        start=start,
        seed=own.seed,
        share=share_of(own.sparsity),
        form=Form[own.values.upper()],
        classes=classes,
    )


def _classes(config: GossipConfig, images: loading.Images | None, count: int) -> bytes:
    """What the node's labels mean: by its file, by its images, or else the labels themselves."""
    names = config.data_classes
    if names is None and images is not None and images.named:
        names = images.classes
    return b"" if names is None or names == labels.numbered(count) else labels.digest(names)


def linked(
    config: GossipConfig,
    training: GossipTraining,
    now: float,
    adapt: Callable[[EndpointConfig], EndpointConfig] = lambda link: link,
) -> tuple[GossipAgent, dict[int, Endpoint]]:
    """Returns the agent with its journal, and its links by neighbour. `adapt` has the last word on how each
    link is made.

    Raises ConfigError, BadKey, OSError. The epochs are raised and durable before anything can be sent with
    them.
    """
    for index, each in enumerate(config.neighbours):
        try:
            load_keys(each.key_path)  # before anything is written
        except BadKey as error:
            raise BadKey(f"neighbour[{index}].key: {error}") from None
    tell_exposures(config.neighbours, config.state)
    journal = Journal(config.state, GossipState, (CHECKPOINT, BEFORE, MODEL))
    known = count_start(journal, [each.id for each in config.neighbours])
    exchanges = ExchangeLog(config.state / EXCHANGES)
    links = {
        each.id: Endpoint(adapt(_link(config, each)), known.links[each.id], exchanges.taken(each.id), now)
        for each in config.neighbours
    }
    sessions = {peer: endpoint.session for peer, endpoint in links.items()}
    return GossipAgent(config, sessions, journal, known, exchanges, training), links


def _link(config: GossipConfig, each: Neighbour) -> EndpointConfig:
    limits = limits_for(each.port, each.bytes_per_contact, each.bytes_per_day)
    return EndpointConfig(
        node=config.id,
        peer=each.id,
        end=each,
        folder=config.state,
        spool=config.state / "spool" / str(each.id),
        limits=admission.within(limits, config.memory_bytes, len(config.neighbours)),
        label={"peer": each.id},
        taken_is_all=True,
    )


def carry_gossip(
    agent: GossipAgent,
    links: Mapping[int, Endpoint],
    pace: Pace,
    *,
    report_every_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    cpu_clock: Callable[[], float] = time.process_time,
    wall: Callable[[], float] = time.time,
) -> None:
    """Runs until the agent is over, SIGTERM or SIGINT. `report_every_s` logs its and its links' state that
    often."""
    config = agent.config
    cap = MemoryCap(config.memory_bytes)

    def pumps() -> dict[int, Pump]:
        return {peer: link.pump for peer, link in links.items()}

    agent.resume(clock())
    untold: deque[tuple[int, Event]] = deque()  # events whose effects the disk refused
    next_step_at = retry_at = 0.0
    report_due_s = clock() if report_every_s is not None else math.inf
    with stop_signals() as stop, closing(Lookout(config.state)) as lookout:
        while not stop.asked and agent.phase is not GossipPhase.OVER:
            now = clock()
            try:
                for peer, link in links.items():
                    heard, began_again = poll_link(agent, link, now, wall())
                    if began_again:
                        untold = deque(each for each in untold if each[0] != peer)  # these come again
                    untold += ((peer, event) for event in heard)
                    link.pump.hears = sum(whose == peer for whose, _ in untold) < MOST_UNTOLD
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
                    say(log, "doing", **agent.doing(), links=gossip_view(agent, pumps(), now)["links"])
                lookout.answer(lambda: gossip_view(agent, pumps(), clock()))
                act_at = min(agent.wakeup(now), next_step_at if agent.trains else math.inf)
                wake_s = min(pump.wakeup(now) for pump in pumps().values())
                wake_s = min(now + LONGEST_WAIT_S, max(act_at, retry_at), report_due_s, wake_s)
                wait(pumps().values(), wake_s - clock(), also=[stop.fd, *lookout.fds])
            except MemoryError:  # not of a step, which is capped: the whole board's
                with contextlib.suppress(MemoryError):
                    agent.relieve(now)
                    wait([], MEMORY_AGAIN_S, also=[stop.fd])
    agent.close(clock())
    for pump in pumps().values():
        pump.close(clock())


def poll_link(agent: GossipAgent, endpoint: Endpoint, now: float, wall_s: float) -> tuple[list[Event], bool]:
    """Returns what the link with one neighbour brings, and whether it has begun again: its session had used
    up its numbers."""
    try:
        return endpoint.poll(now, wall_s), False
    except SeqExhausted:
        peer = endpoint.config.peer
        try:
            endpoint.renew(count_restart(agent.journal, agent.known, peer), agent.taken(peer), now)
        except OSError as error:
            say(log, "disk-full", level=logging.ERROR, path=str(agent.config.state), why=str(error))
            endpoint.pump.rest(now + RETRY_S)
            return [], False
        agent.sessions[peer] = endpoint.session
        agent.hear(peer, PeerHeard(), now)  # what it had offered, it offers again
        return [], True


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
