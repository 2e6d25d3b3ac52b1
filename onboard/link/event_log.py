"""Each link event that an operator should know is one line of the log, the same in every program."""

from __future__ import annotations

import logging
from logging import ERROR, WARNING
from typing import Any

from onboard.console.log import say
from onboard.link.peer import LocalPortTaken, OverShare, PeerMoved, PeerUnknown
from onboard.link.ports.port import LineFault
from onboard.link.pump import PortDown, PortUp, PumpEvent
from onboard.link.spool import SpoolFull
from onboard.wire import events as wire
from onboard.wire.messages import Reason

log = logging.getLogger(__name__)

_UNKNOWN = "nothing is sent before the other end is heard; its port must say where this one is"
_OTHER_KEY = "the two ends hold different keys, or these frames are somebody else's"
_OTHER_KEY_NOW = (
    "the other end was heard under this key: it has started with another since, or these frames are somebody "
    "else's"
)
_ENCRYPTION = "set link.encrypt in NODE.toml and encrypt of its [[node]] in mission.toml alike"
_FOREIGN = (
    "frames that are not the other end's came between such as are: another radio or program, or somebody who "
    "plays them in; nothing of them is taken"
)
_OUT_OF_STEP = (
    "the two ends disagree about salt or epochs, as after one agreed with a copy of the other; they agree "
    "anew"
)
_CLONED = (
    "two live programs hold this link's key (a cloned card, a copied folder, a restored machine): stop one, "
    "or give each board a folder and a key of its own"
)
_ECHO = "this end hears its own frames: an echo, as of two wires or a modem's local echo"
_STUCK = (
    "frames of {} B do not arrive and short ones do: too long, as the path's MTU is smaller, or the line is "
    "noisier than its profile or eats some bytes"
)


def log_link_event(event: PumpEvent, **whose: Any) -> None:
    """Log one event of a port, a spool, a peer or an object; `whose` names its link."""
    match event:
        case PortDown(url, why, times):
            more = {"times": times} if times > 1 else {}
            say(log, "port-lost", level=ERROR, **whose, port=url, why=why, **more)
        case PortUp(url, tries):
            say(log, "port-open", **whose, port=url, **({"tries": tries} if tries > 1 else {}))
        case PeerUnknown(url):
            say(log, "peer-unknown", level=WARNING, **whose, port=url, why=_UNKNOWN)
        case PeerMoved(url, peer):
            say(log, "peer-at", **whose, port=url, at=peer)
        case LocalPortTaken(url, number, why):
            say(log, "local-port-taken", level=WARNING, **whose, port=url, local_port=number, why=why)
        case SpoolFull(path, name, error):
            say(log, "disk-full", level=ERROR, **whose, object=name.hex(), path=str(path), why=str(error))
        case OverShare(what, rate, bound):
            say(log, "over-its-share", level=WARNING, **whose, what=what, rate_per_s=rate, bound_per_s=bound)
        case LineFault(fault, why):
            say(log, "line-fault", level=WARNING, **whose, fault=fault, why=why)
        case wire.Echoed():
            say(log, "line-fault", level=WARNING, **whose, fault="echo", why=_ECHO)
        case wire.Refused(name, reason, size, most):
            more = {"bytes": size, "limit_bytes": most} if most else {}
            why = Reason(reason).name.lower()
            say(log, "refused", level=WARNING, **whose, object=name.hex(), why=why, **more)
        case wire.Expired(name):
            say(log, "expired", level=WARNING, **whose, object=name.hex())
        case wire.UnknownPeer(node):
            say(log, "unknown-peer", level=WARNING, **whose, source=node)
        case wire.WrongKey(was_right):
            why = _OTHER_KEY_NOW if was_right else _OTHER_KEY
            say(log, "wrong-key", level=ERROR, **whose, was_right=was_right, why=why)
        case wire.EncryptionMismatch(encrypted):
            say(log, "encryption-differs", level=ERROR, **whose, peer_encrypts=encrypted, why=_ENCRYPTION)
        case wire.ForeignFrames(tags, keys, form):
            numbers = {"bad_tags": tags, "unknown_keys": keys, "other_form": form}
            say(log, "foreign-frames", level=WARNING, **whose, **numbers, why=_FOREIGN)
        case wire.OutOfStep(replays):
            refused = "replays" if replays else "tags"
            say(log, "out-of-step", level=WARNING, **whose, refused=refused, why=_OUT_OF_STEP)
        case wire.TwoEnds(take_turns):
            say(log, "cloned-or-restored", level=ERROR, **whose, take_turns=take_turns, why=_CLONED)
        case wire.Stuck(name, size, shorter):
            sizes = {"frame_bytes": size, "shorter_bytes": shorter}
            say(log, "stuck", level=WARNING, **whose, object=name.hex(), **sizes, why=_STUCK.format(size))
        case wire.PeerHeard():
            say(log, "in-sight", **whose)
        case wire.PeerUnreachable():
            say(log, "out-of-sight", **whose)
