"""The interface of board and ground, as code: what frames say (OFFER, DONE, CANCEL, HELLO; REPORT has a
file of its own, and so has the board's message, Health), what an object is, and the headers of the objects.

DATA carries a fragment's bytes and POLL carries nothing; both name the object by the header's object
id. That id is the offerer's short name for an object while it is on the way; the digest is the object.
Every payload of a frame fits the smallest frame there is (51 B at LoRa SF12: 29 B of payload).
Integers are big-endian. Bytes that make no sense raise BadMessage and nothing else.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2s
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from onboard.wire.security.seal import NO_SALT, SALT_BYTES

MODEL = 1
"""Kind of object, ground to board: header Task, then the packed weights to start from."""
UPDATE = 2
"""Kind of object, board to ground: header Update, then the packed weights that training gave."""
GOSSIP = 3
"""Kind of object, node to node: the values of an exchange (docs/gossip.md), and nothing before them."""
DIGEST_BYTES = 16
NONCE_BYTES = 8
NO_NONCE = bytes(NONCE_BYTES)
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
        _check_length(self.digest, DIGEST_BYTES)
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
        _check_length(self.digest, DIGEST_BYTES)
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
        _check_length(self.digest, DIGEST_BYTES)
        return pack_fields(self._LAYOUT, self, self.digest, self.reason)

    @classmethod
    def decode(cls, payload: bytes) -> Cancel:
        """Raises BadMessage."""
        return cls(*unpack_fields(cls._LAYOUT, payload, "CANCEL"))


@dataclass(frozen=True, slots=True)
class Hello:
    """HELLO: prove that you speak now. 24 B.

    `challenge` 8 random bytes, never zeros; `answer` the challenge heard from the peer, zeros for none;
    `salt` that of the keys in force, zeros for none: the speaker lost its state, and takes HELLO only.
    """

    challenge: bytes
    answer: bytes = NO_NONCE
    salt: bytes = NO_SALT

    _LAYOUT: ClassVar = struct.Struct(f">{NONCE_BYTES}s{NONCE_BYTES}s{SALT_BYTES}s")

    def encode(self) -> bytes:
        """24 B. Raises ValueError for a field of another length."""
        _check_length(self.challenge, NONCE_BYTES)
        _check_length(self.answer, NONCE_BYTES)
        _check_length(self.salt, SALT_BYTES)
        return self.challenge + self.answer + self.salt

    @classmethod
    def decode(cls, payload: bytes) -> Hello:
        """Raises BadMessage, also for a challenge of zeros."""
        hello = cls(*unpack_fields(cls._LAYOUT, payload, "HELLO"))
        if hello.challenge == NO_NONCE:
            raise BadMessage("HELLO without a challenge")
        return hello


Id8 = Annotated[bytes, Meta(min_length=8, max_length=8)]
Count = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]


ClassName = Annotated[str, Meta(min_length=1, max_length=64)]


class Task(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Header of a MODEL: what a board is asked to do with the weights that follow.

    `mission` 8 B id; `graph` 8 B digest of the training graph that `model` names; `weights` "seed" where
    none follow and both ends draw the same from `seed`, "packed" where they do. `epochs` 0 asks for no
    training: the weights are to be used. `bits_up`: bits a weight that the update may take; `max_bases` a
    group; `shift_pixels` and `distortion` of augmentation; `deadline_s` seconds for the answer, from arrival.
    `method`: what the epochs do (`learn/federated/plan.py`); `prune_ratio` and the epochs after it are for
    "spacedml" alone. `asking`: how often this board was asked for this round before. It makes a question that
    is asked again another object than the one that the board has taken already. `classes`: 8 B digest of the
    names of the mission's classes in their order (`labels.digest`), empty where nobody says what a
    label means; `names` themselves where they are short (`names_that_fit`).
    Ranges are part of the interface: what passes here can be computed with.
    """

    mission: Id8
    round: Annotated[int, Meta(ge=0, le=0xFFFF)]
    model: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    graph: Id8
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    weights: Literal["seed", "packed"]
    epochs: Annotated[int, Meta(ge=0, le=10_000)]
    pretrain_epochs: Annotated[int, Meta(ge=0, le=10_000)]
    batch_size: Annotated[int, Meta(ge=1, le=65_536)]
    learning_rate: Annotated[float, Meta(gt=0, le=100)]
    bits_up: Annotated[float, Meta(gt=0, le=32)]
    max_bases: Annotated[int, Meta(ge=1, le=32)]
    shift_pixels: Annotated[int, Meta(ge=0, le=255)]
    deadline_s: Annotated[float, Meta(gt=0, le=1e9)]
    method: Literal["fedavg", "fedavg-zstd", "spacedml", "spacedml-fast"] = "spacedml-fast"
    prune_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.8
    prune_epochs: Annotated[int, Meta(ge=0, le=10_000)] = 4
    basis_epochs: Annotated[int, Meta(ge=0, le=10_000)] = 1
    coordinate_epochs: Annotated[int, Meta(ge=0, le=10_000)] = 1
    distortion: Annotated[float, Meta(ge=0, le=4)] = 0.0
    asking: Count = 0
    classes: Annotated[bytes, Meta(max_length=8)] = b""
    names: tuple[ClassName, ...] = ()


class Update(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Header of an UPDATE: whose it is, for which round, and what it cost.

    `samples` weighs it in the average; `loss` is the last epoch's mean; `cpu_s` and `train_s` are seconds
    of CPU and of the clock, `energy_j` joules of this round.
    """

    mission: Id8
    round: Annotated[int, Meta(ge=0, le=0xFFFF)]
    node: Annotated[int, Meta(ge=0, le=0xFE)]
    samples: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]
    loss: Annotated[float, Meta(ge=-1e12, le=1e12)]
    cpu_s: Amount
    energy_j: Amount
    train_s: Amount


MAX_NAMES_BYTES = 64  # of a task's names: they come with every round, and ten digits take 21

_MAX_HEADER_BYTES = 1024  # a Task with a model's name of 64 letters has 160; also bounds msgpack's nesting
_LENGTH = struct.Struct(">H")
_Header = TypeVar("_Header", Task, Update)


def names_that_fit(names: Sequence[str]) -> tuple[str, ...]:
    """The names of a mission's classes, or none where they would take more than MAX_NAMES_BYTES of a task."""
    told = tuple(names)
    return told if len(msgspec.msgpack.encode(told)) <= MAX_NAMES_BYTES else ()


def encode_object(header: Task | Update, weights: bytes) -> bytes:
    """An object's payload: u16 length of the header, the header as a msgpack array, the packed weights.

    Raises ValueError for a header that the other end would refuse.
    """
    packed = msgspec.msgpack.encode(header)
    payload = _LENGTH.pack(len(packed)) + packed + weights
    try:
        decode_task(payload) if isinstance(header, Task) else decode_update(payload)
    except BadMessage as error:
        raise ValueError(str(error)) from None
    return payload


def decode_task(payload: bytes) -> tuple[Task, memoryview]:
    """The header of a MODEL and a view of its packed weights. Raises BadMessage."""
    task, weights = _decode_object(payload, _TASK)
    if (task.weights == "packed") != bool(weights):
        raise BadMessage(f"Task with weights {task.weights!r} and {len(weights)} B of them")
    return task, weights


def decode_update(payload: bytes) -> tuple[Update, memoryview]:
    """The header of an UPDATE and a view of its packed weights. Raises BadMessage."""
    return _decode_object(payload, _UPDATE)


def asked_again(model: bytes, asking: int) -> bytes:
    """The MODEL's payload as it is asked the next time: the same task and weights, another object."""
    task, weights = decode_task(model)
    return encode_object(msgspec.structs.replace(task, asking=asking), bytes(weights))


def as_asked_first(model: bytes) -> bytes:
    """Digest of the MODEL whichever asking it is: two of the same have the same training."""
    return digest(MODEL, asked_again(model, 0))


_TASK = msgspec.msgpack.Decoder(Task)
_UPDATE = msgspec.msgpack.Decoder(Update)


def _decode_object(payload: bytes, decoder: msgspec.msgpack.Decoder[_Header]) -> tuple[_Header, memoryview]:
    whole = memoryview(payload)
    if len(whole) < _LENGTH.size:
        raise BadMessage(f"object of {len(whole)} B")
    (length,) = _LENGTH.unpack_from(whole)
    if length > _MAX_HEADER_BYTES or _LENGTH.size + length > len(whole):
        raise BadMessage(f"object of {len(whole)} B with a header of {length}, at most {_MAX_HEADER_BYTES}")
    start = _LENGTH.size + length
    try:
        return decoder.decode(whole[_LENGTH.size : start]), whole[start:]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"object's header: {error}") from None


def _check_length(value: bytes, length: int) -> None:
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
