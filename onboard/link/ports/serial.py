"""A serial port carries a byte stream, byte for byte what a UART, a radio modem or a TNC is given.

Devices are opened through pyserial, for its settings on every platform and its URLs (`rfc2217://`, ...;
`socket://` is opened here), but read and written without it: its non-blocking write spins while a device
takes nothing, and neither call says that the far end has hung up.

A device is this program's alone (`flock`, and TIOCEXCL for programs that ask for no lock) and keeps the
settings that it was given: any program that may open it could change them."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import grp
import io
import logging
import os
import pwd
import re
import select
import socket
import stat
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import serial

from hw_profiles import Link
from onboard.console.log import say
from onboard.link.ports.framing import FramedStream
from onboard.link.ports.port import BadUrl, PortEvent, PortLost, Tap
from onboard.storage.files import KINDS

log = logging.getLogger(__name__)

CHECK_S = 1.0  # how often to look at a device's settings: one system call, 1 us
TELL_AGAIN_S = 60.0  # how often a program that keeps changing them is told of
_READ_BYTES = 65_536
CONNECT_WITHIN_S = 5.0
WORDS_BYTES = 200  # of what the far end says in place of frames
_GONE_S = 30  # a far end that acknowledges nothing for this long is gone
_TELNET = re.compile(rb"\xff[\xfb-\xfe].")  # its negotiation of options (RFC 854)
_NOT_CONFIGURED = re.compile(r"^Could not configure port: \((\d+),")
_WORD = re.compile(rb"[A-Za-z]{3}")
_PTY_MAJORS = range(136, 144)  # UNIX98 slaves: Documentation/admin-guide/devices.txt of Linux
_HUNG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL


class SerialPort:
    """A `Port` on `device`, a path or a pyserial URL; `framing` splits the stream into frames."""

    paths = None  # a cable has one other end

    def __init__(
        self,
        url: str,
        device: str,
        *,
        baud: int,
        framing: FramedStream,
        max_frame_bytes: int,
        tap: Tap | None,
    ) -> None:
        """Opens and locks the device. Raises PortLost, and BadUrl for a URL that pyserial does not know."""
        self.url = url
        self.max_frame_bytes = max_frame_bytes
        self.rx_bytes = self.tx_bytes = 0
        self._framing, self._tap = framing, tap
        self._kept = b""
        self._before = framing.opening  # goes out before the next frame
        self._said = b""  # the last of what came in and was no frame
        self._device = _open(url, device, baud)
        self._fd, self._queue_fd = _descriptors(self._device)
        self._terminal = None
        if self._fd >= 0:
            os.set_blocking(self._fd, False)
            if os.isatty(self._fd):
                self._terminal = Terminal(url, self._fd, self._device)

    @property
    def broken(self) -> int:
        return self._framing.broken

    def read(self) -> list[bytes]:
        """At most 64 KiB a call."""
        if self._terminal is not None:
            self._terminal.look_after()
        data = self._read_some()
        if not data:
            return []
        self.rx_bytes += len(data)
        if self._tap is not None:
            self._tap("in", data)
        frames = self._framing.feed(data)
        self._said = b"" if frames else (self._said + data)[-WORDS_BYTES:]
        return frames

    def write(self, frame: bytes, lead: int = 0) -> None:
        before = max(self._before, lead * self._framing.opening, key=len)
        self._kept += before + self._framing.encode(frame)
        self._before = b""
        self.flush()

    def flush(self) -> None:
        if not self._kept:
            return
        try:
            taken = os.write(self._fd, self._kept) if self._fd >= 0 else self._device.write(self._kept)
        except BlockingIOError:
            return
        except (OSError, serial.SerialException) as error:
            raise self._lost(f"cannot write: {_why(error)}") from error
        self.tx_bytes += taken
        if self._tap is not None:
            self._tap("out", self._kept[:taken])
        self._kept = self._kept[taken:]

    def discard(self) -> None:
        self._kept, self._before = b"", self._framing.opening
        self._empty_device()

    def kept_bytes(self) -> int:
        return len(self._kept)

    def queued_bytes(self) -> int:
        """Over TCP this is all that the far end has not acknowledged; a pty tells 0 for its own part."""
        waiting = array.array("i", [0])
        if self._queue_fd >= 0:
            with contextlib.suppress(OSError):  # a device that cannot tell
                fcntl.ioctl(self._queue_fd, termios.TIOCOUTQ, waiting)  # on a socket the same is SIOCOUTQ
        return len(self._kept) + waiting[0]

    def distrust(self, frame: bytes) -> None:
        self._framing.check.refused(len(frame), self._framing.encode(frame).strip(self._framing.opening))

    def fault(self, link: Link) -> PortEvent | None:
        return self._framing.check.fault(link)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._empty_device()  # or closing waits until the UART is
        if self._terminal is not None:
            self._terminal.release()
        if self._fd >= 0:
            with contextlib.suppress(OSError, serial.SerialException):
                self._device.close()
        else:  # pyserial's rfc2217:// waits for its own thread, and then 0.3 s more
            threading.Thread(target=self._device.close, daemon=True).start()
        self._fd = self._queue_fd = -1

    def _empty_device(self) -> None:
        with contextlib.suppress(OSError, termios.error):
            if self._fd >= 0 and os.isatty(self._fd):
                termios.tcflush(self._fd, termios.TCOFLUSH)

    def _read_some(self) -> bytes:
        try:
            if self._fd < 0:
                # pyserial has read it already. Its rfc2217:// gives one byte a call where it must not wait.
                held = bytearray()
                while (waiting := self._device.in_waiting) and len(held) < _READ_BYTES:
                    held += self._device.read(waiting)
                if not held and _flags(self._queue_fd, select.POLLRDHUP):
                    raise self._lost("the far end closed")
                return bytes(held)
            data = os.read(self._fd, _READ_BYTES)
            if data:
                return data
            # Nothing: is the line quiet (a terminal then reads empty, too) or the far end gone?
            flags = _flags(self._fd, select.POLLIN)
            if flags & _HUNG_UP:
                raise self._lost("the device hung up")
            data = os.read(self._fd, _READ_BYTES) if flags & select.POLLIN else b""
            if flags & select.POLLIN and not data:
                raise self._lost("the far end closed")
        except BlockingIOError:
            return b""
        except PortLost:
            raise
        except (OSError, serial.SerialException) as error:
            raise self._lost(f"cannot read: {_why(error)}") from error
        return data

    def _lost(self, reason: str) -> PortLost:
        """A terminal server says why it closes, so the reason quotes the far end's last words."""
        said = words(self._said)
        return PortLost(self.url, f"{reason}; it said {said!r}" if said else reason)


class Terminal:
    """Guards the settings of an open device, and keeps others from opening it."""

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
        """Restore what another program (`stty`, a modem manager, root's shell) has changed, and log it."""
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
        """Let others open the device."""
        if self._exclusive:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fd, termios.TIOCNXCL)


def not_serial(path: Path) -> str | None:
    """Say what is at `path` where that is no character device. Raises OSError where nothing is there."""
    kind = stat.S_IFMT(path.stat().st_mode)
    what = "a block device" if kind == stat.S_IFBLK else KINDS[kind]
    return None if kind == stat.S_IFCHR else f"it is {what}, and no serial device"


def who_may_open(path: str) -> str:
    """Return the remedy for "Permission denied", as the rest of a sentence."""
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    group, user = _name(grp.getgrgid, found.st_gid), _name(pwd.getpwuid, os.geteuid())
    if found.st_mode & 0o060 != 0o060 or found.st_gid == 0:
        return "; its group may not open it either: a udev rule gives it to the group dialout"
    return f"; members of the group {group} may open it: sudo usermod -aG {group} {user}, and log in again"


def _name(entry: Callable[[int], Any], number: int) -> str:
    try:
        return str(entry(number)[0])
    except KeyError:
        return str(number)


def words(said: bytes) -> str:
    """Return the text for people in bytes that were no frames; empty where they are noise."""
    said = _TELNET.sub(b"", said)
    text = bytes(byte for byte in said if 32 <= byte < 127 or byte in b"\t\r\n")
    if 10 * len(text) < 9 * len(said) or not _WORD.search(text):
        return ""
    return " ".join(text.decode("ascii").split())


def _flags(fd: int, wanted: int) -> int:
    """Return what poll(2) says of a descriptor now; 0 where there is none."""
    line = select.poll()
    if fd >= 0:
        line.register(fd, wanted)
    return sum(flag for _, flag in line.poll(0))


def _open(url: str, device: str, baud: int) -> Any:
    # The lock keeps a second program from taking every other byte. It is for devices: pyserial's
    # URL handlers refuse the setting or ignore it.
    lock = {"exclusive": True} if "://" not in device else {}
    try:
        if device.startswith("socket://"):
            # pyserial would throw away what is said first, and close no sooner than 0.3 s later.
            parts = urlsplit(device)
            return socket.create_connection((parts.hostname, parts.port or 0), timeout=CONNECT_WITHIN_S)
        if lock and (why := not_serial(Path(device))):
            raise PortLost(url, f"cannot open: {why}")
        return serial.serial_for_url(device, baudrate=baud, timeout=0, **lock)
    except (ValueError, TypeError) as error:
        raise BadUrl(f"{url}: {error}") from None
    except PortLost:
        raise
    except (OSError, serial.SerialException) as error:
        raise PortLost(url, f"cannot open: {_why(error, device)}") from error


def _descriptors(device: Any) -> tuple[int, int]:
    """Return what to select() on, and what to ask for the queue's length: -1 where there is none."""
    if isinstance(device, socket.socket):
        _tune(device)
        return device.fileno(), device.fileno()
    link = getattr(device, "_socket", None)  # pyserial's rfc2217://, which shows it to nobody
    if link is not None:
        _tune(link)
    try:
        return int(device.fileno()), int(device.fileno())
    except (io.UnsupportedOperation, AttributeError):
        # rfc2217:// reads its socket on a thread of its own, but the queue to it is the kernel's: unasked,
        # a stalled network would take in a hundred frames and then stop the daemon.
        return -1, -1 if link is None else link.fileno()


def _tune(link: socket.socket) -> None:
    """TCP then holds no small frame back (RFC 896), and reports a dead far end after 30 s, not 15 min."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _GONE_S)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # also when there is nothing to send
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _GONE_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _GONE_S)


def _why(error: BaseException, device: str = "") -> str:
    """The system's own short words, which pyserial wraps in several layers."""
    if isinstance(error, socket.gaierror):  # numbers of its own
        return str(error.strerror)
    number = getattr(error, "errno", None)
    if found := _NOT_CONFIGURED.search(str(error)):  # pyserial keeps the number to itself
        number = int(found[1])
        if number in (errno.ENOTTY, errno.EINVAL):  # such as /dev/null
            return "it is no serial device"
    if number in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EBUSY):
        return "another program has it open"
    if number in (errno.EACCES, errno.EPERM) and device:
        return f"{os.strerror(number)}{who_may_open(device)}"
    return os.strerror(number) if isinstance(number, int) else str(error)
