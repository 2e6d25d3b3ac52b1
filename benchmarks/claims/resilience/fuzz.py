"""No bytes that a link or a disk can bring raise what is not foreseen, or make a decoder's memory grow.

Every decoder is fed mutations of its golden file (tests/vectors), so that they reach deep, and some bytes
that are random throughout; a session is fed sealed nonsense, a stream of all frame types with payloads
mutated in the same way. A seed repeats a run. Memory is what the process has resident: after a tenth of
the inputs, in which pools and caches fill, and at the end.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from benchmarks.harness import process
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from hw_profiles import load_link
from onboard.codec import explicit, sparse
from onboard.codec.layout import Layout, layout
from onboard.codec.mask import Draw, drawn
from onboard.codec.model import BadPack
from onboard.codec.pack import unpack
from onboard.codec.sparse import BadExchange
from onboard.link import recording
from onboard.link.ports.framing import cobs_stream, kiss_stream
from onboard.mission.health import decode_health
from onboard.mission.objects import decode_task, decode_update
from onboard.wire.config import Identity, Limits, Medium, Security, SessionState
from onboard.wire.events import Arrived
from onboard.wire.framing import cobs, frame, kiss
from onboard.wire.framing.frame import BadFrame, Type
from onboard.wire.messages import BadMessage, Cancel, Done, Offer, Report
from onboard.wire.security.cipher import Cipher
from onboard.wire.security.seal import Sealer
from onboard.wire.security.security_context import Hello
from onboard.wire.session import Session

INPUTS = 10_000_000
GROWN_MB = 1.0  # 1 B for each of ten million inputs would be 10 MB
KEY = bytes(range(32))
VECTORS = Path(__file__).parent.parent.parent.parent / "tests" / "vectors"
# The layout that the packs were made for, when small kernels had a group each.
_TODAY = layout({"conv": (3, 2, 3, 3), "conv.bias": (3,), "dense": (4, 24), "tiny": (2, 3), "scale": ()})
SMALL = Layout(tuple(replace(t, group=9) if t.name == "conv" else t for t in _TODAY.tensors))
MASK = drawn(Draw(seed=73, round=2, edge=(3, 4), share=6554, run=32), 200)  # of sparse-*.bin
# Ends of ranges, and the delimiters and escapes of both framings.
_TELLING = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF, 0xC0, 0xDB, 0xDC, 0xDD)
_BATCH = 1_000

OPTIONS = (
    click.Option(
        ["--inputs"], type=click.IntRange(min=100), default=INPUTS, help="Of all decoders together."
    ),
    click.Option(["--seed"], type=int, default=1, help="Repeats a run."),
)


@dataclass(frozen=True)
class Target:
    """A decoder, examples of what it reads, what it may raise, and its share of all inputs."""

    name: str
    feed: Callable[[bytes], object]
    examples: tuple[bytes, ...]
    foreseen: tuple[type[Exception], ...] = ()
    share: int = 10


def measure(tell: ProgressLine, *, inputs: int, seed: int) -> list[Row]:
    """Ten million inputs take six minutes on one core."""
    rows: list[Row] = []
    targets = list(all_targets(seed))
    shares = sum(target.share for target in targets)
    for target in targets:
        rows += _rows(target, inputs * target.share // shares, seed, tell)
    return rows


def _rows(target: Target, inputs: int, seed: int, tell: ProgressLine) -> Iterator[Row]:
    source = random.Random(f"{seed}/{target.name}")
    unforeseen: list[str] = []
    settled_bytes = 0
    began_s = time.perf_counter()
    for done in range(0, inputs, _BATCH):
        tell(f"{target.name}, {done:,} of {inputs:,}")
        for _ in range(min(_BATCH, inputs - done)):
            data = mutated(source, target.examples)
            try:
                target.feed(data)
            except target.foreseen:
                pass
            except Exception as error:  # that is what is looked for
                unforeseen.append(f"{type(error).__name__} on {data.hex()}")
        if done <= inputs / 10:
            settled_bytes = process.memory(os.getpid()).resident_bytes
    took_s = time.perf_counter() - began_s
    grown_bytes = process.memory(os.getpid()).resident_bytes - settled_bytes
    for text in unforeseen[:3]:
        click.echo(f"{target.name}: {text}", err=True)
    yield Row(f"{target.name}: exceptions", len(unforeseen), f"of {inputs:,} inputs", 0)
    yield Row("  memory grown", max(0.0, grown_bytes / 1e6), "MB", GROWN_MB)
    yield Row("  speed", inputs / took_s, "inputs/s")


def mutated(source: random.Random, examples: tuple[bytes, ...]) -> bytes:
    """An example with one to four things wrong with it; once in sixteen times, random bytes."""
    if source.random() < 1 / 16:
        return source.randbytes(source.randrange(300))
    data = bytearray(source.choice(examples))
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) + 1)
        what = source.randrange(6)
        if what == 0:
            del data[at:]
        elif what == 1:
            data[at:at] = source.randbytes(source.randint(1, 8))
        elif what == 2:
            del data[at : at + source.randint(1, 8)]
        elif what == 3:
            data += data[at : at + 40]
        elif at < len(data):
            data[at] = source.choice(_TELLING) if what == 4 else data[at] ^ 1 << source.randrange(8)
    return bytes(data)


def all_targets(seed: int) -> Iterator[Target]:
    """Everything that reads bytes from a link or from a file that a link filled."""
    golden = {path.stem: path.read_bytes() for path in VECTORS.glob("*.bin")}
    one = golden["frame"]
    hashed = frame.keyed(KEY)
    yield Target("frame", lambda data: frame.decode(data, hashed), (one,), (BadFrame,))
    sealed, cipher = golden["frame-encrypted"], Cipher(KEY)
    yield Target("frame, encrypted", cipher.decode, (sealed,), (BadFrame,), share=5)
    yield Target("frame, unproven", frame.unproven, (one,), (BadFrame,))
    yield Target("COBS", cobs.decode, (golden["cobs"][:-1], cobs.encode(b"x" * 600)[:-1]), (cobs.BadCobs,))
    yield Target("COBS stream", cobs_stream(222).feed, (golden["cobs"] * 2,))
    yield Target("KISS", lambda data: kiss.decode(data, 1), (golden["kiss"][1:-1],), (kiss.BadKiss,))
    yield Target("KISS stream", kiss_stream(222, 1).feed, (golden["kiss"] * 2,))
    for name, decode in (
        ("OFFER", Offer.decode), ("DONE", Done.decode), ("CANCEL", Cancel.decode), ("HELLO", Hello.decode),
        ("health", decode_health), ("task", decode_task), ("update", decode_update),
    ):  # fmt: skip
        yield Target(name, decode, (golden[name.lower()],), (BadMessage,), share=5)
    reports = tuple(data for name, data in golden.items() if name.startswith("report"))
    yield Target("REPORT", Report.decode, reports, (BadMessage,))
    packs = (golden["pack"], golden["pack-half"], golden["pack-dense"])
    yield Target("weights", lambda data: unpack(data, SMALL), packs, (BadPack,), share=2)
    exchanges = tuple(data for name, data in golden.items() if name.startswith("sparse"))
    yield Target("exchange", lambda data: sparse.decode(data, MASK), exchanges, (BadExchange,), share=2)
    indexed = tuple(data for name, data in golden.items() if name.startswith("explicit"))
    yield Target("with an index", lambda data: explicit.decode(data, 2000), indexed, (BadExchange,), share=2)
    yield Target("recording", recording.decode, (golden["record"][:-1],), (recording.BadRecord,))
    payloads = (
        *reports,
        *(golden[name] for name in ("offer", "done", "cancel", "hello", "health")),
        b"x" * 200,
    )
    yield Target("session", Sealed(seed).feed, payloads, share=10)


class Sealed:
    """A session that hears, from a peer with its key, frames of every type with any payload, and answers."""

    def __init__(self, seed: int) -> None:
        link = load_link("uhf-9k6")
        limits = Limits(max_object_bytes=1 << 16, max_incoming_bytes=1 << 18)
        self._source = random.Random(seed)
        self._session = Session(
            Identity(0, 3, primary=True),
            Medium(link),
            Security(KEY),
            SessionState(epoch=1),
            limits=limits,
        )
        self._session.offer(1, bytes(2_000), 0.0)
        self._sealer = Sealer(KEY, source=3, destination=0, epoch=1)
        self._now = 0.0

    def feed(self, payload: bytes) -> None:
        """One frame in, and all that it makes the session say, out."""
        source, session = self._source, self._session
        self._now += 0.05
        raw = self._sealer.seal(
            source.choice(list(Type)), payload[:200], object_id=source.randrange(6),
            fragment=source.randrange(8), priority=source.randrange(8), poll=source.random() < 0.3,
            over=source.random() < 0.3,
        )  # fmt: skip
        for event in session.receive(raw, self._now):
            if isinstance(event, Arrived):
                session.accept(event.digest, self._now)
        session.tick(self._now)
        while session.transmit(self._now) is not None:
            pass
        if source.random() < 0.001:  # the peer may have ended it
            session.offer(1, bytes(2_000), self._now)
