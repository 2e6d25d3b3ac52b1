"""The listener's side of a broadcast: frames under the group's key reach the inbox, and an answer leaves when
this node is asked, not before: those of many listeners would meet on the air.

Broadcast objects have ids from GROUP_ID on, so that an answer, which goes by the listener's own session, says
whether it is about a broadcast. What is heard here is authentic to the group only: whoever holds its key
could have made it. Only OFFER, DATA, REPAIR, POLL and CANCEL are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from onboard.wire.config import Identity, Security, SessionState
from onboard.wire.events import Event
from onboard.wire.framing.frame import BROADCAST, GROUP_ID, Frame, Type
from onboard.wire.messages import BadMessage, Cancel, Offer
from onboard.wire.security.seal import Opener
from onboard.wire.transfer.inbox import Inbox


def group_id(digest: bytes) -> int:
    """The object id of a broadcast: the same whenever, and by whomever, the object is sent again."""
    return GROUP_ID | int.from_bytes(digest[:2], "big")


@dataclass(frozen=True, slots=True)
class Overheard:
    """What a broadcast frame brought. `asked`: this node is to answer now; `over`: it has the turn."""

    events: list[Event]
    asked: bool
    over: bool


class BroadcastListener:
    """Hears the broadcasts of the peer. floor: the highest (epoch, seq) of them, as last persisted."""

    def __init__(self, identity: Identity, key: bytes, inbox: Inbox, floor: tuple[int, int]) -> None:
        self._opener = Opener(key, source=identity.peer, destination=BROADCAST, floor=floor)
        self._inbox, self._node = inbox, identity.node
        self._epoch = floor[0]

    @classmethod
    def of(
        cls, identity: Identity, security: Security, state: SessionState, inbox: Inbox
    ) -> BroadcastListener | None:
        """The listener of a session, None where it has no key for broadcasts."""
        key = security.group_key
        return None if key is None else cls(identity, key, inbox, state.group_replay_floor)

    @property
    def opener(self) -> Opener:
        """The opener, with its counters and the floor to persist."""
        return self._opener

    def handle(self, raw: bytes, now: float) -> Overheard | None:
        """Take one frame; None, and one counter more, for what is not the group's, whole and new."""
        frame = self._opener.open(raw)
        if frame is None:
            return None
        if frame.epoch > self._epoch:
            self._epoch = frame.epoch
            self._inbox.broadcaster_restarted()
        asked = frame.type is Type.POLL and frame.fragment == self._node
        events: list[Event] = []
        try:
            events = self._dispatch(frame, asked, now)
        except BadMessage:
            self._inbox.malformed += 1
        return Overheard(events, asked, asked and frame.over)

    def _dispatch(self, frame: Frame, asked: bool, now: float) -> list[Event]:
        if frame.object_id < GROUP_ID:
            raise BadMessage(f"broadcast of object id {frame.object_id}")
        if frame.type is Type.OFFER:
            return self._inbox.on_offer(Offer.decode(frame.payload), frame.object_id, now)
        if frame.type is Type.DATA or frame.type is Type.REPAIR:
            return self._inbox.on_data(frame, now)
        if frame.type is Type.POLL:
            return self._inbox.on_poll(frame, now) if asked else []
        if frame.type is Type.CANCEL:
            return self._inbox.on_cancel(Cancel.decode(frame.payload), frame.object_id)
        raise BadMessage(f"broadcast of a {frame.type.name}")
