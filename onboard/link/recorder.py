"""Records what crosses ports into one file of bounded size, and stops nobody when it cannot.

Every piece is handed to the kernel at once, so a kill of the program loses none; it is not fsynced, so a
power cut may lose the last half minute. A full file becomes FILE.1, in place of the one before: all in all
the disk holds at most twice the limit. Where the disk refuses, the log says so once, and it is tried again.
A file has one recorder: two would each rename away what the other writes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from hw_profiles import Link
from onboard.console.log import say
from onboard.link import facts_of
from onboard.link.ports.port import Tap, Way
from onboard.link.recording import Kind, Record, Start, encode
from onboard.wire.security.seal import NO_SALT

log = logging.getLogger(__name__)

LIMIT_BYTES = 64 << 20
AGAIN_S = 10.0
_WAYS: dict[Way, Kind] = {"in": Kind.IN, "out": Kind.OUT}


class InUse(BlockingIOError):  # noqa: N818 - a state of the world rather than a mistake
    """Another program records into the file."""


class NoRecording(ValueError):  # noqa: N818 - likewise
    """A file is in the place of the recording, and is something else."""


class Recorder:
    """Appends to `path`; opens it with the first record, or when it is claimed. `lost` counts the pieces that
    it could not write."""

    def __init__(
        self,
        path: Path,
        limit_bytes: int = LIMIT_BYTES,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.limit_bytes = path, limit_bytes
        self.lost = 0
        self._clock = clock
        self._began_s, self._unix_s = clock(), wall()
        self._starts: list[Record] = []
        self._fd = -1
        self._size = 0
        self._not_before_s = self._began_s
        self._told = False

    def claim(self) -> None:
        """Takes the file for this process alone, if it can be written at all.

        Raises InUse, and NoRecording rather than write behind, or in place of, what somebody else keeps.
        """
        try:
            for path in (self.path, self._full):
                if not _ours(path):
                    raise NoRecording(f"{path}: is there, and no recording")
            self._open()
        except InUse:
            raise
        except OSError as error:
            self._fail(error, self._clock())

    def link(
        self, url: str, link: Link, *, local: int, peer: int, salt: bytes = NO_SALT, encrypted: bool = False
    ) -> Tap:
        """Begins the recording of one link; returns what its port is to be given."""
        facts = facts_of(url)
        start = Start(
            unix_s=self._unix_s, url=url, framing=facts.framing, kiss_port=facts.kiss_port, local=local,
            peer=peer, link=link, salt=salt, encrypted=encrypted,
        )  # fmt: skip
        node = peer or local  # the ground, 0, is not told apart by its number
        record = Record(Kind.START, node, self._at_s(), msgspec.json.encode(start))
        self._starts.append(record)
        if self._fd >= 0:  # else it is written when the file is opened
            self._write(encode(record))
        return partial(self._record, node)

    def close(self) -> None:
        """Lets go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _record(self, node: int, way: Way, data: bytes) -> None:
        self._write(encode(Record(_WAYS[way], node, self._at_s(), data)))

    @property
    def _full(self) -> Path:
        """What the file becomes at its limit."""
        return self.path.with_name(f"{self.path.name}.1")

    def _at_s(self) -> float:
        return self._clock() - self._began_s

    def _write(self, record: bytes) -> None:
        now_s = self._clock()
        if now_s < self._not_before_s:
            self.lost += 1
            return
        try:
            if self._fd >= 0 and self._size + len(record) > self.limit_bytes:
                self.close()
                self.path.replace(self._full)
            if self._fd < 0:
                self._open()
            self._append(record)
            self._told = False
        except OSError as error:
            self.lost += 1
            self._fail(error, now_s)

    def _fail(self, error: OSError, now_s: float) -> None:
        self.close()
        self._not_before_s = now_s + AGAIN_S
        if not self._told:
            say(log, "record-failed", level=logging.ERROR, path=str(self.path), why=error.strerror)
        self._told = True

    def _open(self) -> None:
        # Non-blocking: a named pipe that nobody reads would stop the program.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
        self._fd = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise InUse(error.errno, "another program records into it", str(self.path)) from None
        self._size = os.fstat(self._fd).st_size
        # A delimiter first: the record before it may have been cut.
        self._append(b"\0" + b"".join(map(encode, self._starts)))

    def _append(self, data: bytes) -> None:
        """Raises OSError; half of a record may then be in the file."""
        while data:
            written = os.write(self._fd, data)
            self._size += written
            data = data[written:]


def _ours(path: Path) -> bool:
    """Whether there is nothing at `path`, or what a recorder has begun, with a delimiter. Raises OSError."""
    if not path.is_file():
        return True
    with path.open("rb") as file:
        return file.read(1) in (b"", b"\0")
