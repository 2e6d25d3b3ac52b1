"""The life of one object, at the end that sends it and at the end that receives it.

Everything that changes the state of an object is an event here, and a table says what follows from each:
whatever a peer may send has an entry in every state in which it can come, and any other event is an error of
this program. docs/wire.md shows both tables as diagrams.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class OutgoingState(Enum):
    """What the sender knows of an object that it sends."""

    QUEUED = "queued"
    """The object waits: no OFFER of it has left in this epoch."""
    OFFERED = "offered"
    """An OFFER has left and no REPORT has answered it; on a long way some fragments follow unasked."""
    SENDING = "sending"
    """The receiver takes the object: fragments, repairs and questions leave."""
    WHOLE = "whole"
    """The receiver holds every fragment, and its application is storing the object."""
    UNKNOWN = "unknown"
    """The receiver does not know the object, or no longer: an OFFER is due."""
    WITHDRAWN = "withdrawn"
    """This end gave the object up: CANCEL leaves until the receiver answers it."""
    WITHDRAWN_WHOLE = "withdrawn-whole"
    """As WITHDRAWN, while the receiver holds every fragment: it is asked at the pace of WHOLE."""
    ENDED = "ended"
    """Nothing of the object leaves any more."""


class OutgoingEvent(Enum):
    """What befalls an object that is being sent."""

    OFFER_SENT = "OFFER leaves"
    """This end offers the object."""
    HOLES_REPORTED = "REPORT with holes"
    """The receiver lacks some fragments."""
    WHOLE_REPORTED = "REPORT without holes"
    """The receiver lacks none."""
    UNKNOWN_REPORTED = "REPORT says unknown"
    """The receiver heard the last OFFER's number, and knows no such object."""
    WITHDRAW = "withdrawn or expired"
    """The application cancels the object, or its deadline passes, when the receiver may have heard of it."""
    END = "end"
    """DONE or CANCEL came, or the answer to this end's CANCEL; or the receiver never heard of the object; or
    the object goes on in fragments of another length, under another id."""


class IncomingState(Enum):
    """What the receiver has of an object that the peer offers, or offered before."""

    RESTING = "resting"
    """Some of the object is held, and the peer offers it under no id now: nothing is said of it."""
    RECEIVING = "receiving"
    """The peer offers the object: fragments are taken, and REPORTs say which ones are held."""
    ARRIVED = "arrived"
    """The object is whole and its digest right: the application has it and has not accepted it yet."""
    ENDED = "ended"
    """Nothing of the object is kept here any more, but that it was accepted or refused."""


class IncomingEvent(Enum):
    """What befalls an object that is being received."""

    BOUND = "OFFER, DATA or POLL"
    """A frame of the peer's names the object by an id."""
    UNBOUND = "peer restarts, or reuses the id"
    """The id means another object, or none, from now on."""
    VERIFIED = "digest right"
    """The last missing fragment came."""
    CORRUPT = "digest wrong"
    """The last missing fragment came, and nothing tells which of them is wrong: all are asked for again."""
    END = "end"
    """The application accepted or refused the object, the peer withdrew it, its deadline passed, or it gave
    way to another one."""


_O, _OE = OutgoingState, OutgoingEvent
_ANSWERED = {  # a receiver may have any of an object, or none, since before this end's restart
    _OE.HOLES_REPORTED: _O.SENDING,
    _OE.WHOLE_REPORTED: _O.WHOLE,
    _OE.UNKNOWN_REPORTED: _O.UNKNOWN,
    _OE.END: _O.ENDED,
}
_GIVEN_UP = {
    _OE.HOLES_REPORTED: _O.WITHDRAWN,
    _OE.WHOLE_REPORTED: _O.WITHDRAWN_WHOLE,
    _OE.END: _O.ENDED,
}
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
INCOMING: Mapping[IncomingState, Mapping[IncomingEvent, IncomingState]] = {
    _I.RESTING: {
        _IE.BOUND: _I.RECEIVING,
        _IE.UNBOUND: _I.RESTING,
        _IE.VERIFIED: _I.ARRIVED,  # a broadcast brought what was missing
        _IE.CORRUPT: _I.RESTING,  # likewise
        _IE.END: _I.ENDED,
    },
    _I.RECEIVING: {
        _IE.BOUND: _I.RECEIVING,
        _IE.UNBOUND: _I.RESTING,
        _IE.VERIFIED: _I.ARRIVED,
        _IE.CORRUPT: _I.RECEIVING,
        _IE.END: _I.ENDED,
    },
    _I.ARRIVED: {_IE.BOUND: _I.ARRIVED, _IE.UNBOUND: _I.ARRIVED, _IE.END: _I.ENDED},
    _I.ENDED: {},
}
