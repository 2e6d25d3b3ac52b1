"""What boards send down of the images that they answered: kept in the mission's folder, images/NODE/.

An object is durable there before it is acknowledged. Its name holds its digest, so that one that comes again
takes its own place. What a board sends is bounded, and names of files are made here."""

from __future__ import annotations

import logging
import re
from pathlib import Path, PurePosixPath

import msgspec

from groundstation.station import Station
from onboard.console.errors import one_line
from onboard.console.log import say
from onboard.data.suffixes import IMAGE_SUFFIXES
from onboard.inference.downlink import decode_answers
from onboard.mission.objects import ANSWERS
from onboard.storage.files import replace_durably
from onboard.wire.events import Arrived, Event
from onboard.wire.messages import BadMessage, Reason

log = logging.getLogger(__name__)

FOLDER = "images"
MOST_BYTES = 1 << 30
"""Of one board's answers and images; a further object is refused until some are taken away."""
RETRY_S = 5.0
_LONGEST_NAME = 80


class AnswersDesk:
    """Takes objects of the kind ANSWERS, of all boards of the mission in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._waiting: dict[bytes, tuple[Station, Arrived]] = {}  # the disk refused them
        self._again_s = 0.0

    def handle(self, station: Station, event: Event, now: float) -> bool:
        """Takes an event about answers; returns whether it is one. What the disk refuses is tried again."""
        if not isinstance(event, Arrived) or event.kind != ANSWERS:
            return False
        self._take(station, event, now)
        return True

    def step(self, now: float) -> None:
        """Tries again what the disk refused."""
        if self._waiting and now >= self._again_s:
            for station, arrived in list(self._waiting.values()):
                self._take(station, arrived, now)

    def renewed(self, station: Station) -> None:
        """The board offers again what is not acknowledged."""
        self._waiting = {name: each for name, each in self._waiting.items() if each[0] is not station}

    def _take(self, station: Station, arrived: Arrived, now: float) -> None:
        name, folder = station.node.name, self._folder / station.node.name
        try:
            answers, image = decode_answers(arrived.payload)
            if _size(folder) + len(arrived.payload) > MOST_BYTES:
                raise BadMessage(f"{folder}: holds {MOST_BYTES >> 20} MiB: take some away")
            folder.mkdir(parents=True, exist_ok=True)
            first, last = answers[0], answers[-1]
            stem = f"{first.n:08}-{last.n:08}-{arrived.digest.hex()[:8]}"
            if image:
                replace_durably(folder / f"{stem}-{_safe(first.image)}", image)
            lines = b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers)
            replace_durably(folder / f"{stem}.jsonl", lines)
        except BadMessage as error:
            say(log, "answers-refused", level=logging.WARNING, node=name, why=one_line(str(error)))
            station.session.refuse(arrived.digest, Reason.REFUSED, now)
        except OSError as error:
            if arrived.digest not in self._waiting:
                why = f"{error.filename}: {error.strerror}"
                say(log, "answers-unstored", level=logging.ERROR, node=name, why=why)
            self._waiting[arrived.digest] = (station, arrived)
            self._again_s = now + RETRY_S
            return
        else:
            say(
                log,
                "answers",
                node=name,
                answers=len(answers),
                bytes=len(arrived.payload),
                images=bool(image),
            )
            station.session.accept(arrived.digest, now)
        self._waiting.pop(arrived.digest, None)


def _safe(image: str) -> str:
    """A name for a board's file that can do no harm here, with an image's suffix."""
    path = PurePosixPath(image)
    suffix = path.suffix.lower() if path.suffix.lower() in IMAGE_SUFFIXES else ".bin"
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)[:_LONGEST_NAME] + suffix


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
