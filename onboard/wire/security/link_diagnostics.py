"""What refused frames say of a link: counters, and advice that is given seldom. Nothing here stops the link.

No event follows from one counter alone. Noise makes wrong tags too, but it spares some frames and spoils the
headers of others; another key spares none and spoils no header. Noise makes another stranger each time.

Anybody can send frames that lie about the peer. So nothing is said of the peer's key or form while its own
frames come in between: then the others are reported as foreign."""

from __future__ import annotations

import math
from collections import Counter, deque

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
from onboard.wire.security.seal import WINDOW, Opener, Refusal

_STRANGER_FRAMES = 3  # noise names another source and epoch each time
_STRANGERS_AT_ONCE = 4  # are told as they come, and then seldom, even if somebody makes up 255
_ECHOES = 3
_STRANGERS = 256  # that are remembered
_ENCRYPTED = 3  # unprovable ones in a row: a bit error sets ENC, but seldom twice
_WRONG_TAGS = 8  # one after the other: bit errors that frequent would leave no link
_UNPROVEN_S = 20.0  # with nothing authentic from the peer: ten of its questions, and a HELLO
_SILENT_S = 150.0  # likewise, where it was right before: a board sends its health every minute
_SPOILED = 4  # one spoiled header in this many wrong tags means noise, not another key
_SPOILED_BITS = 2
_FOREIGN = 8  # frames that cannot be the peer's, damaged or not
_MAY_BE_FOREIGN: dict[Refusal, str] = {  # what ForeignFrames calls them
    "bad_tags": "bad_tags",
    "unknown_keys": "unknown_keys",
    "plain_dropped": "other_form",
    "encrypted_dropped": "other_form",
}

REFUSED = 3  # one after the other: bit errors that frequent would leave no link
REFUSED_S = 10.0  # with nothing proven
ASK_AGAIN_S, AT_LAST_S = 8.0, 64.0  # if more is refused, doubling
FREE, WITHIN_S = 3, 600.0
UNANSWERED = 3  # HELLOs, after which replays alone are told

FIRST_S, DAY_S = 600.0, 86_400.0


class Seldom:
    """Limits a log line for which anybody's frames can give a reason: at once, then after 10 minutes at the
    earliest, doubling to a day. A day without a reason resets it."""

    def __init__(self) -> None:
        self._told_at = self._wanted_at = -math.inf
        self._pause_s = 0.0

    def may(self, now: float) -> bool:
        """Note a reason; True if it is to be told."""
        if now >= self._wanted_at + DAY_S:
            self._pause_s = 0.0
        self._wanted_at = now
        if now < self._told_at + self._pause_s:
            return False
        self._told_at = now
        self._pause_s = min(2 * self._pause_s, DAY_S) if self._pause_s else FIRST_S
        return True


class LinkDiagnostics:
    """Finds a link's faults. `opener`: of all frames but HELLO. `damaged`: frames of wrong shape or tag."""

    def __init__(self, node: int, peer: int, opener: Opener) -> None:
        self._known = (node, peer)
        self._opener = opener
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
        self._echoes = 0
        self.refused = self.too_large = self.expired = self.damaged = 0

    def rekeyed(self) -> None:
        """Note an agreement on a salt: it explains the earlier refusals."""
        self._has_its_form = False
        self._forget_foreign()

    def proven(self, frame: Frame, now: float, *, proves: bool = True) -> list[Event]:
        """Note an authentic frame from the peer. `proves`: it is no replay, and the ends share a salt."""
        self._proven_at = now
        self._wrong_in_a_row = self._spoiled_in_a_row = self._other_form_in_a_row = 0
        self._wrong_told = self._other_form_told = False
        if frame.type is not Type.HELLO:
            self._has_its_form = True
            if frame.epoch != self._epoch:  # earlier frames with that number were the peer's
                self._epoch = frame.epoch
                self._forget_foreign()
        return self._foreign_frames(now) if proves else []

    def dropped(
        self, raw: bytes, why: Refusal | None, now: float, *, is_earlier: bool = False
    ) -> list[Event]:
        """Note a refused frame; `why`: None if unprovable. `is_earlier`: it is under the last salt."""
        is_spoiled = why in ("malformed", "misaddressed")
        self._spoiled_in_a_row += is_spoiled
        self._spoiled += is_spoiled
        self.damaged += why in ("malformed", "bad_tags")
        if why in _MAY_BE_FOREIGN and not is_earlier:
            self._refused += 1
            # Noise that spoils a frame from the peer mostly spares its seq, which is about the next one;
            # a forger does not know that seq, or need not care.
            if framing.is_hello(raw) or not self._is_about_next(framing.unproven(raw)):
                self._foreign[_MAY_BE_FOREIGN[why]] += 1
        if why == "misaddressed":
            return self._stranger(framing.unproven(raw), now)
        if why == "bad_tags":
            return self._wrong_tag(raw, now)
        if why in ("plain_dropped", "encrypted_dropped"):
            return self._of_other_form(why == "encrypted_dropped", now)
        return []

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
        """An `encrypted` frame nobody here can prove, while a plain one was authentic."""
        self._other_form_in_a_row += 1
        silent_s = _SILENT_S if self._has_its_form else _UNPROVEN_S
        alone = self._other_form_in_a_row >= _ENCRYPTED and now >= self._proven_at + silent_s
        if self._other_form_told or (encrypted and not alone):
            return []
        self._other_form_told = True
        return [EncryptionMismatch(encrypted)] if self._form.may(now) else []

    def _is_about_next(self, frame: Frame) -> bool:
        """Return whether it has the number of one of the peer's next frames."""
        epoch, seq = self._opener.floor
        return frame.epoch == epoch and 0 < frame.seq - seq <= WINDOW

    def _foreign_frames(self, now: float) -> list[Event]:
        """The peer is there, so frames that noise does not explain are foreign."""
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
        """The frame is between other nodes, or is this end's own and came back."""
        if (frame.source, frame.destination) == self._known:
            self._echoes += 1
            return [Echoed()] if self._echoes == _ECHOES else []
        if frame.source in self._known or frame.source in self._told:
            return []
        if (frame.source ^ self._known[1]).bit_count() <= _SPOILED_BITS and self._is_about_next(frame):
            return []  # a bit error makes the same stranger of the peer's frames each time
        if len(self._strangers) >= _STRANGERS:
            self._strangers.clear()  # this many that were seen once or twice are noise
        self._strangers[frame.source, frame.destination, frame.epoch] += 1
        if self._strangers[frame.source, frame.destination, frame.epoch] < _STRANGER_FRAMES:
            return []
        if len(self._told) >= _STRANGERS_AT_ONCE and not self._more_strangers.may(now):
            return []
        self._told.add(frame.source)
        return [UnknownPeer(frame.source)]

    def count(self, events: list[Event]) -> list[Event]:
        """Count the events that end an object, and return all."""
        for event in events:
            if isinstance(event, Refused):
                self.refused += 1
                self.too_large += event.reason == Reason.TOO_LARGE
            elif isinstance(event, Expired):
                self.expired += 1
        return events


class Doubt:
    """Decides whether the frames that an end refuses mean that it and its peer disagree (docs/wire.md,
    "Replay"). It asks the peer for its salt. If that is the same, and yet replays go on, the peer's memory
    has gone back."""

    def __init__(self) -> None:
        self._refused = self._replays = 0  # since anything was proven, or the peer's salt is known
        self._since_s = self._asked_at = 0.0
        self._is_confirmed = False
        self.asked = 0
        self.is_answered = False  # by an authentic HELLO, whenever that was made
        self.told = False

    @property
    def only_replays(self) -> bool:
        """Whether every refused frame was authentic, but already seen."""
        return self._refused == self._replays

    @property
    def is_lasting(self) -> bool:
        """Whether the peer was asked in vain, and yet the keys are the same."""
        return self.asked >= UNANSWERED and (self.only_replays or self.is_answered)

    @property
    def is_certain(self) -> bool:
        """Whether the peer has the same salt, and its frames are replays all the same."""
        return self._is_confirmed and self.only_replays

    def refused(self, now: float, *, replay: bool) -> bool:
        """Note a frame refused as a replay or for its tag; True: say HELLO now."""
        if not self._refused:
            self._since_s = now
            self._asked_at = -math.inf
        self._refused += 1
        self._replays += replay
        again_s = min(ASK_AGAIN_S * 2.0 ** max(0, self.asked - 1), AT_LAST_S)
        if self._refused < REFUSED or now < self._since_s + REFUSED_S or now < self._asked_at + again_s:
            return False
        self._asked_at = now
        self.asked += 1
        return True

    def confirmed(self) -> None:
        """Note that the peer, asked, named the salt in force."""
        if self.asked:
            self._is_confirmed = self.only_replays
            self._refused = self._replays = self.asked = 0

    def proven(self) -> None:
        """Note an authentic new frame: the ends agree."""
        if self._refused or self._is_confirmed:
            self._refused = self._replays = self.asked = 0
            self._is_confirmed = self.is_answered = self.told = False


class Agreements:
    """Limits how often two ends agree on a salt, so that two live copies of one do not take turns for ever.
    They may once for each start of the peer, as its epoch shows, and FREE times in WITHIN_S beside that."""

    def __init__(self) -> None:
        self._peer_epoch = 0
        self._repeated: deque[float] = deque(maxlen=FREE)

    def is_repeated(self, peer_epoch: int) -> bool:
        """Return whether the peer agreed before in this start of it, or in a later one."""
        return peer_epoch <= self._peer_epoch

    def may(self, peer_epoch: int, now: float) -> bool:
        return not self.is_repeated(peer_epoch) or not self._are_many(now)

    def agreed(self, peer_epoch: int, now: float) -> bool:
        """Note an agreement; True where that is one too many."""
        repeated = self.is_repeated(peer_epoch)
        self._peer_epoch = max(self._peer_epoch, peer_epoch)
        if repeated:
            self._repeated.append(now)
        return repeated and self._are_many(now)

    def _are_many(self, now: float) -> bool:
        return len(self._repeated) == FREE and now < self._repeated[0] + WITHIN_S
