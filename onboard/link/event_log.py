"""Each event of a link that an operator should know is one line of the log, the same in every program."""

from __future__ import annotations

import logging
from typing import Any

from onboard.console.log import say
from onboard.link.peer import LocalPortTaken, OverShare, PeerMoved, PeerUnknown
from onboard.link.ports.framing import LineFault
from onboard.link.pump import PortDown, PortUp, PumpEvent
from onboard.link.spool import SpoolFull
from onboard.wire.events import (
    Echoed,
    EncryptionMismatch,
    Expired,
    ForeignFrames,
    OutOfStep,
    PeerHeard,
    PeerUnreachable,
    Refused,
    Stuck,
    TwoEnds,
    UnknownPeer,
    WrongKey,
)
from onboard.wire.messages import Reason

log = logging.getLogger(__name__)


def log_link_event(event: PumpEvent, **whose: Any) -> None:
    """Logs one event of a port, a spool, a peer or an object; `whose` names the link it happened on."""
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
