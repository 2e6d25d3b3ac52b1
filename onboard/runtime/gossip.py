"""A node that gossips as the loop carries it: the agent, its links to neighbours, and its training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from onboard.agents.gossip import EXCHANGES, GossipAgent, GossipPhase, GossipTraining
from onboard.agents.gossip_memory import BEFORE, CHECKPOINT, MODEL, ExchangeLog, GossipState
from onboard.board.budget import MemoryCap, Pace
from onboard.codec.layout import Floats
from onboard.codec.mask import share_of
from onboard.codec.values import Form
from onboard.config import GossipConfig, LinkEnd
from onboard.console.log import say
from onboard.console.toml import ConfigError
from onboard.data import labels
from onboard.data.images import Images
from onboard.learn.gossip.algorithms import ALGORITHMS
from onboard.learn.gossip.descent import Descent
from onboard.learn.gossip.exchange import GossipSetup
from onboard.learn.graph import GraphError, TrainGraph
from onboard.link.recording import Recorder
from onboard.monitor.status_socket import link_view
from onboard.runtime.endpoint import Endpoint, EndpointConfig, board_limits, tell_exposures
from onboard.runtime.loop import NodeProgram
from onboard.storage.journal import Journal, count_restart, count_start
from onboard.storage.keys import BadKey, load_keys
from onboard.wire.events import Event, PeerHeard

log = logging.getLogger(__name__)


def gossip_node(
    config: GossipConfig, images: Images | None, now: float, recorder: Recorder | None = None
) -> tuple[GossipAgent, dict[int, Endpoint]]:
    """Return the agent of a node that gossips, and its links (still closed), recorded if wanted. `images`:
    None for a node that does not train. Raises ConfigError, BadKey, OSError."""
    return linked(config, training_of(config, images), now, lambda link: replace(link, recorder=recorder))


def training_of(config: GossipConfig, images: Images | None) -> GossipTraining:
    """Return the node's training from the first model on. Raises ConfigError for one that does not fit."""
    own = config.gossip
    try:
        graph = TrainGraph.load(config.model)
        x, y = np.empty((0, *graph.input_shape), np.uint8), np.empty(0, np.int64)
        if images is not None:
            if graph.input_shape != images.shape:
                raise GraphError(f"takes images of {graph.input_shape}, here are {images.shape}")
            images = labels.for_network(images, "it", graph.objective)
            x, y = images.x, images.y
        start = graph.initial(own.seed)
        descent = Descent(graph, start, x, y, own, seed=own.seed, node=config.id)
    except ValueError as error:
        raise ConfigError(f"{config.path}: gossip.model = {own.model!r}: {error}") from None
    classes = _classes(config, images, graph.classes) if graph.objective.has_classes else b""
    setup = setup_of(config, descent.vector, classes)
    flops_a_step = float(graph.flops_per_image * own.batch_size)
    return GossipTraining(descent, flops_a_step, partial(ALGORITHMS["rd-psgd"].make, setup))


def setup_of(config: GossipConfig, start: Floats, classes: bytes = b"") -> GossipSetup:
    """Return what the node's algorithm begins with. `start`: the first model, float32 (P,)."""
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


def _classes(config: GossipConfig, images: Images | None, count: int) -> bytes:
    """The digest of what the labels mean, by the node's file or its images; b"" for plain numbers."""
    names = config.shard.classes
    if names is None and images is not None and images.named:
        names = images.classes
    return b"" if names is None or names == labels.numbered(count) else labels.digest(names)


def linked(
    config: GossipConfig,
    training: GossipTraining,
    now: float,
    adapt: Callable[[EndpointConfig], EndpointConfig] = lambda link: link,
) -> tuple[GossipAgent, dict[int, Endpoint]]:
    """Return the agent with its journal, and its links by neighbour, each as `adapt` leaves it. The epochs
    are durable before anything is sent with them. Raises ConfigError, BadKey, OSError."""
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


def _link(config: GossipConfig, each: LinkEnd) -> EndpointConfig:
    return EndpointConfig(
        node=config.id,
        end=each,
        folder=config.state,
        spool=config.state / "spool" / str(each.id),
        limits=board_limits(each, config.memory_bytes, len(config.neighbours)),
        label={"peer": each.id},
        taken_is_all=True,
    )


def begin_again(agent: GossipAgent, link: Endpoint, now: float) -> None:
    """Renew a link in another epoch, and repeat all offers on it. Raises BadKey, OSError."""
    peer = link.config.end.id
    link.renew(count_restart(agent.journal, agent.known, peer), agent.exchanges.taken(peer), now)
    agent.sessions[peer] = link.session
    agent.handle(peer, PeerHeard(), now)


class GossipProgram(NodeProgram):
    """The program of a node that trains in this process, under its memory budget, at its `pace`."""

    fds = ()

    def __init__(
        self,
        agent: GossipAgent,
        links: Mapping[int, Endpoint],
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(agent, links, clock, wall)
        self.agent, self._pace, self._cpu_clock = agent, pace, cpu_clock
        self._cap = MemoryCap(agent.config.memory_bytes)
        self.next_step_at = -math.inf

    @property
    def is_over(self) -> bool:
        return self.agent.phase is GossipPhase.OVER

    def begin_again(self, peer: int, now: float) -> None:
        begin_again(self.agent, self.links[peer], now)

    def attend(self, now: float) -> None:
        """Nothing is due in every turn."""

    def handle(self, peer: int, event: Event, now: float) -> None:
        self.agent.handle(peer, event, now)

    def step(self, now: float) -> None:
        self.agent.tick(now)
        if self.agent.trains and now >= self.next_step_at:
            self.next_step_at = self._train(now)

    def _train(self, now: float) -> float:
        """Run one training step under the memory cap; return when the next may begin. Raises OSError."""
        cpu_before_s = self._cpu_clock()
        try:
            with self._cap:
                flops = self.agent.advance()
        except Exception as error:  # a graph or a memory limit may raise anything; the link must live on
            self.agent.fail(error, self._clock())
            return now
        cost_s = self._pace.step_cpu_s(self._cpu_clock() - cpu_before_s, flops)
        self.agent.charge(cost_s, self._clock())
        return self._pace.next_step_at(now, cost_s)

    def wakeup(self, now: float) -> float:
        return min(self.agent.wakeup(now), self.next_step_at if self.agent.trains else math.inf)

    def status(self, now: float) -> dict[str, Any]:
        config = self.agent.config
        links = [
            {"peer": each.id, "profile": each.link.name, **link_view(self.links[each.id].pump, now)}
            for each in config.neighbours
        ]
        return {"node": config.name, "board": config.board.name} | self.agent.status() | {"links": links}

    def report(self, now: float) -> None:
        say(log, "doing", **self.agent.status(), links=self.status(now)["links"])
