"""What frames say, as code: OFFER, DONE and CANCEL (REPORT and HELLO have files of their own).

DATA carries a fragment's bytes and POLL carries nothing; both name the object by the header's object
id. That id is the offerer's short name for an object while it is on the way; the digest is the object.
Every payload of a frame fits the smallest frame there is (51 B at LoRa SF12: 29 B of payload).
Integers are big-endian. Bytes that make no sense raise BadMessage and nothing else.
"""

from __future__ import annotations

import heapq
import mmap
import struct
from enum import IntEnum
from hashlib import blake2s
from itertools import count
from typing import Any, ClassVar, TypeVar

import msgspec

from onboard.wire.framing.frame import PendingFrame, Type

P = TypeVar("P", bound="Payload")
DIGEST_BYTES = 16
MAX_FRAGMENTS = 0xFFFF
"""The header's fragment index has 16 bits and a REPORT's base must be able to say "all of them"."""


class BadMessage(ValueError):  # noqa: N818 - "bad" says error already
    """A payload that breaks the rules of this interface."""


class Reason(IntEnum):
    """Why an object ended without being delivered. CANCEL carries it; other numbers are let through."""

    WITHDRAWN = 1  # by its sender
    EXPIRED = 2  # its deadline passed
    TOO_LARGE = 3  # for the receiver's limit
    TOO_MANY = 4  # objects are on their way already
    REFUSED = 5  # by the receiver's application
    BAD_OFFER = 6  # size, fragment length or kind make no sense


def digest(kind: int, payload: bytes | bytearray | mmap.mmap) -> bytes:
    """The identity of an object, 16 B: BLAKE2s-128 over its kind and its payload."""
    whole = blake2s(bytes((kind,)), digest_size=DIGEST_BYTES)
    whole.update(payload)
    return whole.digest()


def fragments_of(size: int, fragment_bytes: int) -> int:
    """How many fragments an object of `size` B has. An empty object has none."""
    return -(-size // fragment_bytes)


class Payload(msgspec.Struct, frozen=True):
    """A payload that is the fields of its layout, one after the other."""

    _LAYOUT: ClassVar[struct.Struct]

    def check(self) -> None:
        """Raises BadMessage for values that fit their fields and make no sense."""

    def encode(self) -> bytes:
        """The bytes of the payload. Raises ValueError for a field out of range."""
        fields = msgspec.structs.astuple(self)
        payload = pack_fields(self._LAYOUT, self, *fields)
        if self._LAYOUT.unpack(payload) != fields:  # some bytes were cut off, or filled up
            raise ValueError(f"{self!r:.200} does not fit its frame")
        return payload

    @classmethod
    def decode(cls: type[P], payload: bytes) -> P:
        """Raises BadMessage."""
        message = cls(*unpack_fields(cls._LAYOUT, payload, cls.__name__.upper()))
        message.check()
        return message


class Offer(Payload, frozen=True):
    """OFFER: an object is ready. 27 B.

    `digest` 16 B, BLAKE2s-128 over the kind byte and the payload; `size` in bytes; `fragment_bytes` of
    every DATA payload but the last; `deadline_s` whole seconds from now, 0 for none.
    """

    digest: bytes
    size: int
    fragment_bytes: int
    kind: int
    deadline_s: int = 0

    _LAYOUT: ClassVar = struct.Struct(f">{DIGEST_BYTES}sIHBI")

    @property
    def fragments(self) -> int:
        """How many fragments the object has."""
        return fragments_of(self.size, self.fragment_bytes)

    def check(self) -> None:
        """Raises BadMessage for an object of more than MAX_FRAGMENTS."""
        if self.fragment_bytes < 1 or self.fragments > MAX_FRAGMENTS:
            raise BadMessage(
                f"OFFER of {self.size} B in fragments of {self.fragment_bytes} B: too many fragments"
            )

    def encode(self) -> bytes:
        """27 B. Raises ValueError for a field out of range."""
        self.check()
        return super().encode()


class Done(Payload, frozen=True):
    """DONE: the receiver holds the object with this 16 B digest durably, or did so before. 16 B."""

    digest: bytes

    _LAYOUT: ClassVar = struct.Struct(f">{DIGEST_BYTES}s")


class Cancel(Payload, frozen=True):
    """CANCEL, from either end: the object will not be sent, or not be taken. 17 B.

    `reason` is a `Reason`, or a number that a later version knows.
    """

    digest: bytes
    reason: int

    _LAYOUT: ClassVar = struct.Struct(f">{DIGEST_BYTES}sB")

    @property
    def by_sender(self) -> bool:
        """Whether the object's sender ends it: both ends may be on the way with the same object."""
        return self.reason in (Reason.WITHDRAWN, Reason.EXPIRED)


class MessageQueue:
    """Messages that wait to leave: at most `limit` MSGs of at most `longest_bytes`, by priority (0 first) and
    then by age. When there are too many the oldest gives way."""

    def __init__(self, limit: int, longest_bytes: int) -> None:
        self._limit, self._longest_bytes = limit, longest_bytes
        self._order = count()
        self._heap: list[tuple[int, int, bytes]] = []  # priority, order, payload

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, payload: bytes, priority: int) -> None:
        """Take one more to be sent. Raises ValueError where it does not fit a frame."""
        if len(payload) > self._longest_bytes or not 0 <= priority <= 7:
            raise ValueError(
                f"MSG of {len(payload)} B, priority {priority}: at most {self._longest_bytes} B, 0..7"
            )
        heapq.heappush(self._heap, (priority, next(self._order), payload))
        if len(self._heap) > self._limit:
            self._heap.remove(min(self._heap, key=lambda message: message[1]))
            heapq.heapify(self._heap)

    def first(self) -> PendingFrame:
        """The frame of the one that leaves next. Raises IndexError where none waits."""
        priority, _, payload = self._heap[0]
        return PendingFrame(Type.MSG, payload, priority=priority)

    def sent(self) -> None:
        """What `first` gave has left."""
        heapq.heappop(self._heap)


def pack_fields(layout: struct.Struct, message: object, *fields: float | bytes) -> bytes:
    """Raises ValueError for a field that does not fit."""
    try:
        return layout.pack(*fields)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{message!r:.200} does not fit its frame: {error}") from None


def unpack_fields(layout: struct.Struct, payload: bytes, name: str) -> tuple[Any, ...]:
    """Raises BadMessage for a payload of another length."""
    if len(payload) != layout.size:
        raise BadMessage(f"{name} of {len(payload)} B, not {layout.size}")
    return layout.unpack(payload)
