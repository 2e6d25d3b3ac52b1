"""What goes wrong on a link, as events that are told once and as counters; nothing of it stops the link.

No event is told from one counter alone. Noise makes wrong tags too, but it spares some frames, and spoils the
headers of others; another key spares none and spoils no header. And noise that looks like a frame of somebody
else looks like another one each time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from onboard.wire import frame as framing
from onboard.wire.events import Echoed, Event, Expired, OtherForm, Refused, UnknownPeer, WrongKey
from onboard.wire.frame import Frame
from onboard.wire.messages import Reason
from onboard.wire.seal import Opener

_STRANGER_FRAMES = 3  # noise that looks like a frame names another source and epoch each time
_ECHOES = 3
_STRANGERS = 256  # that are remembered
_ENCRYPTED = 3  # that nobody here can prove, one after the other: a bit error sets ENC, but seldom twice
_WRONG_TAGS = 8  # one after the other: bit errors that frequent would leave no link
_UNPROVEN_S = 20.0  # and for so long nothing of the peer's was authentic: ten of its questions, and a HELLO
_SPOILED = 4  # of so many wrong tags one header is spoiled as well: that is noise, and no key


class Mishaps:
    """Of the link between `node` and `peer`, whose frames `openers` open."""

    def __init__(self, node: int, peer: int, openers: Iterable[Opener]) -> None:
        self._known = (node, peer)
        self._openers = tuple(openers)
        self._misaddressed = self._bad_tags = self._other_form = 0  # as counted so far
        self._shapeless = 0  # likewise: of no frame's shape, or of other nodes
        self._strangers: Counter[tuple[int, int, int]] = Counter()  # frames, by source, destination, epoch
        self._told = set[int]()  # sources of these
        self._proven_at = -math.inf
        self._wrong_since = math.inf  # of frames under a salt, which the two ends may not have agreed upon
        self._wrong_in_a_row = self._spoiled_in_a_row = self._other_form_in_a_row = 0
        self._wrong_told = self._other_form_told = False
        self.refused = self.too_large = self.expired = 0
        self._echoes = 0
        self.damaged = 0  # frames: no frame's shape, or a wrong tag

    def proven(self, now: float) -> None:
        """A frame of the peer's was authentic."""
        self._proven_at = now
        self._wrong_in_a_row = self._spoiled_in_a_row = self._other_form_in_a_row = 0
        self._wrong_told = self._other_form_told = False

    def dropped(self, raw: bytes, now: float) -> list[Event]:
        """A frame was not: what that tells."""
        misaddressed = sum(opener.misaddressed for opener in self._openers)
        malformed = sum(opener.malformed for opener in self._openers)
        bad_tags = sum(opener.bad_tags for opener in self._openers)
        other_form = sum(opener.plain_dropped + opener.encrypted_dropped for opener in self._openers)
        events: list[Event] = []
        if misaddressed > self._misaddressed:
            events += self._stranger(framing.unproven(raw))
        self._spoiled_in_a_row += misaddressed + malformed > self._shapeless
        self.damaged += misaddressed == self._misaddressed and malformed + misaddressed > self._shapeless
        self.damaged += bad_tags > self._bad_tags
        alone = now >= self._proven_at + _UNPROVEN_S
        if bad_tags > self._bad_tags:
            self._wrong_in_a_row += 1
            self._wrong_since = now if self._wrong_in_a_row == 1 else self._wrong_since
            knew_it = self._proven_at > -math.inf and not framing.is_hello(raw)
            alone = alone and not (knew_it and now < self._wrong_since + _UNPROVEN_S)
            spoiled = _SPOILED * self._spoiled_in_a_row > self._wrong_in_a_row
            if self._wrong_in_a_row >= _WRONG_TAGS and alone and not spoiled and not self._wrong_told:
                self._wrong_told = True
                events.append(WrongKey())
        if other_form > self._other_form:
            encrypted = framing.unproven(raw).encrypted
            self._other_form_in_a_row += 1
            enough = self._other_form_in_a_row >= (_ENCRYPTED if encrypted else 1)
            if enough and (alone or not encrypted) and not self._other_form_told:
                self._other_form_told = True
                events.append(OtherForm(encrypted))
        self._misaddressed, self._bad_tags, self._other_form = misaddressed, bad_tags, other_form
        self._shapeless = misaddressed + malformed
        return events

    def _stranger(self, frame: Frame) -> list[Event]:
        """Between other nodes, as the frame says, or this end's own."""
        if (frame.source, frame.destination) == self._known:
            self._echoes += 1
            return [Echoed()] if self._echoes == _ECHOES else []
        if frame.source in self._known or frame.source in self._told:
            return []
        if len(self._strangers) >= _STRANGERS:
            self._strangers.clear()  # so many that were seen once or twice are noise
        self._strangers[frame.source, frame.destination, frame.epoch] += 1
        if self._strangers[frame.source, frame.destination, frame.epoch] < _STRANGER_FRAMES:
            return []
        self._told.add(frame.source)
        return [UnknownPeer(frame.source)]

    def count(self, events: list[Event]) -> list[Event]:
        """The same events, with those that end an object counted."""
        for event in events:
            if isinstance(event, Refused):
                self.refused += 1
                self.too_large += event.reason == Reason.TOO_LARGE
            elif isinstance(event, Expired):
                self.expired += 1
        return events
