"""A serial device on this computer: whether there is one, who may open it, and whose settings it has."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import logging
import os
import pwd
import stat
import termios
import time
from pathlib import Path
from typing import Any

from onboard.console.log import say

log = logging.getLogger(__name__)

CHECK_S = 1.0  # how often to look at a device's settings: one call of the system, 1 us
TELL_AGAIN_S = 60.0  # a program that changes them again and again is told of so often
_PTY_MAJORS = range(136, 144)  # UNIX98 slaves: Documentation/admin-guide/devices.txt of Linux


class NoDevice(OSError):  # noqa: N818 - a state of the world rather than a mistake
    """What is at the path is no serial device; the text says what it is."""


def check_device(path: str) -> None:
    """That there is a character device at `path`. Raises NoDevice, and OSError where nothing is there."""
    mode = Path(path).stat().st_mode
    if stat.S_ISCHR(mode):
        return
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    raise NoDevice(f"it is {kinds.get(stat.S_IFMT(mode), 'a block device')}, and no serial device")


def who_may_open(path: str) -> str:
    """What to do about "Permission denied", as the rest of a sentence."""
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    group, user = _group(found.st_gid), _user(os.geteuid())
    if found.st_mode & 0o060 != 0o060 or found.st_gid == 0:
        return "; its group may not open it either: a udev rule gives it to the group dialout"
    return f"; members of the group {group} may open it: sudo usermod -aG {group} {user}, and log in again"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


class Terminal:
    """The settings of an open device, and that nobody else opens it."""

    def __init__(self, url: str, fd: int, device: Any) -> None:
        """`device`: pyserial's, which has just set up `fd`."""
        self._url, self._fd, self._device = url, fd, device
        self._settings = termios.tcgetattr(fd)
        self._check_s = time.monotonic() + CHECK_S
        self._times, self._tell_s = 0, self._check_s - CHECK_S
        # A pseudo-terminal keeps this mark when its program is killed, and only root could open it again.
        self._exclusive = os.geteuid() == 0 or os.major(os.fstat(fd).st_rdev) not in _PTY_MAJORS
        if self._exclusive:
            with contextlib.suppress(OSError):  # a driver without it; the lock is left
                fcntl.ioctl(fd, termios.TIOCEXCL)

    def look_after(self) -> None:
        """Sets back what another program (`stty`, a modem manager, root's shell) has changed, and says so."""
        now_s = time.monotonic()
        if now_s < self._check_s:
            return
        self._check_s = now_s + CHECK_S
        try:
            if termios.tcgetattr(self._fd) == self._settings:
                return
            termios.tcsetattr(self._fd, termios.TCSANOW, self._settings)
            if termios.tcgetattr(self._fd) != self._settings:  # a speed that termios has no name for
                self._device.baudrate = self._device.baudrate
        except (termios.error, OSError):  # the device is gone, which the next read says
            return
        self._times += 1
        if now_s >= self._tell_s:
            say(log, "port-reset", level=logging.WARNING, port=self._url, times=self._times,
                why="another program changed its settings; they are set back")  # fmt: skip
            self._times, self._tell_s = 0, now_s + TELL_AGAIN_S

    def release(self) -> None:
        """Others may open the device."""
        if self._exclusive:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fd, termios.TIOCNXCL)
