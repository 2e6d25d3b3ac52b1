"""One end of one link in real time: its keys, spool, session and port, made from its durable `LinkState`.

Every program builds its links here. It renews a link as after a restart where it must, as when a session has
used up its seqs: in another epoch, and from what is on the disk."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

from onboard.config import LinkEnd
from onboard.console.log import say
from onboard.link.ports.port import Port, PortEvent, line_fault
from onboard.link.ports.schemes import facts_of, opener
from onboard.link.pump import Pump, PumpEvent
from onboard.link.recording import Recorder
from onboard.link.spool import Spool
from onboard.runtime.contact_plan import ContactPlan
from onboard.storage.journal import LinkState
from onboard.storage.keys import exposure, load_keys
from onboard.wire import events as wire
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import Event
from onboard.wire.messages import Reason
from onboard.wire.session import Session

log = logging.getLogger(__name__)

PortOpener = Callable[[], Port | None]


@dataclass(frozen=True)
class EndpointConfig:
    """The parts of an endpoint that do not change while its program runs."""

    node: int
    end: LinkEnd
    """This end's configuration, from NODE.toml or mission.toml."""
    folder: Path
    """The program's folder, which keeps a copy of the last readable contact plan."""
    spool: Path
    """The folder of half-received objects."""
    limits: Limits
    label: Mapping[str, Any]
    """The fields that name this link in a log line."""
    taken_is_all: bool = False
    """Whether the program knows every object that it has taken; else the spool's list of finished objects
    says so, as far as the program still knows of them."""
    recorder: Recorder | None = None
    opener: PortOpener | None = None
    """Opens the port; by default the one at the URL of `end`."""
    nonce: Callable[[int], bytes] | None = None
    """As in `Security`; by default the operating system's generator."""


class Endpoint:
    """Owns the pump of one link. The first `poll` opens the port; a missing one is waited for.

    `state`: with the epoch of this start, durable already. `taken`: digests of the objects that the program
    has acted on for good, the oldest first; the spool forgets all others that it holds for finished. Raises
    ConfigError for an unusable contact plan, BadKey, OSError."""

    def __init__(
        self, config: EndpointConfig, state: LinkState, taken: Collection[bytes], now: float
    ) -> None:
        self.config = config
        end = config.end
        self._contacts = None
        if end.contacts_path is not None:
            self._contacts = ContactPlan(end.contacts_path, config.node, end.id, config.folder)
        self.pump = self._pump(state, taken, now)
        self.suspended_until = -math.inf
        """A link that failed is neither heard nor served until then, when it is renewed."""

    @property
    def is_suspended(self) -> bool:
        return self.suspended_until > -math.inf

    @property
    def session(self) -> Session:
        return self.pump.session

    def renew(self, state: LinkState, taken: Collection[bytes], now: float) -> None:
        """Renew the link as a restart does; all offers on it must be repeated. Raises BadKey, OSError."""
        with contextlib.suppress(Exception):  # nothing of a failed link is sure to work
            self.pump.close(now)
        self.pump = self._pump(state, taken, now)
        self.suspended_until = -math.inf

    def wakeup(self, now: float) -> float:
        return max(now, self.suspended_until) if self.is_suspended else self.pump.wakeup(now)

    def poll(self, now: float, wall_s: float) -> list[Event]:
        """Poll the pump and log its events; return those that the program has to act on. `wall_s`: Unix
        seconds, for the contact plan. Raises SeqExhausted, after which `renew` is due."""
        if self._contacts is not None:
            self._contacts.keep(self.session, now, wall_s)
        events: list[Event] = []
        for event in self.pump.poll(now):
            log_link_event(event, **self.config.label)
            if not isinstance(event, PortEvent):
                events.append(event)
        return events

    def _pump(self, state: LinkState, taken: Collection[bytes], now: float) -> Pump:
        config, end = self.config, self.config.end
        keys = load_keys(end.key_path)
        spool = Spool(config.spool, config.limits.max_incoming_bytes)
        spool.retain(taken)
        done = taken if config.taken_is_all else spool.finished()
        session = Session(
            Identity(config.node, end.id, primary=config.node < end.id),
            Medium(end.link, wire_bytes=facts_of(end.port).wire_bytes),
            Security(keys, nonce=config.nonce or os.urandom, encrypted=end.encrypt),
            SessionState(epoch=state.epoch, done=done, spent=state.spent),
            limits=config.limits,
            now=now,
        )
        tap = None
        if config.recorder is not None:
            tap = config.recorder.link(
                end.port, end.link, local=config.node, peer=end.id, encrypted=end.encrypt
            )
        return Pump(config.opener or opener(end.port, end.link, tap), session, spool)


def tell_exposures(ends: Collection[LinkEnd], state: Path) -> None:
    """Log which key files, and for an encrypted link which state, other users of this computer may read."""
    told = [(end.key_path, exposure(end.key_path, "key"), "key") for end in ends]
    if any(end.encrypt for end in ends):
        told.append((state, exposure(state, "state"), "state"))
    for path, why, what in told:
        if why:
            say(log, "exposed", level=logging.WARNING, what=what, path=str(path), why=why)


OBJECT_SHARE = 16
"""A board takes objects of up to 1/16 of its memory budget: it holds one up to five times for a moment, as it
comes, is packed once more to see whether it was asked before, and goes to the training."""
ALL_SHARE = 8  # all links together take 1/8 of the budget
LEAST_BYTES = 2 * 2**20  # in any case: LeNet-5 in float32 has 1.7 MB
OBJECTS = 8  # at a time, on one link; honest ends have two on the way


def board_limits(end: LinkEnd, budget_bytes: int, links: int = 1) -> Limits:
    """Return the limits of one of a board's `links` links, at a memory budget of `budget_bytes`."""
    object_bytes = max(LEAST_BYTES, budget_bytes // OBJECT_SHARE)
    return _limits(end, object_bytes, max(object_bytes, budget_bytes // ALL_SHARE // links))


def ground_limits(end: LinkEnd, model_bytes: int) -> Limits:
    """Return the ground's limits for a model of `model_bytes` in float32: no honest update is much larger."""
    object_bytes = max(LEAST_BYTES, 2 * model_bytes)
    return _limits(end, object_bytes, 2 * object_bytes)


def _limits(end: LinkEnd, object_bytes: int, all_bytes: int) -> Limits:
    """Incoming objects are held in memory, and an OFFER may claim 4 GiB: one that is too large is refused
    before a byte of it is held. The spool has the same limit, so that a restarted agent never reads more."""
    return replace(
        facts_of(end.port).limits,
        bytes_per_contact=end.bytes_per_contact, bytes_per_day=end.bytes_per_day,
        max_object_bytes=object_bytes, max_incoming=OBJECTS, max_incoming_bytes=all_bytes,
    )  # fmt: skip


def log_link_event(event: PumpEvent, **whose: Any) -> None:
    """Log one event of a port, a spool, a peer or an object; `whose` names its link."""
    if (line := _line_of(event)) is not None:
        say(log, line.name, level=line.level, **whose, **line.fields)


def _line_of(event: PumpEvent) -> PortEvent | None:
    match event:
        case PortEvent():
            return event
        case wire.Echoed():
            why = "this end hears its own frames: an echo, as of two wires or a modem's local echo"
            return line_fault("echo", why)
        case wire.Refused(name, reason, size, most):
            more = {"bytes": size, "limit_bytes": most} if most else {}
            why = Reason(reason).name.lower()
            return PortEvent("refused", {"object": name.hex(), "why": why, **more})
        case wire.Expired(name):
            return PortEvent("expired", {"object": name.hex()})
        case wire.UnknownPeer(node):
            return PortEvent("unknown-peer", {"source": node})
        case wire.WrongKey(was_right):
            why = "the two ends hold different keys, or these frames are somebody else's"
            if was_right:
                why = (
                    "the other end was heard under this key: it has started with another since, or these "
                    "frames are somebody else's"
                )
            return PortEvent("wrong-key", {"was_right": was_right, "why": why}, ERROR)
        case wire.EncryptionMismatch(encrypted):
            why = "set link.encrypt in NODE.toml and encrypt of its [[node]] in mission.toml alike"
            return PortEvent("encryption-differs", {"peer_encrypts": encrypted, "why": why}, ERROR)
        case wire.ForeignFrames(tags, keys, form):
            why = (
                "frames that are not the other end's came between such as are: another radio or program, or "
                "somebody who plays them in; nothing of them is taken"
            )
            numbers = {"bad_tags": tags, "unknown_keys": keys, "other_form": form}
            return PortEvent("foreign-frames", {**numbers, "why": why})
        case wire.OutOfStep(replays):
            why = (
                "the two ends disagree about salt or epochs, as after one agreed with a copy of the other; "
                "they agree anew"
            )
            return PortEvent("out-of-step", {"refused": "replays" if replays else "tags", "why": why})
        case wire.TwoEnds(take_turns):
            why = (
                "two live programs hold this link's key (a cloned card, a copied folder, a restored "
                "machine): stop one, or give each board a folder and a key of its own"
            )
            return PortEvent("cloned-or-restored", {"take_turns": take_turns, "why": why}, ERROR)
        case wire.Stuck(name, size, shorter):
            why = (
                f"frames of {size} B do not arrive and short ones do: too long, as the path's MTU is "
                "smaller, or the line is noisier than its profile or eats some bytes"
            )
            sizes = {"frame_bytes": size, "shorter_bytes": shorter}
            return PortEvent("stuck", {"object": name.hex(), **sizes, "why": why})
        case wire.PeerHeard():
            return PortEvent("in-sight", {}, INFO)
        case wire.PeerUnreachable():
            return PortEvent("out-of-sight", {}, INFO)
        case _:
            return None
