"""Carries the agent on a real port: the one loop with a clock, between link, training and budget."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from onboard import data
from onboard.agent import Agent, Known
from onboard.budget import Ledger, Pace, limit_memory
from onboard.config import NodeConfig
from onboard.journal import Journal
from onboard.keys import load_key
from onboard.link import Spool, open_port, wire_bytes
from onboard.link.pump import PortDown, PortUp, Pump, SpoolFull, wait
from onboard.log import say
from onboard.wire.events import Limits, LinkSnapshot, PeerHeard, PeerSilent
from onboard.wire.session import Session

log = logging.getLogger(__name__)

GROUND = 0  # the ground station's node number in a frame
SPOOL_BYTES = 64 * 2**20
LONGEST_WAIT_S = 5.0
REORDER_SLACK = 3  # TCP's duplicate threshold (RFC 5681, section 3.2)


def local_images(config: NodeConfig) -> data.Images:
    """The node's shard. Raises DataError."""
    return data.load(
        config.data_source, config.data_shape, folder=config.data_folder, part="train", rows=config.data_rows
    )


def board_agent(config: NodeConfig, images: data.Images, now: float) -> tuple[Agent, Pump]:
    """The agent of a node with its journal, its spool and its (still closed) port.

    Raises BadKey, OSError. The epoch is raised and durable before anything can be sent with it.
    """
    key = load_key(config.key_path)
    journal = Journal(config.state, Known)
    known = journal.load() or Known()
    known.epoch += 1
    journal.save(known)
    spool = Spool(config.state / "spool", SPOOL_BYTES)
    session = Session(
        node=config.id,
        peer=GROUND,
        key=key,
        link=config.link,
        master=False,
        epoch=known.epoch,
        floor=known.floor,
        done=spool.finished(),
        wire_bytes=partial(wire_bytes, config.port),
        now=now,
        limits=limits_for(config.port),
    )
    pump = Pump(lambda: open_port(config.port, config.link), session, spool)
    agent = Agent(config, session, journal, known, Ledger(config.board, config.link, now), images)
    return agent, pump


def limits_for(port: str) -> Limits:
    """What a session takes on over this port: datagrams may overtake one another, bytes on a wire cannot."""
    return Limits(reorder_slack=REORDER_SLACK if port.startswith("udp:") else 0)


def carry(
    agent: Agent,
    pump: Pump,
    pace: Pace,
    *,
    report_every_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    cpu_clock: Callable[[], float] = time.process_time,
) -> None:
    """Runs until SIGTERM or SIGINT. `report_every_s` logs the agent's and the link's state that often."""
    limit_memory(agent.config.memory_bytes)
    agent.resume(clock())
    next_step_at = 0.0
    report_due_s = clock()
    with stop_signals() as stopped:
        while not stopped():
            now = clock()
            for event in pump.poll(now):
                _tell_of(event)
                agent.hear(event, now)
            agent.housekeeping(now)
            if agent.work is not None and now >= next_step_at:
                cpu_before_s = cpu_clock()
                try:
                    flops = agent.advance()
                except Exception as error:  # whatever a step raises, the link must live on
                    agent.fail(error, clock())
                else:
                    cost_s = pace.step_cpu_s(cpu_clock() - cpu_before_s, flops)
                    next_step_at = pace.next_step_at(now, cost_s)
                    agent.charge(cost_s, clock())
            if report_every_s is not None and now >= report_due_s:
                report_due_s = now + report_every_s
                say(log, "doing", **agent.doing(), link=link_view(pump.session.snapshot(now)))
            wake_s = next_step_at if agent.work is not None else now + LONGEST_WAIT_S
            if report_every_s is not None:
                wake_s = min(wake_s, report_due_s)
            wait([pump], max(0.0, min(wake_s, pump.wakeup(now)) - clock()))
    pump.close(clock())


def link_view(snapshot: LinkSnapshot) -> dict[str, Any]:
    """A link's counters and progress as plain values: one JSON object, with nothing that JSON lacks."""
    view = asdict(snapshot)
    heard_s = snapshot.now - snapshot.last_heard
    view["heard_s_ago"] = round(heard_s, 1) if math.isfinite(heard_s) else None
    view["objects"] = [
        {
            "kind": progress.kind,
            "incoming": progress.incoming,
            "bytes": progress.size,
            "fragments": progress.fragments,
            "held": progress.held,
            "eta_s": round(progress.eta_s, 1) if math.isfinite(progress.eta_s) else None,
        }
        for progress in snapshot.objects
    ]
    del view["now"], view["last_heard"]
    return view


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside the block SIGTERM and SIGINT only set the flag that the yielded function reads."""
    caught: list[int] = []

    def catch(number: int, _: Any) -> None:
        caught.append(number)

    before = {number: signal.signal(number, catch) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_of(event: object) -> None:
    """What happens to the port belongs in the log, by name."""
    if isinstance(event, PortDown):
        say(log, "port-lost", level=logging.ERROR, port=event.url, why=event.reason)
    elif isinstance(event, PortUp):
        say(log, "port-open", port=event.url)
    elif isinstance(event, SpoolFull):
        say(log, "disk-full", level=logging.ERROR, path=str(event.path), why=str(event.error))
    elif isinstance(event, PeerHeard):
        say(log, "ground-in-sight")
    elif isinstance(event, PeerSilent):
        say(log, "ground-out-of-sight")
