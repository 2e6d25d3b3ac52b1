"""What a session tells its application, and what it lets itself be asked: values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from onboard.wire.framing.frame import Frame


class Event(msgspec.Struct, frozen=True):
    """What a session tells its application."""


class ObjectEvent(Event, frozen=True):
    """What it tells of one object, ours or the peer's."""

    digest: bytes


class Arrived(ObjectEvent, frozen=True):
    """An object is whole and its digest right. Make it durable, then `accept` it, or `refuse` it."""

    kind: int
    payload: bytes


class Delivered(ObjectEvent, frozen=True):
    """The peer holds an object of ours durably."""


class Cancelled(ObjectEvent, frozen=True):
    """The peer will not take an object of ours. `reason`: messages.Reason."""

    reason: int


class Withdrawn(ObjectEvent, frozen=True):
    """The peer withdrew an object of its own, which says nothing of ours. `reason`: messages.Reason."""

    reason: int


class Refused(ObjectEvent, frozen=True):
    """This end did not take an object that the peer offered. `reason`: messages.Reason; `size` in bytes, of
    which an object may have `most` here (0: not known)."""

    reason: int
    size: int = 0
    most: int = 0


class Expired(ObjectEvent, frozen=True):
    """An object, ours or the peer's, was not delivered by its deadline and is given up."""


class UnknownPeer(Event, frozen=True):
    """Frames of `node`, which this link is not with, come in; told once for each such node."""

    node: int


class WrongKey(Event, frozen=True):
    """Frames that say they are the peer's have wrong tags, one after the other, and no others come in: the
    two ends hold different keys, or the peer is away and these are somebody else's. `was_right`: the peer was
    heard under this key since this end's start. Told once until one is authentic, and then seldom."""

    was_right: bool = False


class EncryptionMismatch(Event, frozen=True):
    """The peer's frames are `encrypted` and this end's are not, or the other way round, so none is taken.
    Told once until one is, and then seldom."""

    encrypted: bool


class ForeignFrames(Event, frozen=True):
    """Frames came in between the peer's that claim to be the peer's and are not, and none of them was taken.
    The fields count them by what was wrong, since the last such event; the event is told seldom."""

    bad_tags: int = 0
    unknown_keys: int = 0
    other_form: int = 0


class Evicted(ObjectEvent, frozen=True):
    """A half-received object that the peer no longer offers made room for a new one."""


class Corrupt(ObjectEvent, frozen=True):
    """All fragments of an object are there and its digest is wrong; all of them are asked for again."""


class Message(Event, frozen=True):
    """The payload of a MSG."""

    payload: bytes


class PeerHeard(Event, frozen=True):
    """The peer is heard for the first time, after a silence, or after its restart (a new epoch)."""


class PeerUnreachable(Event, frozen=True):
    """The peer owes an answer and does not give it; it is asked ever more slowly, down to every 2 s, and sent
    nothing else."""


class Rekeyed(Event, frozen=True):
    """Both ends agreed on a new salt (8 B) for their keys, as one of them has started, or they disagreed.
    `rekey` the session; until then nothing leaves under it. `again`: the peer has agreed before in this start
    of it, or in a later one."""

    salt: bytes
    again: bool = False


class OutOfStep(Event, frozen=True):
    """All frames of the peer's were refused for some time, for their tags or as `replays`: the two ends
    disagree about salt or epochs, and agree on a new salt. Replays may also be a recording's, where no end
    answers. The event is told once until a frame is taken, and then seldom."""

    replays: bool


class TwoEnds(Event, frozen=True):
    """Two live ends hold the peer's key and state, or this one's. `take_turns`: they agree anew without end,
    which is slowed down from now on, and told seldom; else frames of one of them come beside those of the
    other."""

    take_turns: bool


class QuotaUsage(Event, frozen=True):
    """What was used of this end's allowances, and a little more: keep the last of these for the next start's
    `Session`. `contact_bytes`: in this contact. `day`: how long ago (s) how many bytes left, oldest first."""

    contact_bytes: int = 0
    day: tuple[tuple[float, int], ...] = ()


class Recut(ObjectEvent, frozen=True):
    """An object of ours is cut anew, in fragments of so many bytes: keep that for the next `offer` of it."""

    fragment_bytes: int


class Stuck(ObjectEvent, frozen=True):
    """Nothing comes through of an object of ours, although the peer answers. Told once until more is held.

    `frame_bytes`: length of the frames that are lost; `shorter_bytes`: of those that are tried next, 0 where
    there are no shorter ones."""

    frame_bytes: int
    shorter_bytes: int


class Echoed(Event, frozen=True):
    """This end's own frames come back to it. Told once."""


class GroupAnswer(Event, frozen=True):
    """The peer's REPORT, DONE or CANCEL on a broadcast object: its `Broadcast` is to hear of it. `left_s`:
    half-duplex: until the turn that it came in is over."""

    frame: Frame
    left_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one object is. `eta_s`: seconds to the end at the link's rate and measured loss, the time
    between contacts included, as if it had the link alone; inf where the contact plan ends before.
    `eta_passes`: in so many contacts, an open one included; None without a plan that reaches so far."""

    digest: bytes
    kind: int
    incoming: bool
    size: int
    fragments: int
    held: int
    eta_s: float
    eta_passes: int | None = None


@dataclass(frozen=True, slots=True)
class LinkSnapshot:
    """What one end of a link did and saw since its start. Bytes are on the wire, framing included."""

    now: float
    epoch: int
    peer_epoch: int
    key_id: int  # of the key that this end's frames are sealed with
    encrypted: bool  # whether they are, all but HELLO
    frames_sent: int
    bytes_sent: int
    frames_received: int  # authentic ones
    bytes_received: int
    malformed: int  # no frame, or a payload that makes no sense
    bad_tags: int
    unknown_keys: int  # under the id of a key that is not held here
    plain_dropped: int  # authentic and not encrypted, where this end's are
    encrypted_dropped: int  # encrypted, where this end's are not
    replays: int
    unproven: int  # heard while no salt was agreed upon
    hellos_sent: int
    hellos_received: int  # authentic ones
    hellos_stale: int  # of them without an answer that proves when they were made
    misaddressed: int
    orphans: int  # about an object that is not known here
    duplicates: int  # fragments that were held already
    corrupt: int  # objects with a wrong digest
    refused: int  # objects of the peer's that this end did not take
    too_large: int  # of these, for their size
    expired: int  # objects, ours or the peer's, that were given up at their deadline
    fragments_sent: int
    fragments_resent: int
    repairs_sent: int  # sums of fragments, for what was likely lost
    fragments_received: int  # new ones
    loss_out: float  # share of our fragments that REPORTs showed as lost
    loss_in: float  # share of the peer's frames that were not heard, by gaps in its seq
    airtime_s: float  # transmitter on, keying included
    goodput_out_bps: float  # payload bits that the peer holds, over the time that it took
    goodput_in_bps: float
    last_heard: float  # -inf before the first frame
    silent: bool
    in_contact: bool  # always, without a contact plan
    eta_out_s: float  # until all that goes out is there, and
    eta_out_passes: int | None
    eta_in_s: float  # all that comes in; as in Progress
    eta_in_passes: int | None
    objects: tuple[Progress, ...]
