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
from onboard.config import NodeConfig
from onboard.console.log import say
from onboard.link import Spool, framing_of, opener, wire_bytes
from onboard.link.pump import LineFault, OfPort, PortDown, PortUp, Pump, PumpEvent, SpoolFull, wait
from onboard.link.recorder import Recorder
from onboard.link.share import OverShare
from onboard.link.whereabouts import LocalPortTaken, PeerMoved, PeerUnknown
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
from onboard.wire.events import (
    Echoed,
    EncryptionMismatch,
    Event,
    Expired,
    ForeignFrames,
    Limits,
    OutOfStep,
    PeerHeard,
    PeerUnreachable,
    Refused,
    Stuck,
    TwoEnds,
    UnknownPeer,
    WrongKey,
)
from onboard.wire.medium.timing import LEAD_BYTES
from onboard.wire.messages import Reason
from onboard.wire.presence import QUIET_S
from onboard.wire.security.seal import SeqExhausted, next_epoch
from onboard.wire.session import Session

log = logging.getLogger(__name__)

GROUND = 0  # the ground station's node number in a frame
LONGEST_WAIT_S = 5.0
MOST_UNTOLD = 256  # events that wait for the disk before the link is heard no further
RETRY_S = 5.0  # after a write that failed, such as on a full disk
MEMORY_AGAIN_S = 1.0  # after the board had no memory for the agent
REORDER_SLACK = 3  # TCP's duplicate threshold (RFC 5681, section 3.2)


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
        node=config.id,
        peer=GROUND,
        key=load_keys(end.key_path),
        link=end.link,
        master=False,
        epoch=known.epoch,
        nonce=os.urandom,
        encrypted=end.encrypt,
        done=done,
        spent=known.spent,
        wire_bytes=partial(wire_bytes, end.port),
        now=now,
        limits=_limits(config),
    )


def _limits(config: NodeConfig) -> Limits:
    end = config.ground
    limits = limits_for(end.port, end.bytes_per_contact, end.bytes_per_day)
    return admission.within(limits, config.memory_bytes)


def limits_for(port: str, bytes_per_contact: float = math.inf, bytes_per_day: float = math.inf) -> Limits:
    """What a session takes on over this port: datagrams may overtake one another, and their ends move; bytes
    on a wire cannot, and there a burst begins with delimiters."""
    is_udp = framing_of(port)[0] == "datagram"
    return Limits(
        bytes_per_contact=bytes_per_contact,
        bytes_per_day=bytes_per_day,
        lead_bytes=0 if is_udp else LEAD_BYTES,
        quiet_s=QUIET_S if is_udp else math.inf,
        reorder_slack=REORDER_SLACK if is_udp else 0,
    )


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
                    tell_of_link(event, peer="ground")
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


def tell_of_link(event: PumpEvent, **whose: Any) -> None:
    """Logs what befell a port, a spool, a peer or an object; `whose` says on which link."""
    if isinstance(event, PortDown):
        times = {"times": event.times} if event.times > 1 else {}
        say(log, "port-lost", level=logging.ERROR, **whose, port=event.url, why=event.reason, **times)
    elif isinstance(event, PortUp):
        say(log, "port-open", **whose, port=event.url, **({"tries": event.tries} if event.tries > 1 else {}))
    elif isinstance(event, PeerUnknown):
        say(
            log, "peer-unknown", level=logging.WARNING, **whose, port=event.url,
            why="nothing is sent before the other end is heard; its port must say where this one is",
        )  # fmt: skip
    elif isinstance(event, PeerMoved):
        say(log, "peer-at", **whose, port=event.url, at=event.peer)
    elif isinstance(event, LocalPortTaken):
        say(
            log, "local-port-taken", level=logging.WARNING, **whose, port=event.url,
            local_port=event.local_port, why=event.why,
        )  # fmt: skip
    elif isinstance(event, SpoolFull):
        say(
            log, "disk-full", level=logging.ERROR, **whose, object=event.digest.hex(), path=str(event.path),
            why=str(event.error),
        )  # fmt: skip
    elif isinstance(event, OverShare):
        say(
            log, "over-its-share", level=logging.WARNING, **whose, what=event.what, rate_per_s=event.rate,
            bound_per_s=event.bound,
        )  # fmt: skip
    elif isinstance(event, Refused):
        numbers = {"bytes": event.size, "limit_bytes": event.most} if event.most else {}
        say(
            log, "refused", level=logging.WARNING, **whose, object=event.digest.hex(),
            why=Reason(event.reason).name.lower(), **numbers,
        )  # fmt: skip
    elif isinstance(event, Expired):
        say(log, "expired", level=logging.WARNING, **whose, object=event.digest.hex())
    elif isinstance(event, UnknownPeer):
        say(log, "unknown-peer", level=logging.WARNING, **whose, source=event.node)
    elif isinstance(event, WrongKey):
        say(log, "wrong-key", level=logging.ERROR, **whose, was_right=event.was_right, why=_why_wrong(event))
    elif isinstance(event, EncryptionMismatch):
        say(
            log, "encryption-differs", level=logging.ERROR, **whose, peer_encrypts=event.encrypted,
            why="set link.encrypt in NODE.toml and encrypt of its [[node]] in mission.toml alike",
        )  # fmt: skip
    elif isinstance(event, ForeignFrames):
        say(
            log, "foreign-frames", level=logging.WARNING, **whose, bad_tags=event.bad_tags,
            unknown_keys=event.unknown_keys, other_form=event.other_form,
            why="frames that are not the other end's came between such as are: another radio or program, or "
            "somebody who plays them in; nothing of them is taken",
        )  # fmt: skip
    elif isinstance(event, OutOfStep):
        say(
            log, "out-of-step", level=logging.WARNING, **whose,
            refused="replays" if event.replays else "tags",
            why="the two ends disagree about salt or epochs, as after one agreed with a copy of the other; "
            "they agree anew",
        )  # fmt: skip
    elif isinstance(event, TwoEnds):
        say(
            log, "cloned-or-restored", level=logging.ERROR, **whose, take_turns=event.take_turns,
            why="two live programs hold this link's key (a cloned card, a copied folder, a restored machine)"
            ": stop one, or give each board a folder and a key of its own",
        )  # fmt: skip
    elif isinstance(event, LineFault):
        say(log, "line-fault", level=logging.WARNING, **whose, fault=event.fault, why=event.why)
    elif isinstance(event, Echoed):
        why = "this end hears its own frames: an echo, as of two wires or a modem's local echo"
        say(log, "line-fault", level=logging.WARNING, **whose, fault="echo", why=why)
    elif isinstance(event, Stuck):
        say(
            log, "stuck", level=logging.WARNING, **whose, object=event.digest.hex(),
            frame_bytes=event.frame_bytes, shorter_bytes=event.shorter_bytes, why=_why_stuck(event),
        )  # fmt: skip
    elif isinstance(event, PeerHeard):
        say(log, "in-sight", **whose)
    elif isinstance(event, PeerUnreachable):
        say(log, "out-of-sight", **whose)


def _why_wrong(event: WrongKey) -> str:
    others = "these frames are somebody else's"
    if event.was_right:
        return f"the other end was heard under this key: it has started with another since, or {others}"
    return f"the two ends hold different keys, or {others}"


def _why_stuck(event: Stuck) -> str:
    lost = f"frames of {event.frame_bytes} B do not arrive and short ones do"
    causes = "the path's MTU is smaller, or the line is noisier than its profile or eats some bytes"
    return f"{lost}: too long, as {causes}"
