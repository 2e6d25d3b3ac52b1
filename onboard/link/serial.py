"""A serial port carries COBS frames, byte for byte what a UART or a radio modem behind one is given.

Devices are opened through pyserial, for its settings on every platform and its URLs (`socket://`,
`rfc2217://`, ...), and then read and written without pyserial: its non-blocking write spins while a
device takes nothing, and neither call says that the far end has hung up.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import io
import os
import select
import termios
from typing import Any

import serial

from onboard.link.port import BadUrl, PortLost
from onboard.wire import cobs

_READ_BYTES = 65_536
_HUNG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL


class SerialPort:
    """See `Port`. `max_frame_bytes` bounds what is held of a stream that never delimits a frame."""

    def __init__(self, url: str, *, baud: int, max_frame_bytes: int) -> None:
        """Opens and locks the device. Raises PortLost, and BadUrl for a URL that pyserial does not know."""
        self.url = url
        self.max_frame_bytes = max_frame_bytes
        self.rx_bytes = self.tx_bytes = self._bad_cobs = 0
        self._splitter = cobs.Splitter(max_frame_bytes)
        # A delimiter first: a sender that was cut in mid-frame left half of one at the far end.
        self._kept = b"\0"
        self._device = _open(url, baud)
        self._fd = _descriptor(self._device)
        if self._fd >= 0:
            os.set_blocking(self._fd, False)

    @property
    def broken(self) -> int:
        """Chunks between delimiters that were no COBS, or longer than any frame."""
        return self._bad_cobs + self._splitter.overlong

    def read(self) -> list[bytes]:
        """See `Port.read`. At most 64 KiB a call."""
        data = self._read_some()
        self.rx_bytes += len(data)
        return [frame for chunk in self._splitter.feed(data) if (frame := self._unstuff(chunk)) is not None]

    def write(self, frame: bytes) -> None:
        """See `Port.write`."""
        self._kept += cobs.encode(frame)
        self.flush()

    def flush(self) -> None:
        """See `Port.flush`."""
        if not self._kept:
            return
        try:
            taken = os.write(self._fd, self._kept) if self._fd >= 0 else self._device.write(self._kept)
        except BlockingIOError:
            return
        except (OSError, serial.SerialException) as error:
            raise PortLost(self.url, f"cannot write: {_why(error)}") from error
        self.tx_bytes += taken
        self._kept = self._kept[taken:]

    def kept_bytes(self) -> int:
        """See `Port.kept_bytes`."""
        return len(self._kept)

    def queued_bytes(self) -> int:
        """See `Port.queued_bytes`. A pty always answers 0 for its own part."""
        if self._fd < 0:
            return len(self._kept)
        waiting = array.array("i", [0])
        with contextlib.suppress(OSError):  # a device that cannot tell
            fcntl.ioctl(self._fd, termios.TIOCOUTQ, waiting)
        return len(self._kept) + waiting[0]

    def trust(self, frame: bytes) -> None:
        """A cable has one other end."""

    def fileno(self) -> int:
        """See `Port.fileno`."""
        return self._fd

    def close(self) -> None:
        """See `Port.close`."""
        with contextlib.suppress(OSError, serial.SerialException):
            if self._fd >= 0 and os.isatty(self._fd):
                termios.tcflush(self._fd, termios.TCOFLUSH)  # or closing waits until the UART is empty
        with contextlib.suppress(OSError, serial.SerialException):
            self._device.close()
        self._fd = -1

    def _unstuff(self, chunk: bytes) -> bytes | None:
        try:
            return cobs.decode(chunk)
        except cobs.BadCobs:
            self._bad_cobs += 1
            return None

    def _read_some(self) -> bytes:
        try:
            if self._fd < 0:
                return bytes(self._device.read(self._device.in_waiting))
            data = os.read(self._fd, _READ_BYTES)
            if data:
                return data
            # Nothing: is the line quiet (a terminal then reads empty, too) or the far end gone?
            line = select.poll()
            line.register(self._fd, select.POLLIN)
            flags = sum(flag for _, flag in line.poll(0))
            if flags & _HUNG_UP:
                raise PortLost(self.url, "the device hung up")
            data = os.read(self._fd, _READ_BYTES) if flags & select.POLLIN else b""
            if flags & select.POLLIN and not data:
                raise PortLost(self.url, "the far end closed")
        except BlockingIOError:
            return b""
        except PortLost:
            raise
        except (OSError, serial.SerialException) as error:
            raise PortLost(self.url, f"cannot read: {_why(error)}") from error
        return data


def _open(url: str, baud: int) -> Any:
    # The lock keeps a second program from taking every other byte. It is for devices: pyserial's
    # URL handlers refuse the setting or ignore it.
    lock = {"exclusive": True} if "://" not in url else {}
    try:
        return serial.serial_for_url(url, baudrate=baud, timeout=0, **lock)
    except (ValueError, TypeError) as error:
        raise BadUrl(f"{url}: {error}") from None
    except (OSError, serial.SerialException) as error:
        raise PortLost(url, f"cannot open: {_why(error)}") from error


def _descriptor(device: Any) -> int:
    try:
        return int(device.fileno())
    except (io.UnsupportedOperation, AttributeError):
        return -1


def _why(error: BaseException) -> str:
    """The system's own short words: pyserial wraps them in several layers of its own."""
    number = getattr(error, "errno", None)
    if number in (errno.EAGAIN, errno.EWOULDBLOCK):
        return "another program has it open"
    return os.strerror(number) if isinstance(number, int) else str(error)
