"""The payloads of frames: OFFER, REPORT, DONE, CANCEL and MSG (HELLO is in `security_context`).

DATA carries a fragment's bytes and POLL nothing; both name the object by the header's object id, the sender's
short name for it in this epoch; the digest is its identity. Every payload fits the smallest frame (51 B at
LoRa SF12: 29 B of payload). Integers are big-endian. Senseless bytes raise BadMessage and nothing else."""

from __future__ import annotations

import heapq
import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2s
from itertools import count, groupby, pairwise
from typing import Any, ClassVar, TypeVar

import msgspec

from onboard.wire.framing.frame import PendingFrame, Type

P = TypeVar("P", bound="Payload")
DIGEST_BYTES = 16
PREFIX_BYTES = 4
MAX_FRAGMENTS = 0xFFFF
"""The header's fragment index has 16 bits, and a REPORT's base must be able to say "all of them"."""
_MOST_MESSAGES = 16  # that wait to leave


class BadMessage(ValueError):  # noqa: N818 - "bad" says error already
    """A payload that breaks the rules of this interface."""


class Reason(IntEnum):
    """Why an object ended undelivered, as CANCEL says it; other numbers are let through."""

    WITHDRAWN = 1  # by its sender
    EXPIRED = 2  # its deadline passed
    TOO_LARGE = 3  # for the receiver's limit
    TOO_MANY = 4  # objects are in transfer already
    REFUSED = 5  # by the receiver's application
    BAD_OFFER = 6  # size, fragment length or kind make no sense


def digest(kind: int, payload: bytes | bytearray | mmap.mmap) -> bytes:
    """Return the identity of an object, 16 B: BLAKE2s-128 over its kind and its payload."""
    whole = blake2s(bytes((kind,)), digest_size=DIGEST_BYTES)
    whole.update(payload)
    return whole.digest()


def fragments_of(size: int, fragment_bytes: int) -> int:
    """Return the number of fragments of an object of `size` B; an empty object has none."""
    return -(-size // fragment_bytes)


class Payload(msgspec.Struct, frozen=True):
    """A payload whose bytes are the fields of its layout, one after the other."""

    _LAYOUT: ClassVar[struct.Struct]

    def check(self) -> None:
        """Raise BadMessage for values that fit their fields and make no sense."""

    def encode(self) -> bytes:
        """Return the bytes of the payload. Raises ValueError for a field out of range."""
        fields = msgspec.structs.astuple(self)
        payload = pack_fields(self._LAYOUT, self, *fields)
        if self._LAYOUT.unpack(payload) != fields:  # some bytes were cut off, or filled up
            raise ValueError(f"{self!r:.200} does not fit its frame")
        return payload

    @classmethod
    def decode(cls: type[P], payload: bytes) -> P:
        """Return the message. Raises BadMessage."""
        message = cls(*unpack_fields(cls._LAYOUT, payload, cls.__name__.upper()))
        message.check()
        return message


class Offer(Payload, frozen=True):
    """OFFER: an object is ready. 27 B. `digest` 16 B; `size` in bytes; `fragment_bytes` of every DATA payload
    but the last; `deadline_s` whole seconds from now, 0 for none."""

    digest: bytes
    size: int
    fragment_bytes: int
    kind: int
    deadline_s: int = 0

    _LAYOUT: ClassVar = struct.Struct(f">{DIGEST_BYTES}sIHBI")

    @property
    def fragments(self) -> int:
        return fragments_of(self.size, self.fragment_bytes)

    def encode(self) -> bytes:
        self.check()
        return super().encode()

    def check(self) -> None:
        if self.fragment_bytes < 1 or self.fragments > MAX_FRAGMENTS:
            raise BadMessage(
                f"OFFER of {self.size} B in fragments of {self.fragment_bytes} B: too many fragments"
            )


class Done(Payload, frozen=True):
    """DONE: the receiver holds the object with this 16 B digest durably, or did so before. 16 B."""

    digest: bytes

    _LAYOUT: ClassVar = struct.Struct(f">{DIGEST_BYTES}s")


class Cancel(Payload, frozen=True):
    """CANCEL, from either end: the object will not be sent, or taken. 17 B. `reason`: as in `Reason`."""

    digest: bytes
    reason: int

    _LAYOUT: ClassVar = struct.Struct(f">{DIGEST_BYTES}sB")

    @property
    def by_sender(self) -> bool:
        """Whether the object's sender cancels it: both ends may be sending the same object."""
        return self.reason in (Reason.WITHDRAWN, Reason.EXPIRED)


@dataclass(frozen=True, slots=True)
class Report:
    """REPORT: the highest frame heard and the fragments held of one object. 13 B, sums, a bitmap or runs.

    The sender resends exactly what a REPORT shows as missing; what does not fit is left open (`covered`).

    `epoch`, `seq`: the highest heard from the peer. `prefix`: first 4 B of the object's digest. `held`: bit i
    is set when fragment i is held. `covered`: nothing is said of fragments from there on; MAX_FRAGMENTS when
    the report is complete. `unknown`: no object is known by the header's object id, so it should be offered
    again (`prefix` is then zeros). With object id 0 only epoch and seq are valid. `equations`: (generation,
    number) of independent sums held; those left out only cost needless repairs."""

    epoch: int
    seq: int
    prefix: bytes = bytes(PREFIX_BYTES)
    held: int = 0
    covered: int = MAX_FRAGMENTS
    unknown: bool = False
    equations: tuple[tuple[int, int], ...] = ()

    _LAYOUT: ClassVar = struct.Struct(">BHI4sH")
    _RUNS: ClassVar = 0x01
    _CUT: ClassVar = 0x02
    _UNKNOWN: ClassVar = 0x04
    _EQUATIONS: ClassVar = 0x08

    def encode(self, max_bytes: int) -> bytes:
        """Return at most `max_bytes` (13 or more): bitmap or runs, whichever says more in fewer bytes; of
        what does not fit, the first fragments. Raises ValueError for a field out of range."""
        if len(self.prefix) != PREFIX_BYTES:
            raise ValueError(f"prefix {self.prefix!r} has {len(self.prefix)} B, not {PREFIX_BYTES}")
        room = max_bytes - self._LAYOUT.size
        if room < 0:
            raise ValueError(f"{max_bytes} B is no room for a REPORT, which needs {self._LAYOUT.size}")
        if self.held < 0 or self.held.bit_length() > MAX_FRAGMENTS:
            raise ValueError(f"held {self.held.bit_length()} fragments, at most {MAX_FRAGMENTS}")
        sums = _encode_equations(self.equations, room // 4)
        room -= len(sums)
        base = (~self.held & (self.held + 1)).bit_length() - 1  # the lowest hole
        above = self.held >> base
        bitmap = above.to_bytes((above.bit_length() + 7) // 8, "little")
        runs, told = _encode_runs(above, room)
        whole_bitmap, whole_runs = len(bitmap) <= room, told >= above.bit_length()
        flags = (self._UNKNOWN if self.unknown else 0) | (self._EQUATIONS if sums else 0)
        if whole_runs and (not whole_bitmap or len(runs) < len(bitmap)):
            body, flags = runs, flags | self._RUNS
        elif whole_bitmap:
            body = bitmap
        elif told > 8 * room:
            body, flags = runs, flags | self._RUNS | self._CUT
        else:
            body, flags = bitmap[:room], flags | self._CUT
        return pack_fields(self._LAYOUT, self, flags, self.epoch, self.seq, self.prefix, base) + sums + body

    @classmethod
    def decode(cls, payload: bytes) -> Report:
        """Raises BadMessage. Holds at most 8 KiB for a bitmap, whatever the bytes say."""
        if len(payload) < cls._LAYOUT.size:
            raise BadMessage(f"REPORT of {len(payload)} B, at least {cls._LAYOUT.size}")
        flags, epoch, seq, prefix, base = cls._LAYOUT.unpack_from(payload)
        if flags & ~(cls._RUNS | cls._CUT | cls._UNKNOWN | cls._EQUATIONS):
            raise BadMessage(f"REPORT with flags 0x{flags:02x}")
        body = payload[cls._LAYOUT.size :]
        equations: tuple[tuple[int, int], ...] = ()
        if flags & cls._EQUATIONS:
            equations, body = _decode_equations(body)
        if flags & cls._RUNS:
            above, told = _decode_runs(body, MAX_FRAGMENTS - base)
        else:
            above, told = int.from_bytes(body, "little"), 8 * len(body)
        if base + above.bit_length() > MAX_FRAGMENTS:
            raise BadMessage(f"REPORT of fragment {base + above.bit_length() - 1}")
        if above & 1:
            raise BadMessage(f"REPORT says that its first hole, fragment {base}, is held")
        covered = min(base + told, MAX_FRAGMENTS) if flags & cls._CUT else MAX_FRAGMENTS
        held = above << base | (1 << base) - 1
        return cls(epoch, seq, prefix, held, covered, bool(flags & cls._UNKNOWN), equations)


def _encode_equations(equations: tuple[tuple[int, int], ...], room: int) -> bytes:
    """Return a count and that many (generation, number) pairs, as `room` bytes allow; b"" for none."""
    told = equations[: max(0, (room - 1) // 2)]
    pairs = b"".join(bytes((generation, min(number, 0xFF))) for generation, number in told)
    return bytes((len(told),)) + pairs if told else b""


def _decode_equations(body: bytes) -> tuple[tuple[tuple[int, int], ...], bytes]:
    end = 1 + 2 * body[0] if body else 1
    if end > len(body):
        raise BadMessage(f"REPORT that ends within its sums, {len(body)} B of {end}")
    pairs = body[1:end]
    if not pairs or 0 in pairs[1::2] or any(a >= b for a, b in pairwise(pairs[::2])):
        raise BadMessage(f"REPORT with sums {pairs.hex()}: one or more a generation, in ascending order")
    return tuple(zip(pairs[::2], pairs[1::2], strict=True)), body[end:]


def _encode_runs(above: int, room: int) -> tuple[bytes, int]:
    """Return the lengths of holes and held runs in turn, from the first hole, as LEB128 numbers within `room`
    bytes, and the number of fragments that they cover."""
    body = b""
    told = 0
    for _, run in groupby(reversed(f"{above:b}") if above else ""):
        length = left = sum(1 for _ in run)
        number = bytearray()
        while left >= 0x80:
            number.append(left & 0x7F | 0x80)
            left >>= 7
        number.append(left)
        if len(body) + len(number) > room:
            break
        body += number
        told += length
    return body, told


def _decode_runs(body: bytes, limit: int) -> tuple[int, int]:
    above = told = length = shift = 0
    held = False
    for byte in body:
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80:
            if shift > 14:  # 16 bits take three bytes of seven
                raise BadMessage("REPORT with a run of more than three bytes")
            continue
        if length == 0 or told + length > limit:
            raise BadMessage(f"REPORT with a run of {length} from fragment {told} of {limit} above its base")
        if held:
            above |= ((1 << length) - 1) << told
        told += length
        held = not held
        length = shift = 0
    if shift:
        raise BadMessage("REPORT that ends within a run")
    return above, told


class MessageQueue:
    """MSGs of at most `longest_bytes`, by priority (0 first), then age. Of too many the oldest is dropped."""

    def __init__(self, longest_bytes: int) -> None:
        self._longest_bytes = longest_bytes
        self._order = count()
        self._heap: list[tuple[int, int, bytes]] = []  # priority, order, payload

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, payload: bytes, priority: int) -> None:
        """Raises ValueError where it does not fit a frame."""
        if len(payload) > self._longest_bytes or not 0 <= priority <= 7:
            raise ValueError(
                f"MSG of {len(payload)} B, priority {priority}: at most {self._longest_bytes} B, 0..7"
            )
        heapq.heappush(self._heap, (priority, next(self._order), payload))
        if len(self._heap) > _MOST_MESSAGES:
            self._heap.remove(min(self._heap, key=lambda message: message[1]))
            heapq.heapify(self._heap)

    def first(self) -> PendingFrame:
        """Raises IndexError where none waits."""
        priority, _, payload = self._heap[0]
        return PendingFrame(Type.MSG, payload, priority=priority)

    def sent(self) -> None:
        heapq.heappop(self._heap)


def pack_fields(layout: struct.Struct, message: object, *fields: float | bytes) -> bytes:
    """Pack the fields. Raises ValueError for one that does not fit."""
    try:
        return layout.pack(*fields)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{message!r:.200} does not fit its frame: {error}") from None


def unpack_fields(layout: struct.Struct, payload: bytes, name: str) -> tuple[Any, ...]:
    """Unpack the fields. Raises BadMessage for a payload of another length."""
    if len(payload) != layout.size:
        raise BadMessage(f"{name} of {len(payload)} B, not {layout.size}")
    return layout.unpack(payload)
