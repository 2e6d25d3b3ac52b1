"""What a session tells its application, and what it reports when asked: values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from onboard.wire.framing.frame import Frame


class Event(msgspec.Struct, frozen=True):
    """What a session tells its application."""


class ObjectEvent(Event, frozen=True):
    """An event about one object, this end's or the peer's."""

    digest: bytes


class Arrived(ObjectEvent, frozen=True):
    """An object is whole and its digest right. Make it durable, then `accept` it, or `refuse` it."""

    kind: int
    payload: bytes


class Delivered(ObjectEvent, frozen=True):
    """The peer holds this end's object durably."""


class Cancelled(ObjectEvent, frozen=True):
    """The peer will not take this end's object. `reason`: messages.Reason."""

    reason: int


class Withdrawn(ObjectEvent, frozen=True):
    """The peer withdrew its own object, which says nothing of this end's. `reason`: messages.Reason."""

    reason: int


class Refused(ObjectEvent, frozen=True):
    """This end refused an object of `size` bytes; `most` is allowed (0: unknown). `reason`:
    messages.Reason."""

    reason: int
    size: int = 0
    most: int = 0


class Expired(ObjectEvent, frozen=True):
    """An object, this end's or the peer's, was given up at its deadline."""


class UnknownPeer(Event, frozen=True):
    """Frames come in from `node`, which is not this link's peer; told once for each such node."""

    node: int


class WrongKey(Event, frozen=True):
    """Frames in the peer's name have wrong tags, one after the other, and no others come in. Either the two
    ends hold different keys, or the peer is away and somebody else sends. `was_right`: the peer was heard
    under this key since this end's start. Told once until a frame is authentic, and then seldom."""

    was_right: bool = False


class EncryptionMismatch(Event, frozen=True):
    """One end encrypts and the other does not, so no frame is taken. `encrypted`: the peer does. Told once
    until a frame is taken, and then seldom."""

    encrypted: bool


class ForeignFrames(Event, frozen=True):
    """Forged frames in the peer's name came in between the peer's own, and none was taken. The fields count
    them by what was wrong, since the last such event; told seldom."""

    bad_tags: int = 0
    unknown_keys: int = 0
    other_form: int = 0


class Evicted(ObjectEvent, frozen=True):
    """A half-received object that the peer no longer offers made room for a new one."""


class Corrupt(ObjectEvent, frozen=True):
    """All fragments of an object are held but its digest is wrong; all are requested again."""


class Message(Event, frozen=True):
    """The payload of a MSG."""

    payload: bytes


class PeerHeard(Event, frozen=True):
    """The peer is heard for the first time, after a silence, or after its restart (a new epoch)."""


class PeerUnreachable(Event, frozen=True):
    """The peer owes an answer and gives none; it is sent questions only, at intervals that grow to 2 s."""


class Rekeyed(Event, frozen=True):
    """Both ends agreed on a new salt (8 B) for their keys, after a start or a mismatch. Nothing leaves under
    it until `rekey` is called. `again`: the peer agreed before in this start of it, or a later one."""

    salt: bytes
    again: bool = False


class OutOfStep(Event, frozen=True):
    """All frames from the peer were refused for some time, for their tags or as `replays`: the ends disagree
    about salt or epochs, and agree on a new salt. Replays may also be a recording's, where no end answers.
    Told once until a frame is taken, and then seldom."""

    replays: bool


class TwoEnds(Event, frozen=True):
    """Two live ends hold the peer's key and state, or this end's. `take_turns`: they rekey in turn without
    end, which is throttled from now on; else frames from both come in. Told seldom."""

    take_turns: bool


class QuotaUsage(Event, frozen=True):
    """What was used of this end's quotas, and a little more: keep the last one for the next start's
    `Session`. `contact_bytes`: in this contact. `day`: (age in s, bytes sent), oldest first."""

    contact_bytes: int = 0
    day: tuple[tuple[float, int], ...] = ()


class Recut(ObjectEvent, frozen=True):
    """This end's object was refragmented: keep `fragment_bytes` for its next `offer`."""

    fragment_bytes: int


class Stuck(ObjectEvent, frozen=True):
    """Nothing of this end's object comes through, although the peer answers. Told once until more is held.
    `frame_bytes`: the length of the lost frames; `shorter_bytes`: that of those tried next, 0 for none."""

    frame_bytes: int
    shorter_bytes: int


class Echoed(Event, frozen=True):
    """This end's own frames come back to it. Told once."""


class GroupAnswer(Event, frozen=True):
    """The peer's REPORT, DONE or CANCEL on a broadcast object, for its `Broadcast`. `left_s`: on half-duplex,
    the rest of the turn that it came in."""

    frame: Frame
    left_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one object is. `eta_s`: seconds to its end at the link's rate and measured loss, gaps between
    contacts included, as if it had the link alone; inf where the contact plan ends before. `eta_passes`: the
    same in contacts, an open one included; None without a plan that reaches so far."""

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
    key_id: int  # of the key that seals this end's frames
    encrypted: bool  # whether they are, all but HELLO
    frames_sent: int
    bytes_sent: int
    frames_received: int  # authentic ones
    bytes_received: int
    malformed: int  # not a frame, or a payload that makes no sense
    bad_tags: int
    unknown_keys: int  # of an id that is not held here
    plain_dropped: int  # authentic but not encrypted, where this end encrypts
    encrypted_dropped: int  # encrypted, where this end does not encrypt
    replays: int
    unproven: int  # heard while no salt was in force
    hellos_sent: int
    hellos_received: int  # authentic ones
    hellos_stale: int  # of these, without a fresh answer
    misaddressed: int
    orphans: int  # about an unknown object
    duplicates: int  # fragments that were held already
    corrupt: int  # objects with a wrong digest
    refused: int  # objects of the peer that this end refused
    too_large: int  # of these, for their size
    expired: int  # objects of either end that were given up at their deadline
    fragments_sent: int
    fragments_resent: int
    repairs_sent: int  # sums of fragments, for what was likely lost
    fragments_received: int  # new ones
    loss_out: float  # share of this end's fragments that REPORTs showed as lost
    loss_in: float  # share of the peer's frames that were lost, by gaps in its seqs
    airtime_s: float  # transmitter on, keying included
    goodput_out_bps: float  # payload bits that the peer holds, over the time taken
    goodput_in_bps: float
    last_heard: float  # -inf before the first frame
    silent: bool
    in_contact: bool  # always true without a contact plan
    eta_out_s: float  # until all outgoing objects are whole
    eta_out_passes: int | None
    eta_in_s: float  # the same for incoming ones; both as in Progress
    eta_in_passes: int | None
    objects: tuple[Progress, ...]
