"""What goes wrong on a link, as events that are told seldom and as counters; nothing of it stops the link.

No event is told from one counter alone. Noise makes wrong tags too, but it spares some frames, and spoils the
headers of others; another key spares none and spoils no header. And noise that looks like a frame of somebody
else looks like another one each time.

Anybody can send frames, and what they seem to say of the peer may be a lie. So nothing is said of the peer's
key or form while frames of the peer's come in between: then the others are foreign, and that is what is told.
And whatever comes in, each kind of line is told seldom.
"""

from __future__ import annotations

import math
from collections import Counter

from onboard.wire.events import (
    Echoed,
    EncryptionMismatch,
    Event,
    Expired,
    ForeignFrames,
    Refused,
    UnknownPeer,
    WrongKey,
)
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Frame, Type
from onboard.wire.messages import Reason
from onboard.wire.security.seal import WINDOW, Opener
from onboard.wire.seldom import Seldom

_STRANGER_FRAMES = 3  # noise that looks like a frame names another source and epoch each time
_STRANGERS_AT_ONCE = 4  # are told as they come, and then seldom: of 255 that somebody makes up, too
_ECHOES = 3
_STRANGERS = 256  # that are remembered
_ENCRYPTED = 3  # that nobody here can prove, one after the other: a bit error sets ENC, but seldom twice
_WRONG_TAGS = 8  # one after the other: bit errors that frequent would leave no link
_UNPROVEN_S = 20.0  # and for so long nothing of the peer's was authentic: ten of its questions, and a HELLO
_SILENT_S = 150.0  # likewise, where it was right before: a board says how it is every minute
_SPOILED = 4  # of so many wrong tags one header is spoiled as well: that is noise, and no key
_SPOILED_BITS = 2
_FOREIGN = 8  # frames that cannot be the peer's, damaged or not


class LinkDiagnostics:
    """Finds what goes wrong on the link between `node` and `peer`. `openers` open all frames but HELLO, and
    HELLO."""

    def __init__(self, node: int, peer: int, openers: tuple[Opener, Opener]) -> None:
        self._known = (node, peer)
        self._openers = openers
        self._misaddressed = self._bad_tags = self._unknown_keys = self._other_form = 0  # as counted so far
        self._shapeless = 0  # likewise: of no frame's shape, or of other nodes
        self._strangers: Counter[tuple[int, int, int]] = Counter()  # frames, by source, destination, epoch
        self._told = set[int]()  # sources of these
        self._proven_at = -math.inf
        self._wrong_since = math.inf  # of frames under a salt, which the two ends may not have agreed upon
        self._wrong_in_a_row = self._spoiled_in_a_row = self._other_form_in_a_row = 0
        self._wrong_told = self._other_form_told = False
        self._has_its_form = False  # the peer, under the salt in force
        self._epoch = 0  # of its last frame
        self._refused = self._spoiled = 0  # frames since the last agreement or line, see `_foreign_frames`
        self._foreign: Counter[str] = Counter()  # of them: such as cannot be the peer's
        self._wrong_key, self._form = Seldom(), Seldom()
        self._more_strangers, self._between = Seldom(), Seldom()
        self.refused = self.too_large = self.expired = 0
        self._echoes = 0
        self.damaged = 0  # frames: no frame's shape, or a wrong tag

    def rekeyed(self) -> None:
        """Both ends have agreed on a salt: what was refused before was refused as they had not."""
        self._has_its_form = False
        self._forget_foreign()

    def proven(self, frame: Frame, now: float, *, proves: bool = True) -> list[Event]:
        """A frame of the peer's was authentic. proves: it is no recording, and both ends have the same
        salt."""
        self._proven_at = now
        self._wrong_in_a_row = self._spoiled_in_a_row = self._other_form_in_a_row = 0
        self._wrong_told = self._other_form_told = False
        if frame.type is not Type.HELLO:
            self._has_its_form = True
            if frame.epoch != self._epoch:  # what had that number before this one was the peer's
                self._epoch = frame.epoch
                self._forget_foreign()
        return self._foreign_frames(now) if proves else []

    def dropped(self, raw: bytes, now: float, *, is_earlier: bool = False) -> list[Event]:
        """A frame was refused: returns what that tells. is_earlier: it is the peer's, under the salt
        before."""
        all_but, hello = self._openers  # one by one: five generators take longer than all the rest here
        misaddressed = all_but.misaddressed + hello.misaddressed
        malformed = all_but.malformed + hello.malformed
        bad_tags = all_but.bad_tags + hello.bad_tags
        unknown_keys = all_but.unknown_keys + hello.unknown_keys
        other_form = all_but.plain_dropped + all_but.encrypted_dropped
        other_form += hello.plain_dropped + hello.encrypted_dropped
        events: list[Event] = []
        if misaddressed > self._misaddressed:
            events += self._stranger(framing.unproven(raw), now)
        is_spoiled = misaddressed + malformed > self._shapeless
        self._spoiled_in_a_row += is_spoiled
        self._spoiled += is_spoiled
        self.damaged += misaddressed == self._misaddressed and is_spoiled
        self.damaged += bad_tags > self._bad_tags
        if not is_earlier:
            self._note("bad_tags", bad_tags > self._bad_tags, raw)
            self._note("unknown_keys", unknown_keys > self._unknown_keys, raw)
            self._note("other_form", other_form > self._other_form, raw)
        if bad_tags > self._bad_tags:
            events += self._wrong_tag(raw, now)
        if other_form > self._other_form:
            events += self._of_other_form(framing.unproven(raw).encrypted, now)
        self._misaddressed, self._bad_tags, self._unknown_keys = misaddressed, bad_tags, unknown_keys
        self._other_form, self._shapeless = other_form, misaddressed + malformed
        return events

    def _wrong_tag(self, raw: bytes, now: float) -> list[Event]:
        self._wrong_in_a_row += 1
        self._wrong_since = now if self._wrong_in_a_row == 1 else self._wrong_since
        knew_it = self._proven_at > -math.inf
        if knew_it and not framing.is_hello(raw) and now < self._wrong_since + _UNPROVEN_S:
            return []
        spoiled = _SPOILED * self._spoiled_in_a_row > self._wrong_in_a_row
        alone = now >= self._proven_at + _SILENT_S
        if self._wrong_in_a_row < _WRONG_TAGS or not alone or spoiled or self._wrong_told:
            return []
        self._wrong_told = True
        return [WrongKey(was_right=knew_it)] if self._wrong_key.may(now) else []

    def _of_other_form(self, encrypted: bool, now: float) -> list[Event]:
        """encrypted: nobody here can prove it, while a plain one was authentic."""
        self._other_form_in_a_row += 1
        silent_s = _SILENT_S if self._has_its_form else _UNPROVEN_S
        alone = self._other_form_in_a_row >= _ENCRYPTED and now >= self._proven_at + silent_s
        if self._other_form_told or (encrypted and not alone):
            return []
        self._other_form_told = True
        return [EncryptionMismatch(encrypted)] if self._form.may(now) else []

    # -- frames of others ------------------------------------------------------------------------------

    def _note(self, why: str, is_refused: bool, raw: bytes) -> None:
        """A frame to this end was refused. Noise that spoils a frame of the peer's spares, mostly, the number
        that it has, which is about the next one; who makes frames up does not know that, or need not care."""
        if not is_refused:
            return
        self._refused += 1
        frame = framing.unproven(raw)
        if frame.type is Type.HELLO or not self._is_about_next(frame):
            self._foreign[why] += 1

    def _is_about_next(self, frame: Frame) -> bool:
        """Whether it has the number of one of the peer's next frames."""
        epoch, seq = self._openers[0].floor
        return frame.epoch == epoch and 0 < frame.seq - seq <= WINDOW

    def _foreign_frames(self, now: float) -> list[Event]:
        """The peer is there: what else came in was not its own, where noise does not explain it."""
        count = self._foreign.total()
        is_noise = 2 * count <= self._refused or _SPOILED * self._spoiled > count
        if count < _FOREIGN or is_noise or not self._between.may(now):
            return []
        told = ForeignFrames(**self._foreign)
        self._forget_foreign()
        return [told]

    def _forget_foreign(self) -> None:
        self._foreign.clear()
        self._refused = self._spoiled = 0

    def _stranger(self, frame: Frame, now: float) -> list[Event]:
        """A frame says that it is between other nodes, or it is one of this end's own that came back."""
        if (frame.source, frame.destination) == self._known:
            self._echoes += 1
            return [Echoed()] if self._echoes == _ECHOES else []
        if frame.source in self._known or frame.source in self._told:
            return []
        if (frame.source ^ self._known[1]).bit_count() <= _SPOILED_BITS and self._is_about_next(frame):
            return []  # a bit error makes the same stranger of the peer's frames each time
        if len(self._strangers) >= _STRANGERS:
            self._strangers.clear()  # so many that were seen once or twice are noise
        self._strangers[frame.source, frame.destination, frame.epoch] += 1
        if self._strangers[frame.source, frame.destination, frame.epoch] < _STRANGER_FRAMES:
            return []
        if len(self._told) >= _STRANGERS_AT_ONCE and not self._more_strangers.may(now):
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
