"""Answers and images on their way to the ground: which ones, in what form, and when.

They are objects of the kind ANSWERS at the lowest priority, so they travel in the shadow of all other
traffic, one at a time and within a quota. What was delivered is in the node's journal, as a count of answers;
the ring holds the answers themselves, and those that it lost before their turn are not sent."""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from onboard.console.log import say
from onboard.inference.ring import AnswerRecord, AnswerRing, key_of
from onboard.inference.rules import DownlinkSection, DownlinkState
from onboard.mission.objects import ANSWERS, decoded
from onboard.wire.events import Cancelled, Delivered, Event
from onboard.wire.messages import BadMessage
from onboard.wire.session import Session

log = logging.getLogger(__name__)

PRIORITY = 7  # of 0 to 7: after files, too
MOST_ANSWERS = 64  # in one object
MAX_ANSWERS_BYTES = 64 << 10  # of them, packed
MAX_IMAGE_BYTES = 1 << 20  # the ground takes objects of 2 MiB in any case
DAY_S = 86_400.0
_LENGTH = struct.Struct(">I")
Answers = Annotated[tuple[AnswerRecord, ...], Meta(min_length=1, max_length=MOST_ANSWERS)]


def encode_answers(answers: Answers, image: bytes = b"") -> bytes:
    """An object's payload: u32 length, the answers as a msgpack array of maps, then the file of the only
    one."""
    packed = msgspec.msgpack.encode(answers)
    return _LENGTH.pack(len(packed)) + packed + image


def decode_answers(payload: bytes) -> tuple[Answers, memoryview]:
    """The answers, and a view of the image's file, which may be empty. Raises BadMessage."""
    whole = memoryview(payload)
    if len(whole) < _LENGTH.size:
        raise BadMessage(f"answers of {len(whole)} B")
    (length,) = _LENGTH.unpack_from(whole)
    end = _LENGTH.size + length
    if length > MAX_ANSWERS_BYTES or end > len(whole):
        raise BadMessage(f"answers of {length} B in {len(whole)}, at most {MAX_ANSWERS_BYTES}")
    answers: Answers = decoded(whole[_LENGTH.size : end], Answers, "answers")
    if len(answers) > 1 and end < len(whole):
        raise BadMessage(f"{len(answers)} answers with one image of {len(whole) - end} B")
    return answers, whole[end:]


def wants(rules: DownlinkSection, record: AnswerRecord) -> bool:
    """Whether the rules choose an answer."""
    if record.why or (rules.classes is not None and record.name not in rules.classes):
        return False
    least, most = rules.confidence
    return record.confidence is None or least <= record.confidence <= most


class AnswerDownlink:
    """Offers chosen answers of `ring`, with their images in `folder` if the rules say so. `save` makes a
    state durable."""

    def __init__(
        self, rules: DownlinkSection, folder: Path, ring: AnswerRing, state: DownlinkState,
        save: Callable[[DownlinkState], None],
    ) -> None:  # fmt: skip
        self._rules, self._folder, self._ring, self._save = rules, folder, ring, save
        self._done = state.done
        self._left_bytes = float(rules.bytes_per_day if state.left_bytes < 0 else state.left_bytes)
        self._left_s: float | None = None  # when that was
        self._next = deque[AnswerRecord]()
        self._looked = state.done  # the ring has been read up to this answer
        self._payload = b""  # on its way, or to be sent when the quota allows
        self._up_to = self._count = 0
        self._offered = b""  # its digest
        self._due_s = -float("inf")

    def turn(self, session: Session, now: float) -> None:
        """Offers the next object if its turn has come."""
        self._refill(now)
        if not self._payload:
            self._make()
        if self._payload and not self._offered:
            lacks = len(self._payload) - self._left_bytes
            if lacks > 0:
                self._due_s = now + lacks * DAY_S / self._rules.bytes_per_day
                return
            self._offered = session.offer(ANSWERS, self._payload, now, priority=PRIORITY)

    def wakeup(self) -> float:
        """When the quota allows what waits."""
        return self._due_s if self._payload and not self._offered else float("inf")

    def offer_again(self) -> None:
        """The link has begun again: what was offered on it is offered anew at the next turn."""
        self._offered = b""

    def handle(self, event: Event) -> bool:
        """Takes an event that is about what was offered; returns whether it is. Raises OSError."""
        if not isinstance(event, Delivered | Cancelled) or not self._offered or event.digest != self._offered:
            return False
        left_bytes = max(0.0, self._left_bytes - len(self._payload))
        self._save(DownlinkState(self._up_to, left_bytes))
        if isinstance(event, Delivered):
            say(log, "downlinked", answers=self._count, bytes=len(self._payload))
        else:
            why = {"answers": self._count, "why": event.reason}
            say(log, "downlink-refused", level=logging.WARNING, **why)
        self._done, self._left_bytes = self._up_to, left_bytes
        self._payload = self._offered = b""
        return True

    def _refill(self, now: float) -> None:
        """The quota comes back evenly over a day of running; time that nothing ran gives nothing."""
        if self._left_s is not None:
            back = (now - self._left_s) * self._rules.bytes_per_day / DAY_S
            self._left_bytes = min(self._left_bytes + back, float(self._rules.bytes_per_day))
        self._left_s = now

    def _make(self) -> None:
        """Packs the next answers, or the next image."""
        if not self._next and self._looked < self._ring.next_n - 1:
            for record in self._ring.records():
                if record.n > max(self._done, self._looked):
                    self._looked = record.n
                    if record.chosen:
                        self._next.append(record)
                        if len(self._next) == MOST_ANSWERS:
                            break
        if not self._next:
            return
        image = self._image(self._next[0]) if self._rules.images else b""
        answers = tuple(self._next)[:1] if self._rules.images else tuple(self._next)
        payload = encode_answers(answers, image)
        while len(payload) - len(image) > MAX_ANSWERS_BYTES or len(payload) > self._rules.bytes_per_day:
            image, answers = (b"", answers) if image else (b"", answers[: len(answers) // 2])
            if not answers:  # not even one is within a day's quota
                self._done = self._next.popleft().n
                return
            payload = encode_answers(answers, image)
        self._payload, self._up_to, self._count = payload, answers[-1].n, len(answers)
        for _ in answers:
            self._next.popleft()

    def _image(self, record: AnswerRecord) -> bytes:
        """Reads the file that was answered; nothing where it is gone, changed or too large."""
        path = self._folder / record.image
        try:
            found = path.stat()
            if found.st_size > MAX_IMAGE_BYTES:
                return b""
            if key_of(record.image, found.st_size, found.st_mtime_ns) != record.key:
                return b""
            return path.read_bytes()
        except OSError:
            return b""
