"""The states of one object at its sender and at its receiver, and the events that change them.

Two tables give every transition; docs/wire.md draws them as diagrams. Whatever a peer may send has an entry
in every state in which it can come; any other event is a bug in this program."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class OutgoingState(Enum):
    """What the sender knows of an object that it sends."""

    QUEUED = "queued"
    """No OFFER of the object has left in this epoch."""
    OFFERED = "offered"
    """An OFFER has left and no REPORT has answered it; on a long path some fragments follow unasked."""
    SENDING = "sending"
    """The receiver takes the object: fragments, repairs and polls leave."""
    WHOLE = "whole"
    """The receiver holds every fragment, and its application is storing the object."""
    UNKNOWN = "unknown"
    """The receiver does not know the object, or has forgotten it: an OFFER is due."""
    WITHDRAWN = "withdrawn"
    """This end gave the object up: CANCEL leaves until the receiver answers it."""
    WITHDRAWN_WHOLE = "withdrawn-whole"
    """As WITHDRAWN, but the receiver holds every fragment: it is asked at the pace of WHOLE."""
    ENDED = "ended"
    """Nothing more of the object leaves."""


class OutgoingEvent(Enum):
    """What happens to an object that is being sent."""

    OFFER_SENT = "OFFER leaves"
    """This end offers the object."""
    HOLES_REPORTED = "REPORT with holes"
    """The receiver lacks some fragments."""
    WHOLE_REPORTED = "REPORT without holes"
    """The receiver lacks none."""
    UNKNOWN_REPORTED = "REPORT says unknown"
    """The receiver heard the last OFFER's seq, and knows no such object."""
    WITHDRAW = "withdrawn or expired"
    """The application cancels the object, or its deadline passes, when the receiver may have heard of it."""
    END = "end"
    """DONE or CANCEL came, or the answer to this end's CANCEL; or the receiver never heard of the object; or
    it goes on under another id in fragments of another length."""


class IncomingState(Enum):
    """What the receiver has of an object that the peer offers or has offered."""

    RESTING = "resting"
    """Some of the object is held, but the peer offers it under no id now: no REPORT on it leaves."""
    RECEIVING = "receiving"
    """The peer offers the object: fragments are taken, and REPORTs say which ones are held."""
    ARRIVED = "arrived"
    """The object is whole and its digest right; the application has it and has not accepted it yet."""
    ENDED = "ended"
    """Only the fact that the object was accepted or refused is remembered."""


class IncomingEvent(Enum):
    """What happens to an object that is being received."""

    BOUND = "OFFER, DATA or POLL"
    """A frame from the peer names the object by an id."""
    UNBOUND = "peer restarts, or reuses the id"
    """From now on the id means another object, or none."""
    VERIFIED = "digest right"
    """The last missing fragment came."""
    CORRUPT = "digest wrong"
    """The last missing fragment came, and nothing tells which one is wrong: all are requested again."""
    END = "end"
    """The object was accepted, refused, withdrawn by the peer or evicted, or its deadline passed."""


_O, _OE = OutgoingState, OutgoingEvent
_ANSWERED = {  # a receiver may have any of an object, or none, since before this end's restart
    _OE.HOLES_REPORTED: _O.SENDING,
    _OE.WHOLE_REPORTED: _O.WHOLE,
    _OE.UNKNOWN_REPORTED: _O.UNKNOWN,
    _OE.END: _O.ENDED,
}
_GIVEN_UP = {_OE.HOLES_REPORTED: _O.WITHDRAWN, _OE.WHOLE_REPORTED: _O.WITHDRAWN_WHOLE, _OE.END: _O.ENDED}
OUTGOING: Mapping[OutgoingState, Mapping[OutgoingEvent, OutgoingState]] = {
    _O.QUEUED: {_OE.OFFER_SENT: _O.OFFERED, **_ANSWERED},
    _O.OFFERED: {_OE.OFFER_SENT: _O.OFFERED, **_ANSWERED, _OE.WITHDRAW: _O.WITHDRAWN},
    _O.SENDING: {_OE.OFFER_SENT: _O.SENDING, **_ANSWERED, _OE.WITHDRAW: _O.WITHDRAWN},  # the OFFER was due
    _O.WHOLE: {_OE.OFFER_SENT: _O.WHOLE, **_ANSWERED, _OE.WITHDRAW: _O.WITHDRAWN_WHOLE},  # likewise
    _O.UNKNOWN: {_OE.OFFER_SENT: _O.OFFERED, **_ANSWERED, _OE.WITHDRAW: _O.WITHDRAWN},
    _O.WITHDRAWN: _GIVEN_UP,
    _O.WITHDRAWN_WHOLE: _GIVEN_UP,
    _O.ENDED: {},
}
_I, _IE = IncomingState, IncomingEvent
_HALF_HELD = {
    _IE.BOUND: _I.RECEIVING,
    _IE.UNBOUND: _I.RESTING,
    _IE.VERIFIED: _I.ARRIVED,  # of a resting one, where a broadcast brought what was missing
    _IE.END: _I.ENDED,
}
INCOMING: Mapping[IncomingState, Mapping[IncomingEvent, IncomingState]] = {
    _I.RESTING: {**_HALF_HELD, _IE.CORRUPT: _I.RESTING},
    _I.RECEIVING: {**_HALF_HELD, _IE.CORRUPT: _I.RECEIVING},
    _I.ARRIVED: {_IE.BOUND: _I.ARRIVED, _IE.UNBOUND: _I.ARRIVED, _IE.END: _I.ENDED},
    _I.ENDED: {},
}
