"""Sends boards the files that they ask for, a few parts at a time and behind all other traffic.

It keeps nothing: a board asks again after every start of either end, and says what it holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from groundstation.library import NetworkLibrary
from groundstation.station import Station
from onboard.console.log import say
from onboard.mission.files import FileRequest, FileSender, FileStream, WantedFile, decode_request
from onboard.mission.objects import REQUEST
from onboard.wire.events import Arrived, Event
from onboard.wire.messages import BadMessage, Reason

log = logging.getLogger(__name__)


class FileService:
    """What one board asked for last, and how far that has come."""

    def __init__(self, station: Station, request: FileRequest, library: NetworkLibrary) -> None:
        self._station, self._library = station, library
        self._session = station.session
        self._course = self._life(request)
        self._now = 0.0
        self.sender: FileSender | None = None

    def step(self, now: float) -> bool:
        """Does a slice of the work; returns whether there is more to do at once. Raises OSError."""
        self._now = now
        return next(self._course, False)

    def view(self, now: float) -> dict[str, Any]:
        """Returns how far the file under way is, as plain values for JSON; nothing where none is."""
        sender, snapshot = self.sender, self._session.snapshot(now)
        if sender is None or sender.is_over:
            return {}
        told = {"node": self._station.node.name, "file": sender.stream.digest.hex()}
        return told | {"bytes": sender.stream.size, "held_bytes": sender.held_bytes(snapshot.objects)}

    def end(self, now: float) -> None:
        if self.sender is not None and self._session is self._station.session:
            self.sender.withdraw(self._session, now)

    def _life(self, request: FileRequest) -> Iterator[bool]:
        for wanted in request.files:
            stream = None
            for stream in self._streams(wanted):
                if stream is None:
                    yield True
            if stream is None:
                continue
            held = wanted.held if (wanted.size, wanted.base) == (stream.size, stream.base) else b""
            self.sender = FileSender(stream, held)
            how = {"bytes": stream.size, "delta": bool(stream.base)}
            say(log, "file", node=self._station.node.name, file=wanted.digest.hex(), **how)
            while not self.sender.is_over:
                self.sender.step(self._session, self._now)
                yield False

    def _streams(self, wanted: WantedFile) -> Iterator[FileStream | None]:
        """Yields None between slices of the work, and at last what is sent for a file."""
        path = self._library.find_file(wanted.digest)
        if path is None:
            return
        bases = (wanted.base,) if wanted.base and wanted.size else wanted.bases if not wanted.size else ()
        for found in self._library.delta(wanted.digest, bases):
            if found is None:
                yield None
            else:
                yield _stream(wanted.digest, *found)
                return
        yield _stream(wanted.digest, path, b"")


class FileServer:
    """Serves the boards of `stations` from a library."""

    def __init__(self, library: NetworkLibrary, stations: Mapping[int, Station]) -> None:
        self._library, self._stations = library, stations
        self._served: dict[int, FileService] = {}

    def handle(self, station: Station, event: Event, now: float) -> bool:
        """Takes an event about a file; returns whether it was one."""
        node = station.node.id
        if isinstance(event, Arrived) and event.kind == REQUEST:
            self._take_request(station, event, now)
            return True
        service = self._served.get(node)
        return service is not None and service.sender is not None and service.sender.handle(event)

    def renewed(self, station: Station) -> None:
        """Forgets what was on its way on a link that has begun again: its board asks once more."""
        self._served.pop(station.node.id, None)

    def step(self, now: float) -> bool:
        """Sends what may leave; returns whether there is more to do at once."""
        is_busy = False
        for node, service in list(self._served.items()):
            try:
                is_busy |= service.step(now)
            except OSError as error:  # the file is gone; the board asks again when its link begins anew
                name = self._stations[node].node.name
                say(log, "file-unread", level=logging.ERROR, node=name, why=str(error))
                del self._served[node]
        return is_busy

    def view(self, now: float) -> list[dict[str, Any]]:
        """Returns how far each file on its way to a board is."""
        return [told for service in self._served.values() if (told := service.view(now))]

    def _take_request(self, station: Station, arrived: Arrived, now: float) -> None:
        name, session = station.node.name, station.session
        try:
            request = decode_request(arrived.payload)
            for wanted in request.files:
                if self._library.find_file(wanted.digest) is None:
                    raise BadMessage(f"no file {wanted.digest.hex()} is in the mission's models")
        except BadMessage as error:
            say(log, "bad-message", level=logging.WARNING, node=name, why=str(error))
            session.refuse(arrived.digest, Reason.REFUSED, now)
            return
        if (before := self._served.get(station.node.id)) is not None:
            before.end(now)
        self._served[station.node.id] = FileService(station, request, self._library)
        session.accept(arrived.digest, now)


def _stream(digest: bytes, path: Path, base: bytes) -> FileStream:
    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return FileStream(digest, path.stat().st_size, read, base)
