"""Reads and writes the files of a program's own folder, durably, so that nothing in their place can do harm.

A link, pipe, folder, socket or device with such a file's name was not made by this program. A link is never
followed, as writing would empty its target; a pipe is never waited for and a device never opened. Whatever is
in the way is renamed in the same folder, and the program goes on as if its file did not exist."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import resource
import stat
from collections.abc import Iterator
from hashlib import blake2s
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Literal

from onboard.console.log import say

log = logging.getLogger(__name__)

CHECK_BYTES = 16

Kind = Literal["file", "folder"]
LOCK = "lock"  # the file in a folder that its user holds
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE = 0o666  # less the umask
KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotAFile(OSError):  # noqa: N818 - "not" says error already
    """Something other than a regular file has the name of one."""


def read_file(path: Path, most_bytes: int | None = None) -> bytes:
    """Reads the file at `path`. Raises FileNotFoundError; NotAFile for anything but a regular file, which is
    put aside if possible; OSError if it cannot be read or has more than `most_bytes`."""
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most_bytes is not None and size > most_bytes:
            raise OSError(errno.EFBIG, f"{size} B, at most {most_bytes} B were written", str(path))
        return file.read()


def open_to_read(path: Path) -> BufferedReader:
    if (told := _put_aside(path, "file")) is not None:
        raise told
    return os.fdopen(os.open(path, os.O_RDONLY | _SAFELY), "rb")


def changed_at(path: Path) -> int:
    """Returns when the file was written last, in nanoseconds; 0 if that cannot be said."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def remove_file(path: Path) -> bool:
    """Removes the file at `path`, and returns whether there was one. Raises OSError."""
    clear_the_way(path)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


def write_durably(path: Path, content: bytes | memoryview) -> None:
    with _open_to_write(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, *content: bytes | memoryview) -> None:
    """Replaces the file at `path` by these pieces: after a power cut it is the old one or the new one, never
    a mixture."""
    with replacing(path) as file:
        for piece in content:
            file.write(piece)


@contextlib.contextmanager
def of_any_size() -> Iterator[None]:
    """Lifts the limit of a child's files, which is there for what libraries write to standard error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def replacing(path: Path, mode: int = _MODE) -> Iterator[BinaryIO]:
    """Opens a file that durably replaces the one at `path` when the block ends. If the block or the disk
    fails, the old file stays and nothing is left behind."""
    new = path.with_name(path.name + ".new")
    clear_the_way(path)
    try:
        with _open_to_write(new, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a file's new name durable; its own fsync need not do that (POSIX leaves it open)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Locks `folder` until this process dies: two agents with one state would count from the same epoch.
    Raises BlockingIOError if another process has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _lock_of(folder: Path) -> int:
    """Opens the lock file. An obstacle is put aside under a lock of the folder itself, as two programs that
    start at once could each put aside the other's new file."""
    path, flags = folder / LOCK, os.O_RDWR | os.O_CREAT | _SAFELY
    if _obstacle(path, "file") is None:
        return os.open(path, flags, _MODE)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        clear_the_way(path)
        return os.open(path, flags, _MODE)
    finally:
        os.close(handle)


def checked(body: bytes, name: bytes = b"") -> bytes:
    """Appends a checksum of the body and of the `name` under which alone it may be stored."""
    return body + blake2s(body + name, digest_size=CHECK_BYTES).digest()


def unchecked(content: bytes, *names: bytes) -> bytes:
    """Returns the body that `checked` stored under one of these names. Raises ValueError if it is damaged."""
    body = content[:-CHECK_BYTES]
    if content not in (checked(body, name) for name in names or (b"",)):
        raise ValueError(f"damaged: {len(content)} B")
    return body


def discard_file(path: Path) -> None:
    """Removes a file that is not what was written, so that this is logged once. Never raises OSError."""
    with contextlib.suppress(OSError):
        remove_file(path)
    why = "not what was written: what it was for is asked for again"
    say(log, "unreadable", level=logging.ERROR, path=str(path), why=why)


def clear_the_way(path: Path, kind: Kind = "file") -> None:
    """Puts aside and logs what is at `path` unless it is of this kind (a folder may be a link to one)."""
    if told := cleared(path, kind):
        say(log, "put-aside", level=logging.WARNING, path=str(path), why=told)


def cleared(path: Path, kind: Kind = "file") -> str:
    """Puts aside as `clear_the_way` does; returns what and where, "" for nothing. Raises OSError."""
    told = _put_aside(path, kind)
    if told is not None and os.path.lexists(path):
        raise told
    return "" if told is None else str(told.strerror)


def free_name(path: Path) -> Path:
    """Returns an unused name in the same folder for what is put aside; no program reads it."""
    names = (path.with_name(f"{path.name}.bad{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _open_to_write(path: Path, mode: int = _MODE) -> BinaryIO:
    clear_the_way(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _SAFELY, mode), "wb")


def _put_aside(path: Path, kind: Kind) -> NotAFile | None:
    if (error := _obstacle(path, kind)) is None:
        return None
    try:
        to = path.rename(free_name(path))
    except OSError as refused:
        return NotAFile(error.errno, f"{error.strerror}, and cannot be put aside: {refused}", str(path))
    return NotAFile(error.errno, f"{error.strerror}; it is {to.name} now", str(path))


def _obstacle(path: Path, kind: Kind) -> NotAFile | None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if path.is_dir() if kind == "folder" else stat.S_ISREG(mode):
        return None
    return NotAFile(errno.EINVAL, f"{KINDS.get(stat.S_IFMT(mode), 'a file')}, and no {kind}", str(path))
