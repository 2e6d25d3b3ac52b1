"""A whole frame costs at most twice its bare keyed BLAKE2s at 200 B of payload, 2.5 times at 1400 B.

Encoding is what an end does to a fragment before the port: header, tag (`Sealer.seal`), COBS. Decoding is the
way back: the stream in reads of 4 KiB, as Linux's terminals give them, cut, unstuffed, and opened with its
replay window. Each is divided into the time that the standard library takes to hash the same header and
payload under the same key in one call. Payloads are random bytes, as packed weights nearly are. Encrypted
frames (AES-256-CCM) are measured likewise and promise nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from hashlib import blake2s
from statistics import median

from benchmarks.progress import Progress
from benchmarks.result import Row
from onboard.wire import cobs
from onboard.wire.frame import HEADER_BYTES, OVERHEAD_BYTES, TAG_BYTES, Type
from onboard.wire.seal import Opener, Sealer, directional_key

BOUNDS = {200: 0.5, 1400: 0.4}  # payload bytes: the least share of BLAKE2s's speed
FRAMES = 256  # a repeat
REPEATS = 200
READ_BYTES = 4096
KEY = bytes(range(32))
BOARD, GROUND = 3, 0


def measure(tell: Progress, repeats: int = REPEATS) -> list[Row]:
    """Ratios are medians over repeats that do one of the three after the other; takes four seconds."""
    rows = []
    for payload_bytes, bound in BOUNDS.items():
        tell(f"frames of {payload_bytes} B")
        payloads = [random.Random(i).randbytes(payload_bytes) for i in range(FRAMES)]
        rows += _rows(f"a frame of {payload_bytes} B", payloads, repeats, bound)
        rows += _rows(f"encrypted, {payload_bytes} B", payloads, repeats, None)
    return rows


def _rows(what: str, payloads: list[bytes], repeats: int, bound: float | None) -> list[Row]:
    """Of plain frames, which have a bound, or of encrypted ones."""
    spent = [_repeat(payloads, epoch, encrypted=bound is None) for epoch in range(1, repeats + 1)]
    rows = []
    for name, at in (("encoded", 1), ("decoded", 2)):
        ratio = median(times_s[0] / times_s[at] for times_s in spent)
        rate = FRAMES / median(times_s[at] for times_s in spent)
        rows.append(Row(f"{what}, {name}", ratio, "of BLAKE2s's speed", bound, at_least=True))
        rows.append(Row(f"  {name} a second", rate, "frames"))
    rows.append(Row("  hashed a second", FRAMES / median(times_s[0] for times_s in spent), "frames"))
    return rows


def _repeat(payloads: list[bytes], epoch: int, *, encrypted: bool) -> tuple[float, float, float]:
    """CPU seconds to hash, to encode and to decode all; each frame is let go of at once, as by a port."""
    key = directional_key(KEY, BOARD, GROUND, 0)
    bodies = [bytes(HEADER_BYTES) + payload for payload in payloads]
    sealer, heard_sealer = (
        Sealer(KEY, source=BOARD, destination=GROUND, epoch=epoch, encrypted=encrypted) for _ in range(2)
    )
    opener = Opener(KEY, source=BOARD, destination=GROUND, encrypted=encrypted)
    splitter = cobs.Splitter(OVERHEAD_BYTES + len(payloads[0]))
    stream = b"".join([_encoded(heard_sealer, payload, i) for i, payload in enumerate(payloads)])
    reads = [stream[at : at + READ_BYTES] for at in range(0, len(stream), READ_BYTES)]

    def hash_all() -> None:
        for body in bodies:
            blake2s(body, digest_size=TAG_BYTES, key=key).digest()

    def encode_all() -> None:
        for fragment, payload in enumerate(payloads):
            cobs.encode(sealer.seal(Type.DATA, payload, object_id=5, fragment=fragment, priority=4))

    def decode_all() -> None:
        for read in reads:
            for chunk in splitter.feed(read):
                opener.open(cobs.decode(chunk))

    spent_s = _cpu_s(hash_all), _cpu_s(encode_all), _cpu_s(decode_all)
    if opener.opened != len(payloads):
        raise AssertionError(f"{opener.opened} of {len(payloads)} frames were opened")
    return spent_s


def _encoded(sealer: Sealer, payload: bytes, fragment: int) -> bytes:
    return cobs.encode(sealer.seal(Type.DATA, payload, object_id=5, fragment=fragment, priority=4))


def _cpu_s(what: Callable[[], None]) -> float:
    before_s = time.process_time()
    what()
    return time.process_time() - before_s
