"""Replays a recording of ports through the programs' own framing and sessions, as text or JSON lines.

A session of the recording end receives what came in, and one of the other end what went out, as if nothing
had been lost. Neither knows what happened before the recording began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from onboard.config import check_cipher
from onboard.link.ports.framing import FRAMINGS, Framing
from onboard.link.ports.port import Way
from onboard.link.recording import BadRecord, Kind, Reader, Record, Start, start_of
from onboard.monitor.render import bit_rate
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Event, Rekeyed
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import BROADCAST, BadFrame, Frame, Type
from onboard.wire.security.seal import Keys
from onboard.wire.session import Session

_REFUSED = (
    "bad_tags", "replays", "misaddressed", "malformed", "unknown_keys", "plain_dropped", "encrypted_dropped",
)  # fmt: skip
_FRAGMENTS = (Type.DATA, Type.REPAIR)
COUNTERS = (
    "frames_received", "bad_tags", "unknown_keys", "plain_dropped", "encrypted_dropped", "replays",
    "malformed", "misaddressed", "fragments_received", "duplicates", "orphans", "corrupt", "loss_in",
    "goodput_in_bps",
)  # fmt: skip


@dataclass(frozen=True)
class ReplayedFrame:
    """One frame: its time (Unix seconds), the board, the direction, and its fate at a session.

    `frame`: its unproven content, None if it does not have the shape of a frame. `verdict`: taken, duplicate,
    orphan (a fragment whose OFFER was not heard), unchecked (without the key), broadcast, or the counter
    under which it was dropped. `events`: the names of the session's events that it caused."""

    unix_s: float
    node: int
    way: Way
    size: int
    frame: Frame | None
    verdict: str
    events: tuple[str, ...] = ()


@dataclass
class Stream:
    """One direction of one link; no session without a key. `unix_s`: of the first and the last byte."""

    node: int
    way: Way
    framing: Framing
    session: Session | None = None
    encrypted: bool | None = None  # unknown before the first start
    bytes: int = 0
    frames: int = 0
    broken: int = 0  # violations of earlier framings
    arrived: int = 0
    unix_s: list[float] = field(default_factory=list)


class Replay:
    """A recording in one or more files, with the boards' keys. Iterate once, then read `streams`."""

    def __init__(self, paths: Sequence[Path], key_of: Callable[[int], bytes | Keys | None]) -> None:
        self.streams: dict[tuple[int, Way], Stream] = {}
        self._readers = [Reader(path) for path in paths]
        self._key_of = key_of
        self._unusable = 0
        self._unix_s: dict[int, float] = {}  # when the current run of each link's recorder began

    @property
    def damaged(self) -> int:
        """The number of records that are damaged, of another version, or of a link whose start is missing."""
        return sum(reader.damaged for reader in self._readers) + self._unusable

    def __iter__(self) -> Iterator[ReplayedFrame]:
        """Yields the frames. Raises OSError, and ConfigError for frames that cannot be decrypted here."""
        for record in chain.from_iterable(self._readers):
            if record.kind is Kind.START:
                try:
                    self._begin(record.node, start_of(record))
                except BadRecord:
                    self._unusable += 1
                continue
            way: Way = "in" if record.kind is Kind.IN else "out"
            stream = self.streams.get((record.node, way))
            if stream is None:
                self._unusable += 1
            else:
                yield from self._play(stream, record)

    def _begin(self, node: int, start: Start) -> None:
        self._unix_s[node] = start.unix_s
        way: Way
        for way, hears, speaks in (("in", start.local, start.peer), ("out", start.peer, start.local)):
            fresh = FRAMINGS[start.framing].make(start.link.mtu_bytes, start.kiss_port)
            stream = self.streams.setdefault((node, way), Stream(node, way, fresh))
            if stream.framing is not fresh:  # a later run of the program opened the port
                stream.broken += stream.framing.broken
                stream.framing = fresh
            if stream.encrypted != start.encrypted:
                stream.encrypted, stream.session = start.encrypted, self._session(start, hears, speaks, node)

    def _session(self, start: Start, hears: int, speaks: int, node: int) -> Session | None:
        key = self._key_of(node)
        if key is None:
            return None
        if start.encrypted:
            check_cipher(f"{start.url}: its frames are encrypted")
        return Session(
            Identity(hears, speaks, primary=hears == 0), Medium(start.link),
            Security(key, encrypted=start.encrypted), SessionState(epoch=1, salt=start.salt),
            now=start.unix_s,
        )  # fmt: skip

    def _play(self, stream: Stream, record: Record) -> Iterator[ReplayedFrame]:
        unix_s = self._unix_s[record.node] + record.at_s
        stream.unix_s = [*stream.unix_s[:1], unix_s]
        stream.bytes += len(record.data)
        for raw in stream.framing.feed(record.data):
            stream.frames += 1
            try:
                frame = framing.unproven(raw)
            except BadFrame:
                frame = None
            verdict, events = _hear(stream, raw, frame, unix_s)
            for event in events:  # both directions go on under the salt that a HELLO has put in force
                if isinstance(event, Rekeyed):
                    for (node, _), each in self.streams.items():
                        if node == stream.node and each.session and each.session.salt != event.salt:
                            each.session.rekey(event.salt)
            yield ReplayedFrame(
                unix_s, stream.node, stream.way, len(raw), frame, verdict,
                tuple(type(event).__name__ for event in events),
            )  # fmt: skip


def _hear(stream: Stream, raw: bytes, frame: Frame | None, now: float) -> tuple[str, list[Event]]:
    """Returns the session's verdict on a frame, known from the counter that it increments, and its events."""
    session = stream.session
    if session is None:
        return ("malformed" if frame is None else "unchecked"), []
    if frame is not None and frame.destination == BROADCAST:
        return "broadcast", []
    before = session.snapshot(now)
    events = session.receive(raw, now)
    after = session.snapshot(now)
    for event in events:
        if isinstance(event, Arrived):
            session.accept(event.digest, now)
            stream.arrived += 1
    for name in _REFUSED:
        if getattr(after, name) > getattr(before, name):
            return name, events
    if frame is not None and frame.type in _FRAGMENTS:
        if after.duplicates > before.duplicates:
            return "duplicate", events
        if after.orphans > before.orphans:
            return "orphan", events
    return "taken", events


def lines(replay: Replay, *, as_json: bool) -> Iterator[str]:
    """Yields the lines to print. Raises OSError if the recording cannot be read."""
    for line in replay:
        yield msgspec.json.encode(_values(line)).decode() if as_json else _text(line)
    totals = [_totals(stream) for stream in replay.streams.values()]
    if as_json:
        yield msgspec.json.encode({"streams": totals, "damaged": replay.damaged}).decode()
        return
    yield ""
    for each in totals:
        told = [f"{name.removesuffix('_in').replace('_', ' ')} {count}" for name, count in each.items()
                if name not in ("node", "way", "loss_in", "goodput_in_bps")]  # fmt: skip
        if "loss_in" in each:
            told += [f"loss {100 * each['loss_in']:.1f} %", f"goodput {bit_rate(each['goodput_in_bps'])}"]
        yield f"node {each['node']} {each['way']}: {', '.join(told)}"
    yield f"records damaged: {replay.damaged}"


def _values(line: ReplayedFrame) -> dict[str, Any]:
    values = asdict(line) | {"frame": None}
    if line.frame is not None:
        values["frame"] = msgspec.structs.asdict(line.frame) | {"type": line.frame.type.name}
        values["frame"]["payload"] = line.frame.payload.hex()
    return values


def _text(line: ReplayedFrame) -> str:
    at = datetime.fromtimestamp(line.unix_s, timezone.utc).strftime("%H:%M:%S.%f")
    text = f"{at} node {line.node} {line.way:<3} {line.size:4} B  "
    if (frame := line.frame) is not None:
        text += f"{frame.type.name:<6} {frame.source}>{frame.destination} {frame.epoch}:{frame.seq}"
        text += f" object {frame.object_id} fragment {frame.fragment}"
        text += f"{' POLL' * frame.poll}{' OVER' * frame.over}{' ENC' * frame.encrypted}"
    return f"{text}  {' '.join([line.verdict, *line.events])}"


def _totals(stream: Stream) -> dict[str, Any]:
    totals: dict[str, Any] = {
        "node": stream.node, "way": stream.way, "bytes": stream.bytes, "frames": stream.frames,
        "broken": stream.broken + stream.framing.broken, "arrived": stream.arrived,
    }  # fmt: skip
    if stream.session is not None:
        snapshot = stream.session.snapshot(stream.unix_s[-1] if stream.unix_s else 0.0)
        totals |= {name: getattr(snapshot, name) for name in COUNTERS}
    return totals
