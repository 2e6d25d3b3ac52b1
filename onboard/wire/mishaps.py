"""What goes wrong on a link, as events that are told once and as counters; nothing of it stops the link."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from onboard.wire import frame as framing
from onboard.wire.events import Event, Expired, OtherForm, Refused, UnknownPeer, WrongKey
from onboard.wire.messages import Reason
from onboard.wire.seal import Opener

_STRANGER_FRAMES = 3  # noise that looks like a frame names another source each time
_ENCRYPTED = 3  # that nobody here can prove, one after the other: a bit error sets ENC, but seldom twice
_WRONG_TAGS = 8  # one after the other: bit errors that frequent would leave no link


class Mishaps:
    """Of the link between `node` and `peer`, whose frames `openers` open."""

    def __init__(self, node: int, peer: int, openers: Iterable[Opener]) -> None:
        self._known = (node, peer)
        self._openers = tuple(openers)
        self._misaddressed = self._bad_tags = self._other_form = 0  # as counted so far
        self._strangers: Counter[int] = Counter()  # frames, by their source
        self._wrong_in_a_row = self._other_form_in_a_row = 0
        self.refused = self.too_large = self.expired = 0

    def proven(self) -> None:
        """A frame of the peer's was authentic."""
        self._wrong_in_a_row = self._other_form_in_a_row = 0

    def dropped(self, raw: bytes) -> list[Event]:
        """A frame was not: what that tells."""
        misaddressed = sum(opener.misaddressed for opener in self._openers)
        bad_tags = sum(opener.bad_tags for opener in self._openers)
        other_form = sum(opener.plain_dropped + opener.encrypted_dropped for opener in self._openers)
        events: list[Event] = []
        if misaddressed > self._misaddressed and (source := framing.unproven(raw).source) not in self._known:
            self._strangers[source] += 1
            if self._strangers[source] == _STRANGER_FRAMES:
                events.append(UnknownPeer(source))
        if bad_tags > self._bad_tags:
            self._wrong_in_a_row += 1
            if self._wrong_in_a_row == _WRONG_TAGS:
                events.append(WrongKey())
        if other_form > self._other_form:
            encrypted = framing.unproven(raw).encrypted
            self._other_form_in_a_row += 1
            if self._other_form_in_a_row == (_ENCRYPTED if encrypted else 1):
                events.append(OtherForm(encrypted))
        self._misaddressed, self._bad_tags, self._other_form = misaddressed, bad_tags, other_form
        return events

    def count(self, events: list[Event]) -> list[Event]:
        """The same events, with those that end an object counted."""
        for event in events:
            if isinstance(event, Refused):
                self.refused += 1
                self.too_large += event.reason == Reason.TOO_LARGE
            elif isinstance(event, Expired):
                self.expired += 1
        return events
