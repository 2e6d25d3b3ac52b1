"""Reads and writes the files of a program's own folder so that nothing in their place can do harm.

A link, a pipe, a folder, a socket or a device with the name of such a file was not made by this program. A
link is never followed, as writing would empty its target; a pipe is never waited for, and a device never
opened. Whatever is in the way is renamed in the same folder, so that nothing of it is lost, and the program
continues as if its file did not exist.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from onboard.console.log import say

log = logging.getLogger(__name__)

_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE = 0o666  # less the umask
_KINDS = {
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
    """The content of the file at `path`, which may have `most_bytes` at most.

    Raises FileNotFoundError; NotAFile for anything but a regular file, which is then put aside if possible;
    OSError for a file that cannot be read or is longer.
    """
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most_bytes is not None and size > most_bytes:
            raise OSError(errno.EFBIG, f"{size} B, at most {most_bytes} B were written", str(path))
        return file.read()


def open_to_read(path: Path) -> BufferedReader:
    """Opens the file at `path` for reading. Raises the same errors as `read_file`."""
    try:
        _check(path)
    except NotAFile as error:
        raise _put_aside(path, error) from None
    return os.fdopen(os.open(path, os.O_RDONLY | _SAFELY), "rb")


def open_to_write(path: Path) -> BinaryIO:
    """Opens the file at `path` for writing, emptied or new. Raises OSError."""
    clear_the_way(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _SAFELY, _MODE), "wb")


def open_to_hold(path: Path) -> int:
    """Opens the file at `path`, which may be new, to lock it. Raises NotAFile, OSError."""
    with contextlib.suppress(FileNotFoundError):
        _check(path)
    return os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, _MODE)


def remove_file(path: Path) -> bool:
    """Removes the file at `path`; returns whether there was one. Raises OSError."""
    clear_the_way(path)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


def clear_the_way(path: Path) -> None:
    """Puts aside whatever is at `path` unless it is a regular file, and logs it. Raises OSError if it
    cannot."""
    if told := cleared(path):
        say(log, "put-aside", level=logging.WARNING, path=str(path), why=told)


def cleared(path: Path) -> str:
    """Does the same as `clear_the_way`, but leaves the logging to the caller: returns what was put aside and
    where it is now, or an empty text if nothing was in the way."""
    try:
        _check(path)
    except FileNotFoundError:
        pass
    except NotAFile as error:
        told = _put_aside(path, error)
        if os.path.lexists(path):
            raise told from None
        return str(told.strerror)
    return ""


def clear_the_way_of_folder(path: Path) -> None:
    """Does the same for the place of a folder or of a link to one: a file there is put aside. Raises
    OSError."""
    if os.path.lexists(path) and not path.is_dir():
        error = _not(path, path.lstat().st_mode, "folder")
        told = _put_aside(path, error)
        say(log, "put-aside", level=logging.WARNING, path=str(path), why=told.strerror)
        if os.path.lexists(path):
            raise told


def _check(path: Path) -> None:
    """Raises FileNotFoundError, NotAFile, OSError."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise _not(path, mode, "file")


def _not(path: Path, mode: int, wanted: str) -> NotAFile:
    return NotAFile(errno.EINVAL, f"{_KINDS.get(stat.S_IFMT(mode), 'a file')}, and no {wanted}", str(path))


def _put_aside(path: Path, error: NotAFile) -> NotAFile:
    """Puts aside what is in the way; returns the same error, with its new path or why it is still there."""
    try:
        to = path.rename(free_name(path))
    except OSError as refused:
        return NotAFile(error.errno, f"{error.strerror}, and cannot be put aside: {refused}", str(path))
    return NotAFile(error.errno, f"{error.strerror}; it is {to.name} now", str(path))


def free_name(path: Path) -> Path:
    """An unused name in the same folder, which no program reads, for what is put aside."""
    names = (path.with_name(f"{path.name}.bad{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))
