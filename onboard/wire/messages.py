"""What frames say, as code: OFFER, DONE and CANCEL (REPORT and HELLO have files of their own).

DATA carries a fragment's bytes and POLL carries nothing; both name the object by the header's object
id. That id is the offerer's short name for an object while it is on the way; the digest is the object.
Every payload of a frame fits the smallest frame there is (51 B at LoRa SF12: 29 B of payload).
Integers are big-endian. Bytes that make no sense raise BadMessage and nothing else.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2s
from typing import Any, ClassVar

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


@dataclass(frozen=True, slots=True)
class Offer:
    """OFFER: an object is ready. 27 B.

    `digest` 16 B, BLAKE2s-128 over the kind byte and the payload; `size` in bytes; `fragment_bytes` of
    every DATA payload but the last; `deadline_s` whole seconds from now, 0 for none.
    """

    digest: bytes
    size: int
    fragment_bytes: int
    kind: int
    deadline_s: int = 0

    _LAYOUT: ClassVar = struct.Struct(">16sIHBI")

    @property
    def fragments(self) -> int:
        """How many fragments the object has."""
        return fragments_of(self.size, self.fragment_bytes)

    def encode(self) -> bytes:
        """27 B. Raises ValueError for a field out of range."""
        check_length(self.digest, DIGEST_BYTES)
        if self.fragment_bytes < 1 or self.fragments > MAX_FRAGMENTS:
            raise ValueError(f"{self.size} B in fragments of {self.fragment_bytes} B are too many fragments")
        return pack_fields(
            self._LAYOUT, self, self.digest, self.size, self.fragment_bytes, self.kind, self.deadline_s
        )

    @classmethod
    def decode(cls, payload: bytes) -> Offer:
        """Raises BadMessage, also for an object of more than MAX_FRAGMENTS."""
        offer = cls(*unpack_fields(cls._LAYOUT, payload, "OFFER"))
        if offer.fragment_bytes < 1 or offer.fragments > MAX_FRAGMENTS:
            raise BadMessage(f"OFFER of {offer.size} B in fragments of {offer.fragment_bytes} B")
        return offer


@dataclass(frozen=True, slots=True)
class Done:
    """DONE: the receiver holds the object with this 16 B digest durably, or did so before. 16 B."""

    digest: bytes

    _LAYOUT: ClassVar = struct.Struct(">16s")

    def encode(self) -> bytes:
        """16 B."""
        check_length(self.digest, DIGEST_BYTES)
        return self.digest

    @classmethod
    def decode(cls, payload: bytes) -> Done:
        """Raises BadMessage."""
        return cls(*unpack_fields(cls._LAYOUT, payload, "DONE"))


@dataclass(frozen=True, slots=True)
class Cancel:
    """CANCEL, from either end: the object will not be sent, or not be taken. 17 B.

    `reason` is a `Reason`, or a number that a later version knows.
    """

    digest: bytes
    reason: int

    _LAYOUT: ClassVar = struct.Struct(">16sB")

    @property
    def by_sender(self) -> bool:
        """Whether the object's sender ends it: both ends may be on the way with the same object."""
        return self.reason in (Reason.WITHDRAWN, Reason.EXPIRED)

    def encode(self) -> bytes:
        """17 B. Raises ValueError for a field out of range."""
        check_length(self.digest, DIGEST_BYTES)
        return pack_fields(self._LAYOUT, self, self.digest, self.reason)

    @classmethod
    def decode(cls, payload: bytes) -> Cancel:
        """Raises BadMessage."""
        return cls(*unpack_fields(cls._LAYOUT, payload, "CANCEL"))


def check_length(value: bytes, length: int) -> None:
    """Raises ValueError for a value of another length."""
    if len(value) != length:
        raise ValueError(f"{bytes(value)!r} has {len(value)} B, not {length}")


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
