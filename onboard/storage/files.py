"""The files of a program's own folder, read and written so that nothing that lies in their place does harm.

A link, a pipe, a folder, a socket or a device under the name of such a file was not written by this program.
A link is never followed, as writing would empty its target; a pipe is never waited for, and a device never
opened. What is in the way is put aside under another name beside it: nothing of it is lost, and the program
goes on as if its file were gone.
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
    """Something else than a regular file has the name of one."""


def read_file(path: Path, most_bytes: int | None = None) -> bytes:
    """The content of the file at `path`. `most_bytes`: what it can have at most.

    Raises FileNotFoundError; NotAFile for what is no regular file, which is then put aside where it can be;
    OSError for one that cannot be read, or is longer.
    """
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most_bytes is not None and size > most_bytes:
            raise OSError(errno.EFBIG, f"{size} B, at most {most_bytes} B were written", str(path))
        return file.read()


def open_to_read(path: Path) -> BufferedReader:
    """The file at `path`. Raises as `read_file` does."""
    try:
        _check(path)
    except NotAFile as error:
        raise _put_aside(path, error) from None
    return os.fdopen(os.open(path, os.O_RDONLY | _SAFELY), "rb")


def open_to_write(path: Path) -> BinaryIO:
    """The file at `path`, emptied or new. Raises OSError."""
    clear_the_way(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _SAFELY, _MODE), "wb")


def open_to_hold(path: Path) -> int:
    """A descriptor of the file at `path`, new or as it is, for a lock. Raises NotAFile, OSError."""
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
    """Puts aside what is at `path`, and says so, if it is no regular file. Raises OSError where it cannot."""
    if told := cleared(path):
        say(log, "put-aside", level=logging.WARNING, path=str(path), why=told)


def cleared(path: Path) -> str:
    """As `clear_the_way`, but leaves it to the caller to say so: returns what is put aside, and where it is
    now; nothing where nothing was in the way."""
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
    """As `clear_the_way`, for a folder or a link to one: a file in its place is put aside. Raises OSError."""
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
    """The same error, with where the thing is now, or why it is still there."""
    try:
        to = path.rename(free_name(path))
    except OSError as refused:
        return NotAFile(error.errno, f"{error.strerror}, and cannot be put aside: {refused}", str(path))
    return NotAFile(error.errno, f"{error.strerror}; it is {to.name} now", str(path))


def free_name(path: Path) -> Path:
    """A name beside it that no program reads, for what is put aside."""
    names = (path.with_name(f"{path.name}.bad{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))
