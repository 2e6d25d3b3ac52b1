"""A whole frame costs at most twice its bare keyed BLAKE2s at 200 B of payload, 2.5 times at 1400 B.

A whole frame is header, tag and COBS: `frame.encode` and `cobs.encode`, and the way back. That is what is
claimed. Beside it stands what an end pays: `Sealer.seal`, which counts the seqs, whitening and COBS; the
stream in reads of 4 KiB, as Linux's terminals give them, cut, unstuffed, whitened back, and opened with the
replay window. That has the same bound at 1400 B and none at 200 B. Each is divided into the time that the
standard library takes to hash the same header and payload under the same key in one call. Payloads are random
bytes, as packed weights nearly are. Encrypted frames (AES-256-CCM) are measured likewise and promise nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from hashlib import blake2s
from statistics import median

from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from onboard.link.ports.framing import whiten
from onboard.wire.framing import cobs, frame
from onboard.wire.framing.frame import HEADER_BYTES, OVERHEAD_BYTES, TAG_BYTES, Type
from onboard.wire.security.seal import SECRET, TRAFFIC, Opener, Sealer, directional_key

BOUNDS: dict[int, tuple[float, float | None]] = {200: (0.5, None), 1400: (0.4, 0.4)}
"""By payload bytes the least share of BLAKE2s's speed: of a whole frame, of the path of an end."""
FRAMES = 256  # a repeat
REPEATS = 200
READ_BYTES = 4096
KEY = bytes(range(32))
BOARD, GROUND = 3, 0
PRIORITY, OBJECT_ID = 4, 5

Work = dict[str, Callable[[], None]]
"""What is timed, by its name; each goes through all frames, and lets go of each at once as a port does."""


def measure(tell: ProgressLine, repeats: int = REPEATS) -> list[Row]:
    """Ratios are medians over repeats that do one after the other what is compared; takes six seconds."""
    rows = []
    for payload_bytes, (bound, end_bound) in BOUNDS.items():
        tell(f"frames of {payload_bytes} B")
        payloads = [random.Random(i).randbytes(payload_bytes) for i in range(FRAMES)]
        rows += _rows(f"a frame of {payload_bytes} B", payloads, repeats, _frame_alone, bound)
        rows += _rows(f"an end, {payload_bytes} B", payloads, repeats, _end, end_bound)
        rows += _rows(f"an end, encrypted, {payload_bytes} B", payloads, repeats, _encrypted_end, None)
    return rows


def _rows(
    what: str,
    payloads: list[bytes],
    repeats: int,
    work_on: Callable[[list[bytes], int], Work],
    bound: float | None,
) -> list[Row]:
    """Of one kind of work: both directions, and the hash that took turns with them."""
    key = directional_key(KEY, BOARD, GROUND, 0)
    bodies = [bytes(HEADER_BYTES) + payload for payload in payloads]

    def hash_all() -> None:
        for body in bodies:
            blake2s(body, digest_size=TAG_BYTES, key=key).digest()

    spent_s: dict[str, list[float]] = {"hashed": [], "encoded": [], "decoded": []}
    for epoch in range(1, repeats + 1):
        for name, work in {"hashed": hash_all, **work_on(payloads, epoch)}.items():
            spent_s[name].append(_cpu_s(work))
    hashed_s = spent_s.pop("hashed")
    rows = []
    for name, times_s in spent_s.items():
        ratio = median(h / t for h, t in zip(hashed_s, times_s, strict=True))
        rows.append(Row(f"{what}, {name}", ratio, "of BLAKE2s's speed", bound, at_least=True))
        rows.append(Row(f"  {name} a second", FRAMES / median(times_s), "frames"))
    rows.append(Row("  hashed a second", FRAMES / median(hashed_s), "frames"))
    return rows


def _frame_alone(payloads: list[bytes], epoch: int) -> Work:
    """Header, tag and COBS of one frame after another."""
    key = frame.keyed(directional_key(KEY, BOARD, GROUND, 0))
    sender = frame.tagging(key, BOARD, GROUND, epoch)

    def encode(fragment: int, payload: bytes) -> bytes:
        raw = frame.encode(sender, Type.DATA, PRIORITY << 5, fragment + 1, OBJECT_ID, fragment, payload)
        return cobs.encode(raw)

    chunks = [encode(fragment, payload)[:-1] for fragment, payload in enumerate(payloads)]

    def encode_all() -> None:
        for fragment, payload in enumerate(payloads):
            cobs.encode(
                frame.encode(sender, Type.DATA, PRIORITY << 5, fragment + 1, OBJECT_ID, fragment, payload)
            )

    def decode_all() -> None:
        for chunk in chunks:
            frame.decode(cobs.decode(chunk), key)

    return {"encoded": encode_all, "decoded": decode_all}


def _end(payloads: list[bytes], epoch: int, *, encrypted: bool = False) -> Work:
    """What a session and a serial port do with every frame."""
    purpose = SECRET if encrypted else TRAFFIC
    sealer, heard_sealer = (
        Sealer(KEY, source=BOARD, destination=GROUND, epoch=epoch, purpose=purpose) for _ in range(2)
    )
    opener = Opener(KEY, source=BOARD, destination=GROUND, purpose=purpose)
    splitter = cobs.Splitter(OVERHEAD_BYTES + len(payloads[0]))

    def encoded(sealer: Sealer, fragment: int, payload: bytes) -> bytes:
        raw = sealer.seal(Type.DATA, payload, object_id=OBJECT_ID, fragment=fragment, priority=PRIORITY)
        return cobs.encode(whiten(raw))

    stream = b"".join([encoded(heard_sealer, fragment, payload) for fragment, payload in enumerate(payloads)])
    reads = [stream[at : at + READ_BYTES] for at in range(0, len(stream), READ_BYTES)]

    def encode_all() -> None:
        for fragment, payload in enumerate(payloads):
            encoded(sealer, fragment, payload)

    def decode_all() -> None:
        for read in reads:
            for chunk in splitter.feed(read):
                opener.open(whiten(cobs.decode(chunk)))
        if opener.opened != len(payloads):
            raise AssertionError(f"{opener.opened} of {len(payloads)} frames were opened")

    return {"encoded": encode_all, "decoded": decode_all}


def _encrypted_end(payloads: list[bytes], epoch: int) -> Work:
    return _end(payloads, epoch, encrypted=True)


def _cpu_s(what: Callable[[], None]) -> float:
    before_s = time.process_time()
    what()
    return time.process_time() - before_s
