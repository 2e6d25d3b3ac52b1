"""Plays a recording of ports again, through the framing and the sessions that the programs themselves run.

What came in is heard by a session of the end that recorded, what went out by one of the other end, as if
nothing had been lost on the way. Neither knows what happened before the recording began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from onboard.config import check_cipher
from onboard.link.ports.framing import FRAMINGS, Framing
from onboard.link.ports.port import Way
from onboard.link.recording import BadRecord, Kind, Reader, Record, Start, start_of
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Event, LinkSnapshot, Rekeyed
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import BROADCAST, BadFrame, Frame, Type
from onboard.wire.security.seal import Keys
from onboard.wire.session import Session

_REFUSED = (
    "bad_tags", "replays", "misaddressed", "malformed", "unknown_keys", "plain_dropped", "encrypted_dropped",
)  # fmt: skip
_FRAGMENTS = (Type.DATA, Type.REPAIR)


@dataclass(frozen=True)
class ReplayedFrame:
    """One frame: when (Unix seconds), over which board's link, which way, and what a session made of it.

    `frame`: what it says of itself, None where it has not the shape of one. `verdict`: taken, duplicate,
    orphan (a fragment of an object whose OFFER was not heard), unchecked (without the key), broadcast, or the
    name of the counter of what was refused. `events`: what it brought about, in the session's names.
    """

    unix_s: float
    node: int
    way: Way
    size: int
    frame: Frame | None
    verdict: str
    events: tuple[str, ...] = ()


@dataclass
class Stream:
    """One way of one link. Without a key there is no session. `broken`: no frame by its framing alone."""

    node: int
    way: Way
    session: Session | None
    framing: Framing
    encrypted: bool
    bytes: int = 0
    frames: int = 0
    broken: int = 0  # of framings before this one
    arrived: int = 0
    unix_s: list[float] = field(default_factory=list)  # of the first and the last byte

    def renew(self, fresh: Framing) -> None:
        """The port was opened by another run of its program."""
        self.broken += self.framing.broken
        self.framing = fresh

    def snapshot(self) -> LinkSnapshot | None:
        """The session's counters."""
        return self.session.snapshot(self.unix_s[-1] if self.unix_s else 0.0) if self.session else None


class Replay:
    """A recording, in one file or several in their order, and the keys of its boards by their numbers.

    Iterate once, then look at the `streams`.
    """

    def __init__(self, paths: Sequence[Path], key_of: Callable[[int], bytes | Keys | None]) -> None:
        self.streams: dict[tuple[int, Way], Stream] = {}
        self._readers = [Reader(path) for path in paths]
        self._key_of = key_of
        self._unstarted = self._unread = 0
        self._unix_s: dict[int, float] = {}  # when the present run of each link's recorder began

    @property
    def damaged(self) -> int:
        """Records that are no records, or of another version, or of a link whose start is missing."""
        return sum(reader.damaged for reader in self._readers) + self._unstarted + self._unread

    def __iter__(self) -> Iterator[ReplayedFrame]:
        """Raises OSError, and ConfigError where frames are encrypted and nothing here can decrypt them."""
        for record in chain.from_iterable(self._readers):
            if record.kind is Kind.START:
                try:
                    self._begin(record.node, start_of(record))
                except BadRecord:
                    self._unread += 1
                continue
            way: Way = "in" if record.kind is Kind.IN else "out"
            stream = self.streams.get((record.node, way))
            if stream is None:
                self._unstarted += 1
            else:
                yield from self._play(stream, record)

    def _begin(self, node: int, start: Start) -> None:
        self._unix_s[node] = start.unix_s
        way: Way
        for way, hears, speaks in (("in", start.local, start.peer), ("out", start.peer, start.local)):
            fresh = FRAMINGS[start.framing].make(start.link.mtu_bytes, start.kiss_port)
            known = self.streams.get((node, way))
            if known is not None and known.encrypted == start.encrypted:
                known.renew(fresh)
                continue
            key, session = self._key_of(node), None
            if key is not None:
                if start.encrypted:
                    check_cipher(f"{start.url}: its frames are encrypted")
                session = Session(
                    Identity(hears, speaks, primary=hears == 0),
                    Medium(start.link),
                    Security(key, encrypted=start.encrypted),
                    SessionState(epoch=1, salt=start.salt),
                    now=start.unix_s,
                )
            if known is None:
                self.streams[node, way] = Stream(node, way, session, fresh, start.encrypted)
            else:
                known.renew(fresh)
                known.session, known.encrypted = session, start.encrypted

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
            self._rekey(stream.node, events)
            yield ReplayedFrame(
                unix_s, stream.node, stream.way, len(raw), frame, verdict,
                tuple(type(event).__name__ for event in events),
            )  # fmt: skip

    def _rekey(self, node: int, events: list[Event]) -> None:
        """A HELLO named the salt that one end has put in force: both ways go on under it."""
        for event in events:
            if isinstance(event, Rekeyed):
                for (each, _), stream in self.streams.items():
                    if each == node and stream.session is not None and stream.session.salt != event.salt:
                        stream.session.rekey(event.salt)


def _hear(stream: Stream, raw: bytes, frame: Frame | None, now: float) -> tuple[str, list[Event]]:
    """What the session makes of a frame, by the counter that it moves."""
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
