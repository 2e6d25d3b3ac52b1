"""A terminal server on the loopback: pyserial's own RFC 2217 server in front of a serial device."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import serial
import serial.rfc2217


class _Pty(serial.Serial):
    """A pseudo-terminal has no modem's wires."""

    cts = dsr = cd = True
    ri = False

    def _update_dtr_state(self) -> None:
        pass

    def _update_rts_state(self) -> None:
        pass


class TerminalServer:
    """Serves one client at a time until it is closed; `hang_up` is a network that fails."""

    def __init__(self, device: Path, port: int = 0) -> None:
        self._device = _Pty(str(device), timeout=0.01, exclusive=True)
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port = self._listening.getsockname()[1]
        self._open = True
        self._client: socket.socket | None = None
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"rfc2217://127.0.0.1:{self.port}"

    @property
    def baud(self) -> int:
        """What a client has set the device to."""
        return int(self._device.baudrate)

    def write(self, data: bytes) -> None:
        """`data` as one piece of a telnet stream; called by pyserial's PortManager."""
        assert self._client is not None
        with contextlib.suppress(OSError):
            self._client.sendall(data)

    def hang_up(self) -> None:
        """The connection ends."""
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._open = False
        self.hang_up()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listening.close()
        self._device.close()

    def _serve(self) -> None:
        while self._open:
            try:
                self._client, _ = self._listening.accept()
            except OSError:
                return
            manager = serial.rfc2217.PortManager(self._device, self)
            upward = threading.Thread(target=self._from_device, args=(manager, self._client))
            upward.start()
            with contextlib.suppress(OSError), self._client:
                while data := self._client.recv(1024):
                    self._device.write(b"".join(manager.filter(data)))
            upward.join(10)

    def _from_device(self, manager: Any, client: socket.socket) -> None:
        while self._open and client.fileno() >= 0:
            if data := self._device.read(self._device.in_waiting or 1):
                self.write(b"".join(manager.escape(data)))
