"""A cable with a radio in the middle: what enters one end leaves the other as and when the channel decides.

Both ends are real ports that any program can open: two pseudo-terminals ("serial") or two UDP sockets. The
rules of the air are `channel.Channel`'s; this file only carries bytes between the kernel and the channel, on
the real clock. Bytes are counted where the program's port meets the air, framing included.

What a port does at its edges:
- Reading stops while an end is about two frames ahead of the air (5 ms on a fast link), so a program that
  does not pace itself fills the kernel's buffer and its writes block (serial) or are dropped (UDP), as with
  a real modem.
- A serial program that ends or is killed leaves the cable running. What it had written still goes out, as
  from a UART's buffer; what arrives while nobody has the port open is counted and gone, and what the dead
  program had not read is thrown away, so that its successor never hears stale bytes. A radio does not store.
- A frame on a serial line is what ends with 0x00 (COBS). A piece without one goes out as it is when the line
  has been quiet for 50 ms or the piece is longer than any frame of the link.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import termios
import time
import tty
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from firmware_sim.channel import SIDES, Channel, Side
from hw_profiles import Link

IP_UDP_HEADER_BYTES = 28  # IPv4 20 (RFC 791) and UDP 8 (RFC 768)

_QUIET_S = 0.05  # a serial line this long without a byte has ended its piece
_REOPEN_CHECK_S = 0.05  # how often a closed pty is looked at: poll(2) cannot wait for an end of POLLHUP
# Reading ahead of the air by less than this would let a busy scheduler (a few ms) starve a fast link.
_LOOKAHEAD_S = 0.005


class CableError(ValueError):
    """The cable cannot be laid so; the message is one line."""


@dataclass(frozen=True)
class UdpEnd:
    """Where a datagram end listens, and whom it answers; without a peer, whoever spoke last."""

    listen: tuple[str, int]
    peer: tuple[str, int] | None = None


def parse_end(text: str) -> Path | UdpEnd:
    """`udp://HOST:PORT` or `udp://HOST:PORT?peer=HOST:PORT`, anything else is the path of a serial port.

    Raises CableError with the offending text.
    """
    if "://" not in text:
        return Path(text)
    url = urlsplit(text)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    if url.scheme != "udp" or url.path or set(query) - {"peer"}:
        raise CableError(f"{text}: an end is a path or udp://HOST:PORT[?peer=HOST:PORT]")
    peer = query.get("peer")
    return UdpEnd(_address(url.netloc, text), None if peer is None else _address(peer, text))


def _address(host_port: str, text: str) -> tuple[str, int]:
    host, _, port = host_port.rpartition(":")
    # The resolver would take a port above 65535 modulo 65536.
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise CableError(f"{text}: {host_port!r} is not HOST:PORT")
    try:
        found = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:
        raise CableError(f"{text}: {host!r}: {error.strerror}") from None
    ip, number = found[0][4][:2]
    return str(ip), int(number)


@dataclass(slots=True)
class Losses:
    """What was lost at one port and not on the air, in frames."""

    unheard: int = 0  # arrived while no program had the port open
    overrun: int = 0  # arrived, but the kernel's buffer to the program was full
    oversize: int = 0  # sent, but larger than the link's mtu_bytes; the modem refuses it
    strangers: int = 0  # sent by an address that is not the peer


class SerialPort:
    """One end as a pseudo-terminal in raw mode, under a symbolic link at `path`.

    piece_bytes: the longest piece without a delimiter that is taken for one frame.
    Raises CableError if the link cannot be made. An older symbolic link is replaced, a file never.
    """

    def __init__(self, path: Path, piece_bytes: int) -> None:
        self.losses = Losses()
        self._path, self._piece_bytes = path, piece_bytes
        self._fd, slave = os.openpty()
        self._tty = os.ttyname(slave)
        # The settings stay with the pair while the master is open, so the slave need not be.
        tty.setraw(slave)
        os.close(slave)
        os.set_blocking(self._fd, False)
        self._hangup = select.poll()
        self._hangup.register(self._fd, 0)
        self._attended = False  # some program had it open when last looked at
        self._drained = False  # nobody has it open and nothing is left of what they wrote
        self._piece = bytearray()
        self._last_byte_s = -math.inf
        try:
            if path.is_symlink():
                path.unlink()
            path.symlink_to(self._tty)
        except OSError as error:
            os.close(self._fd)
            raise CableError(f"{path}: {error.strerror}") from None

    @property
    def name(self) -> str:
        return str(self._path)

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        """Whether waiting for bytes makes sense; a pty that nobody has open only reports that, endlessly."""
        return not self._drained

    def wakeup(self) -> float:
        """When to look again although no byte came, on the clock of `read`; inf: never."""
        return self._last_byte_s + _QUIET_S if self._piece else math.inf

    def read(self, now: float) -> list[bytes]:
        """Frames, each with its delimiter, and pieces that will not become one; never blocks."""
        self._drained = False
        try:
            data = os.read(self._fd, self._piece_bytes)
        except BlockingIOError:
            return self._take_piece() if now - self._last_byte_s >= _QUIET_S else []
        except OSError:  # EIO: closed by every program, and all they wrote has been read
            self._drained = not self._open_now()
            return self._take_piece()
        self._last_byte_s = now
        *frames, rest = data.split(b"\0")
        out: list[bytes] = []
        for frame in frames:
            out.append(bytes(self._piece) + frame + b"\0")
            self._piece.clear()
        self._piece += rest
        if len(self._piece) >= self._piece_bytes:
            out += self._take_piece()
        return out

    def deliver(self, frame: bytes) -> None:
        if not self._open_now():
            self.losses.unheard += 1
            return
        try:
            written = os.write(self._fd, frame)
        except BlockingIOError:
            written = 0
        self.losses.overrun += written < len(frame)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._path.is_symlink() and self._path.readlink() == Path(self._tty):
                self._path.unlink()
        os.close(self._fd)

    def _take_piece(self) -> list[bytes]:
        piece = bytes(self._piece)
        self._piece.clear()
        return [piece] if piece else []

    def _open_now(self) -> bool:
        is_open = not self._hangup.poll(0)
        if self._attended and not is_open:
            self._forget_unread()
        self._attended = is_open
        return is_open

    def _forget_unread(self) -> None:
        """Empty the queue of a program that is gone, and undo what it set.

        Only the slave's own flush reaches that queue: flushing output at the master empties no more than
        the buffer before it (measured on Linux 6).
        """
        # A successor that was quicker and wants the port alone keeps us out, and it flushes for itself.
        with contextlib.suppress(OSError, termios.error):
            slave = os.open(self._tty, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                tty.setraw(slave)
                termios.tcflush(slave, termios.TCIFLUSH)
            finally:
                os.close(slave)


class UdpPort:
    """One end as a UDP socket; a datagram is a frame.

    frame_bytes: the largest datagram that passes; buffer_bytes: room in the kernel, as a modem's queue.
    Raises CableError if the address cannot be bound.
    """

    def __init__(self, end: UdpEnd, frame_bytes: int, buffer_bytes: int) -> None:
        self.losses = Losses()
        self._frame_bytes = frame_bytes
        self._only_peer = end.peer
        self._peer = end.peer
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        try:
            self._socket.bind(end.listen)
        except OSError as error:
            self._socket.close()
            raise CableError(f"udp://{end.listen[0]}:{end.listen[1]}: {error.strerror}") from None

    @property
    def name(self) -> str:
        host, port = self._socket.getsockname()
        return f"udp://{host}:{port}"

    def fileno(self) -> int:
        return self._socket.fileno()

    def readable(self) -> bool:
        return True

    def wakeup(self) -> float:
        return math.inf

    def read(self, now: float) -> list[bytes]:
        """At most one datagram; never blocks."""
        try:
            frame, sender = self._socket.recvfrom(self._frame_bytes + 1)
        except BlockingIOError:
            return []
        if self._only_peer is not None and sender != self._only_peer:
            self.losses.strangers += 1
            return []
        self._peer = sender
        if len(frame) > self._frame_bytes:
            self.losses.oversize += 1
            return []
        return [frame]

    def deliver(self, frame: bytes) -> None:
        if self._peer is None:
            self.losses.unheard += 1
            return
        try:
            self._socket.sendto(frame, self._peer)
        except OSError:  # the host has no buffer or no route: a datagram is allowed to vanish
            self.losses.overrun += 1

    def close(self) -> None:
        self._socket.close()


Port = SerialPort | UdpPort


def serial_piece_bytes(link: Link) -> int:
    """The longest COBS form, delimiter included, of that link's frame (Cheshire and Baker 1999: 1 in 254)."""
    return link.mtu_bytes + -(-link.mtu_bytes // 254) + 1


def open_ends(ground: Path | UdpEnd, board: Path | UdpEnd, link: Link) -> dict[Side, Port]:
    """Both ports, open. Raises CableError if one cannot be opened or the two are of different kinds."""
    if isinstance(ground, Path) != isinstance(board, Path):
        raise CableError(f"ends {ground} and {board}: both must be serial or both UDP")
    if ground == board and not (isinstance(ground, UdpEnd) and ground.listen[1] == 0):
        raise CableError(f"ends {ground} and {board}: must differ")
    ports: dict[Side, Port] = {}
    try:
        for side, end in zip(SIDES, (ground, board), strict=True):
            if isinstance(end, Path):
                ports[side] = SerialPort(end, serial_piece_bytes(link))
            else:
                # A tenth of a second at the line rate, and at least the 64 KiB of a small modem's queue.
                rate_bps = link.rate_down_bps if side == "ground" else link.rate_up_bps
                ports[side] = UdpPort(end, link.mtu_bytes, max(65536, int(rate_bps / 80)))
    except CableError:
        for port in ports.values():
            port.close()
        raise
    return ports


class Cable:
    """Two open ports and the channel between them."""

    def __init__(self, channel: Channel, ports: Mapping[Side, Port]) -> None:
        self._channel, self._ports = channel, ports
        self._began_s = time.monotonic()
        # Two frames ahead: one on the air and one behind it.
        longest = serial_piece_bytes(channel.link)
        self._lookahead_s = {side: max(channel.airtime_s(side, longest), _LOOKAHEAD_S) for side in SIDES}

    def now(self) -> float:
        """Seconds since the cable was laid; the contact windows' time axis."""
        return time.monotonic() - self._began_s

    def run(self, stop_fd: int, report: Callable[[], bool], report_every_s: float = math.inf) -> None:
        """Carry frames until stop_fd is readable or `report`, called every report_every_s, says False."""
        next_report_s = self.now() + report_every_s
        while True:
            now = self.now()
            for side, frame in self._channel.due(now):
                self._ports[side].deliver(frame)
            if now >= next_report_s:
                if not report():
                    return
                next_report_s += report_every_s * (1 + (now - next_report_s) // report_every_s)
            wait_for: list[int] = [stop_fd]
            until = next_report_s
            for side, port in self._ports.items():
                until = min(until, self._take_in(side, port, now, wait_for))
            until = min(until, self._channel.next_due())  # only now: what was just taken in is due too
            timeout_s = None if until == math.inf else max(0.0, until - self.now())
            if stop_fd in select.select(wait_for, [], [], timeout_s)[0]:
                return

    def _take_in(self, side: Side, port: Port, now: float, wait_for: list[int]) -> float:
        """Read one portion if the air has room; returns when to come back if no byte wakes us before."""
        room_at = self._channel.busy_until(side) - self._lookahead_s[side]
        if now >= room_at:
            for frame in port.read(now):
                self._channel.send(side, frame, now)
            room_at = self._channel.busy_until(side) - self._lookahead_s[side]
        if now < room_at:
            return room_at
        if not port.readable():
            return now + _REOPEN_CHECK_S
        wait_for.append(port.fileno())
        return port.wakeup()

    def report(self) -> dict[str, Any]:
        """Everything counted since the start; a side's numbers are of what that side sent."""
        now = self.now()
        sides = {
            side: {
                "port": port.name,
                **asdict(self._channel.counters(side)),
                **asdict(port.losses),
            }
            for side, port in self._ports.items()
        }
        return {
            "t_s": round(now, 3),
            "link": self._channel.link.name,
            "up": self._channel.is_open(now),
        } | sides

    def close(self) -> None:
        for port in self._ports.values():
            port.close()
