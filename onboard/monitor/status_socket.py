"""Shows a running program's state to anybody on this computer who asks; nothing is written to a disk.

The program listens on a Unix socket in Linux's abstract namespace (unix(7)), named after its state folder's
device and inode, and answers a connection with one JSON object. So watching wears no flash, a kill leaves
nothing behind, and any file system will do. Both ends accept only the same user or root (SO_PEERCRED)."""

from __future__ import annotations

import logging
import math
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from onboard.console.log import say

if TYPE_CHECKING:  # whoever only looks loads no link
    from onboard.link.pump import Pump

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_WAITING = 16  # viewers that may ask between two answers; a further one is told to come again
_READ_BYTES = 1 << 16


class NobodyThere(OSError):  # noqa: N818 - a state of the world rather than a mistake
    """No program runs on the folder, or it does not answer; the text says which."""


class Lookout:
    """The running program's end. It never waits, and its failures stop nothing else."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._unsent: list[tuple[socket.socket, memoryview]] = []
        self.fds: tuple[int, ...] = ()
        """Readable when somebody asks: none or one file descriptor."""
        try:
            self._socket.bind(_name(folder))
            self._socket.listen(_WAITING)
            self.fds = (self._socket.fileno(),)
        except OSError as error:
            say(log, "unwatched", level=logging.WARNING, path=str(folder), why=error.strerror or str(error))

    def answer(self, view: Callable[[], Any]) -> None:
        """Answers everybody who has asked with what `view` returns. What a viewer's socket does not take at
        once (it takes some 200 kB) follows with later calls."""
        text: memoryview | None = None
        for _ in range(_WAITING):
            try:
                viewer, _ = self._socket.accept()
            except OSError:  # nobody (any more)
                break
            viewer.setblocking(False)
            if _owner(viewer) not in (0, os.geteuid()):
                viewer.close()
                continue
            if text is None:  # msgspec writes a loss that is not a number as null; JSON has no NaN
                text = memoryview(msgspec.json.encode(view()))
            self._unsent.append((viewer, text))
        self._unsent = [(viewer, rest) for viewer, text in self._unsent if (rest := _send(viewer, text))]

    def close(self) -> None:
        for viewer, _ in self._unsent:
            viewer.close()
        self._socket.close()


def look(folder: Path, timeout_s: float = 10.0) -> dict[str, Any]:
    """Asks the program that runs on `folder`; a board answers after its current step. Raises NobodyThere."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(timeout_s)
        try:
            asked.connect(_name(folder))
            if _owner(asked) not in (0, os.geteuid(), folder.stat().st_uid):
                raise NobodyThere(f"{folder}: another user's program answers for it")
            pieces = []
            while piece := asked.recv(_READ_BYTES):
                pieces.append(piece)
            return dict(msgspec.json.decode(b"".join(pieces)))
        except (FileNotFoundError, ConnectionError):
            raise NobodyThere(f"{folder}: no program runs on it") from None
        except (TimeoutError, BlockingIOError):  # the latter where too many ask already
            raise NobodyThere(f"{folder}: no answer within {timeout_s:g} s") from None
        except msgspec.DecodeError:
            raise NobodyThere(f"{folder}: the program ended while it answered") from None


def _name(folder: Path) -> bytes:
    """A leading zero byte makes the name abstract, so that there is no file."""
    stat = folder.stat()
    return f"\0spacedml-edge/{stat.st_dev:x}:{stat.st_ino:x}".encode()


def _owner(peer: socket.socket) -> int:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def _send(viewer: socket.socket, text: memoryview) -> memoryview | None:
    """Sends what the socket takes of `text`; returns the rest, or None if the viewer has all or is gone."""
    try:
        while text:
            text = text[viewer.send(text) :]
    except BlockingIOError:
        return text
    except OSError:
        pass
    viewer.close()
    return None


def link_view(pump: Pump, now: float) -> dict[str, Any]:
    """Returns a link's counters and progress as plain values for JSON."""
    view = asdict(pump.session.snapshot(now))
    view["heard_s_ago"] = _finite(view.pop("now") - view.pop("last_heard"))
    for each in view["objects"]:
        each |= {"digest": each["digest"].hex(), "bytes": each.pop("size"), "eta_s": _finite(each["eta_s"])}
    view["eta_out_s"], view["eta_in_s"] = _finite(view["eta_out_s"]), _finite(view["eta_in_s"])
    view["port"] = asdict(pump.port_snapshot())
    return view


def _finite(value_s: float) -> float | None:
    return round(value_s, 1) if math.isfinite(value_s) else None
