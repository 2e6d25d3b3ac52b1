"""A cable with a radio in the middle: bytes leave one end as and when the channel decides.

Both ends are real ports that any program can open: pseudo-terminals ("serial") or UDP sockets. Reading stops
while an end is about two frames (at least 5 ms) ahead of the air. A program that does not pace itself then
fills the kernel's buffer, and its writes block (serial) or are dropped (UDP), as with a modem.

- A serial program that ends or is killed leaves the cable running. What it had written still goes out, as
  from a UART's buffer. What arrives while nobody has the port open is counted and dropped, and what the dead
  program had not read is discarded, so its successor never reads stale bytes.
- A frame on a serial line ends with 0x00 (COBS) and includes the delimiters before it. Bytes without one are
  sent as they are after 50 ms of silence, or once they are longer than any frame of the link."""

from __future__ import annotations

import contextlib
import errno
import hashlib
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

from firmware_sim.bench.faults import NOISE_EVERY_S, PAUSE_S, Faults
from firmware_sim.world.channel import SIDES, Channel, Side, other
from hw_profiles import Link
from onboard.link.ports.udp import host_port, resolve
from onboard.wire.framing import cobs
from onboard.wire.medium.medium_access import LEAD_BYTES

IP_UDP_HEADER_BYTES = 28  # IPv4 20 (RFC 791) and UDP 8 (RFC 768)

_REOPEN_CHECK_S = 0.05  # how often a closed pty is polled: poll(2) cannot wait for the end of POLLHUP
# With less lookahead, a busy scheduler (a few ms) would starve a fast link.
_LOOKAHEAD_S = 0.005
_QUIET_S = 0.05  # a serial line this long without a byte has ended its piece


@dataclass(frozen=True)
class UdpEnd:
    """Where a UDP end listens and whom it answers: `peer`, or without one whoever spoke last."""

    listen: tuple[str, int]
    peer: tuple[str, int] | None = None


def parse_end(text: str) -> Path | UdpEnd:
    """Parses `udp://HOST:PORT[?peer=HOST:PORT]`, or else the path of a serial port. Raises ValueError."""
    if "://" not in text:
        return Path(text)
    try:
        url = urlsplit(text)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    if url.scheme != "udp" or url.path or set(query) - {"peer"}:
        raise ValueError(f"{text}: an end is a path or udp://HOST:PORT[?peer=HOST:PORT]")
    peer = query.get("peer")
    return UdpEnd(_address(url.netloc, text), None if peer is None else _address(peer, text))


def _address(end: str, text: str) -> tuple[str, int]:
    try:
        host, port = host_port(text, end)
        ip, number = resolve(host, port, socket.AF_INET)[0][:2]
    except OSError as error:
        raise ValueError(f"{text}: {host!r}: {error.strerror}") from None
    return ip, number


@dataclass(slots=True)
class Losses:
    """Frames that were lost at one port and not on the air."""

    unheard: int = 0  # arrived while no program had the port open
    overrun: int = 0  # arrived, but the kernel's buffer to the program was full
    oversize: int = 0  # sent, but larger than the link's mtu_bytes; the modem refuses it
    strangers: int = 0  # sent by an address that is not the peer


class CableTerminal:
    """One end as a pseudo-terminal in raw mode, under a symbolic link at `path`, which may replace an ended
    cable's. `piece_bytes`: longest run without a delimiter that is one frame. Raises ValueError."""

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
        self.drained = False  # nobody has it open and nothing is left of what they wrote
        self._piece = bytearray()
        self._last_byte_s = -math.inf
        self._name: socket.socket | None = None
        try:
            self._name = _sole_cable(path)
            if path.is_symlink() and path.readlink().parent == Path(self._tty).parent:
                path.unlink()
            path.symlink_to(self._tty)
        except OSError as error:
            os.close(self._fd)
            if self._name is not None:
                self._name.close()
            says = "another cable ends here" if error.errno == errno.EADDRINUSE else error.strerror
            raise ValueError(f"{path}: {says}") from None

    @property
    def name(self) -> str:
        return str(self._path)

    def fileno(self) -> int:
        return self._fd

    def wakeup(self) -> float:
        """When to read again although no byte came, on the clock of `read`; inf: never."""
        return self._last_byte_s + _QUIET_S if self._piece else math.inf

    def read(self, now: float) -> list[bytes]:
        """Returns whole frames with their delimiters, and bytes that will not become one; never blocks."""
        self.drained = False
        try:
            data = os.read(self._fd, self._piece_bytes)
        except BlockingIOError:
            return self._take_piece() if now - self._last_byte_s >= _QUIET_S else []
        except OSError:  # EIO: closed by every program, and all they wrote has been read
            self.drained = not self._open_now()
            return self._take_piece()
        self._last_byte_s = now
        *frames, rest = data.split(b"\0")
        out: list[bytes] = []
        for frame in frames:
            self._piece += frame + b"\0"
            if self._piece.strip(b"\0"):  # delimiters alone lead the frame that they stand before
                out += self._take_piece()
        self._piece += rest
        if len(self._piece) >= self._piece_bytes + LEAD_BYTES:
            out += self._take_piece()
        return out

    def stop(self, stopped: bool) -> None:
        """Stops taking bytes from the program, as flow control would, or starts again."""
        self._at_slave(lambda slave: termios.tcflow(slave, termios.TCOOFF if stopped else termios.TCOON))

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
        if self._name is not None:
            self._name.close()

    def _take_piece(self) -> list[bytes]:
        piece = bytes(self._piece)
        self._piece.clear()
        return [piece] if piece else []

    def _open_now(self) -> bool:
        is_open = not self._hangup.poll(0)
        if self._attended and not is_open:  # empty the queue of the program that is gone, undo what it set
            self._at_slave(tty.setraw)
            # Only the slave's own flush reaches that queue: flushing output at the master empties no more
            # than the buffer before it (measured on Linux 6).
            self._at_slave(lambda slave: termios.tcflush(slave, termios.TCIFLUSH))
        self._attended = is_open
        return is_open

    def _at_slave(self, do: Callable[[int], object]) -> None:
        """Does nothing where a program has the port for itself alone: that one sets and flushes it."""
        with contextlib.suppress(OSError, termios.error):
            slave = os.open(self._tty, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                do(slave)
            finally:
                os.close(slave)


def _sole_cable(path: Path) -> socket.socket:
    """Claims `path` under a socket name that the kernel frees when the process ends.

    A symbolic link does not say whether its cable still runs: the next terminal may get a closed one's
    number. Raises OSError, with EADDRINUSE where a cable on this computer already ends at `path`."""
    folder = path.parent.stat()
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # At most 107 bytes (unix(7)), which a file's name alone can have.
        digest = hashlib.blake2s(os.fsencode(path.name), digest_size=16).hexdigest()
        name.bind(f"\0spacedml-edge/cable/{folder.st_dev:x}:{folder.st_ino:x}/{digest}")
    except OSError:
        name.close()
        raise
    return name


class CableSocket:
    """One end as a UDP socket with datagrams as frames. `buffer_bytes`: its receive buffer, like a modem's
    queue. Raises ValueError if the address cannot be bound."""

    drained = False

    def __init__(self, end: UdpEnd, frame_bytes: int, buffer_bytes: int) -> None:
        self.losses = Losses()
        self._frame_bytes = frame_bytes
        self._peer = self._only_peer = end.peer
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        try:
            self._socket.bind(end.listen)
        except OSError as error:
            self._socket.close()
            raise ValueError(f"udp://{end.listen[0]}:{end.listen[1]}: {error.strerror}") from None

    @property
    def name(self) -> str:
        host, port = self._socket.getsockname()
        return f"udp://{host}:{port}"

    def fileno(self) -> int:
        return self._socket.fileno()

    def wakeup(self) -> float:
        return math.inf

    def read(self, now: float) -> list[bytes]:
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

    def stop(self, stopped: bool) -> None:
        """Does nothing: while nobody reads, the kernel's buffer overflows."""

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


Port = CableTerminal | CableSocket


def open_ends(ground: Path | UdpEnd, board: Path | UdpEnd, link: Link) -> dict[Side, Port]:
    """Opens both ports. Raises ValueError if one cannot be opened or the two are of different kinds."""
    if isinstance(ground, Path) != isinstance(board, Path):
        raise ValueError(f"ends {ground} and {board}: both must be serial or both UDP")
    if ground == board and not (isinstance(ground, UdpEnd) and ground.listen[1] == 0):
        raise ValueError(f"ends {ground} and {board}: must differ")
    ports: dict[Side, Port] = {}
    with contextlib.ExitStack() as opened:
        for side, end in zip(SIDES, (ground, board), strict=True):
            if isinstance(end, Path):
                ports[side] = CableTerminal(end, cobs.wire_bytes(link.mtu_bytes))
            else:
                # A tenth of a second at the line rate, and at least the 64 KiB of a small modem's queue.
                rate_bps = link.rate_down_bps if side == "ground" else link.rate_up_bps
                ports[side] = CableSocket(end, link.mtu_bytes, max(65536, int(rate_bps / 80)))
            opened.callback(ports[side].close)
        opened.pop_all()
    return ports


class Cable:
    """Two open ports, the channel between them, and the faults of the line."""

    def __init__(self, channel: Channel, ports: Mapping[Side, Port], faults: Faults) -> None:
        self._channel, self._ports, self._faults = channel, ports, faults
        self._stopped = dict.fromkeys(SIDES, False)
        self._idle_due_s = 0.0 if faults else math.inf
        self._began_s = time.monotonic()
        # Two frames ahead: one on the air and one behind it.
        longest = cobs.wire_bytes(channel.link.mtu_bytes)
        self._lookahead_s = {side: max(channel.airtime_s(side, longest), _LOOKAHEAD_S) for side in SIDES}

    def now(self) -> float:
        """Seconds since the cable was made; the time axis of the contact windows."""
        return time.monotonic() - self._began_s

    def run(self, stop_fd: int, report: Callable[[], bool], report_every_s: float = math.inf) -> None:
        """Carries frames until stop_fd is readable or `report`, called every report_every_s, is False."""
        next_report_s = self.now() + report_every_s
        while True:
            now = self.now()
            for side, frame in self._channel.due(now):
                if piece := self._faults.arrive(side, frame):
                    self._ports[side].deliver(piece)
            if now >= next_report_s:
                if not report():
                    return
                next_report_s += report_every_s * (1 + (now - next_report_s) // report_every_s)
            wait_for: list[int] = [stop_fd]
            until = min(next_report_s, self._make_noise(now))
            for side, port in self._ports.items():
                until = min(until, self._take_in(side, port, now, wait_for))
            until = min(until, self._channel.next_due())  # only now: what was just taken in is due too
            timeout_s = None if until == math.inf else max(0.0, until - self.now())
            if stop_fd in select.select(wait_for, [], [], timeout_s)[0]:
                return

    def _take_in(self, side: Side, port: Port, now: float, wait_for: list[int]) -> float:
        """Reads one chunk if the air has room; returns when to try again if no byte arrives before."""
        stopped = self._faults.stops(side, now, self._channel.counters(side).bytes)
        if stopped != self._stopped[side]:
            port.stop(stopped)
            self._stopped[side] = stopped
        if stopped:
            return now + _REOPEN_CHECK_S
        room_at = self._channel.busy_until(side) - self._lookahead_s[side]
        if now >= room_at:
            for piece in port.read(now):
                begins_burst = now - self._channel.busy_until(side) >= PAUSE_S
                if echo := self._faults.echo(side, piece):
                    port.deliver(echo)
                self._channel.send(side, self._faults.depart(side, piece, begins_burst), now)
            room_at = self._channel.busy_until(side) - self._lookahead_s[side]
        if now < room_at:
            return room_at
        if port.drained:  # it would report a hang-up without end
            return now + _REOPEN_CHECK_S
        wait_for.append(port.fileno())
        return port.wakeup()

    def _make_noise(self, now: float) -> float:
        if now >= self._idle_due_s:
            self._idle_due_s = now + NOISE_EVERY_S
            for side, port in self._ports.items():
                if now >= self._channel.busy_until(other(side)) and (noise := self._faults.idle(side)):
                    port.deliver(noise)
        return self._idle_due_s

    def report(self) -> dict[str, Any]:
        """Returns all counts since the start; a side's numbers are of what that side sent."""
        now = self.now()
        sides = {
            side: {
                "port": port.name,
                **asdict(self._channel.counters(side)),
                **asdict(port.losses),
                "faults": self._faults.hits(side),
            }
            for side, port in self._ports.items()
        }
        link, is_up = self._channel.link.name, self._channel.is_open(now)
        return {"t_s": round(now, 3), "link": link, "up": is_up} | sides

    def close(self) -> None:
        for port in self._ports.values():
            port.close()
