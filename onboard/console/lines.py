"""Writes lines without ever waiting for the reader.

A paused terminal, a pager, a stalled journal and a full pipe all block write(2), and non-blocking mode would
apply to the terminal itself and so to the user's shell. So a thread writes, and lines that do not fit its
queue are dropped and counted. A full disk or a reader that has gone costs lines and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

MOST_BYTES = 256 * 1024
"""Queued for a slow reader: some thousand events, or a minute of the most frequent reports."""
ROOM_BYTES = 64 * 2**20  # holds all results of a long run, none of which may be missing
_LOOK_S = 0.05  # how often `close` asks whether to wait on
_STACK_BYTES = 256 * 1024  # of the thread; the 8 MB of the default count against a board's memory limit


class Lines:
    """Writes lines to a file descriptor, in order. `missed` formats the line that says how many were dropped,
    which follows as soon as writing works again; an empty text writes none."""

    def __init__(self, fd: int, missed: Callable[[int], str], most_bytes: int = MOST_BYTES) -> None:
        self._fd, self._missed_line, self._most_bytes = fd, missed, most_bytes
        self._queue: deque[tuple[int, bytes]] = deque()  # (how many were dropped before it, a line)
        self._queued_bytes = 0
        self._missed = 0  # since the last line in the queue
        self._failed = 0  # lines before the next one to write that the descriptor refused
        self._cut = False  # what was written last has no end
        self._idle = True
        self._thread: threading.Thread | None = None
        self._renew()
        os.register_at_fork(after_in_child=self._renew)
        self.unread = False
        """Whether the last write found no reader."""

    def _renew(self) -> None:
        """Starts anew in a forked child, which has no writing thread and whose lock may be held forever."""
        self._changed = threading.Condition(threading.Lock())
        self._thread = None

    def put(self, text: str) -> None:
        """Queues a text that ends with a line end. Returns at once."""
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._queue and self._queued_bytes + len(data) > self._most_bytes:
                self._missed += 1
                return
            self._queue.append((self._missed, data))
            self._queued_bytes += len(data)
            self._missed = 0
            self._changed.notify_all()
            if self._thread is None:
                self._start()

    def close(self, within_s: float = 0.3, patient: Callable[[], bool] = lambda: False) -> None:
        """Waits until all is written, or gives up after `within_s` and once `patient` says no."""
        end_s = time.monotonic() + within_s
        with self._changed:
            while self._thread is not None and not (self._idle and not self._queue and not self._missed):
                if time.monotonic() >= end_s and not patient():
                    return
                self._changed.wait(_LOOK_S)

    def _start(self) -> None:
        before = threading.stack_size(_STACK_BYTES)
        try:
            self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
            self._thread.start()
        finally:
            threading.stack_size(before)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                while not self._queue and not self._missed:
                    self._changed.wait()
                self._idle = False
                missed, line = self._queue.popleft() if self._queue else (self._missed, b"")
                if not line:
                    self._missed = 0
                self._queued_bytes -= len(line)
            self._write(missed, line)

    def _write(self, missed: int, line: bytes) -> None:
        missed += self._failed
        said = self._missed_line(missed).encode("utf-8", "backslashreplace") if missed else b""
        try:
            for piece in (b"\n" if self._cut else b"", said, line):
                while piece:
                    written = os.write(self._fd, piece)
                    piece = piece[written:]
                    self._cut = bool(piece)
            self._failed, self.unread = 0, False
        except OSError as error:
            self._failed = missed + bool(line)
            self.unread = error.errno == errno.EPIPE


class Outlet:
    """`Lines` as a text file, for a library that writes to one. Each write is written or dropped as a whole.
    The stream is None if it was closed before the program began."""

    encoding = "utf-8"

    def __init__(self, lines: Lines | Direct, stream: TextIO | None) -> None:
        self._lines, self._stream = lines, stream

    def write(self, text: str) -> int:
        self._lines.put(text)
        return len(text)

    def flush(self) -> None:
        """Does nothing: what was written is on its way already."""

    def isatty(self) -> bool:
        return is_terminal(self._stream)

    def fileno(self) -> int:
        """Rich asks it for the terminal's size."""
        if self._stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._stream.fileno()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; None is a stream that was closed before the program began."""
    return stream is not None and stream.isatty()


class LineInPlace:
    """One line on a terminal, written again in its place while something lasts. On any other stream nothing
    is written, and `is_seen` is false."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if is_terminal(stream) else None
        self._is_shown = False

    @property
    def is_seen(self) -> bool:
        return self._stream is not None

    def show(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(f"\r\033[K{text}")
            self._stream.flush()
            self._is_shown = bool(text)

    def clear(self) -> None:
        if self._is_shown:
            self.show("")


def descriptor(stream: TextIO) -> int | None:
    """Returns a stream's file descriptor; None if it has none, as in a test."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


class Direct:
    """Takes the place of `Lines` for a stream without a file descriptor, as in a test."""

    unread = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def put(self, text: str) -> None:
        """Writes at once."""
        self._stream.write(text)


@contextlib.contextmanager
def lines_to(
    stream: TextIO | None,
    missed: Callable[[int], str],
    most_bytes: int = MOST_BYTES,
    patient: Callable[[], bool] = lambda: False,
) -> Iterator[Lines | Direct]:
    """`Lines` to a stream for the length of the block; None is a stream that was closed before."""
    fd = os.open(os.devnull, os.O_WRONLY) if stream is None else descriptor(stream)
    if fd is None:
        assert stream is not None, "the null device has a descriptor"
        yield Direct(stream)
        return
    lines = Lines(fd, missed, most_bytes)
    try:
        yield lines
    finally:
        lines.close(patient=patient)
