"""Where commands wait for the daemon: a file each in `commands/` of the mission's folder.

The daemon is the only writer of the database. Whoever queues a command leaves a file, durable and whole
before it has its name; the daemon takes it into the database and removes it, at once or when it next runs. A
kill in between leaves both, and the file's id, which is its name, says that the command is there already.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from onboard.console.log import say
from onboard.mission.commands import MAX_BYTES, Command, Name, Value
from onboard.storage.files import (
    NotAFile,
    clear_the_way,
    free_name,
    read_file,
    replace_durably,
    sync_folder,
)

log = logging.getLogger(__name__)

_MAX_FILE_BYTES = 16 * MAX_BYTES  # JSON escapes take six times a byte at most


class CommandRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command for a board, as it was queued. `id`: 16 hexadecimal digits. Times are Unix seconds."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    node: Annotated[int, Meta(ge=0, le=254)]
    name: Name
    arguments: dict[Name, Value] = {}
    queued_at: float
    expires_at: float

    @property
    def command(self) -> Command:
        """What travels."""
        return Command(id=bytes.fromhex(self.id), name=self.name, arguments=self.arguments)


class CommandInbox:
    """The files of a mission in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "commands"

    def put(self, request: CommandRequest) -> None:
        """Queues a command, durably on return. Raises OSError."""
        clear_the_way(self._folder, "folder")
        if not self._folder.exists():
            self._folder.mkdir(exist_ok=True)
            sync_folder(self._folder.parent)
        replace_durably(self._path(request), msgspec.json.encode(request))

    def requests(self) -> list[CommandRequest]:
        """Those that wait, oldest first. A file that is none of them is put aside, where that is possible."""
        try:
            paths = [*self._folder.glob("*.json")]
        except OSError:
            return []
        found = [request for path in paths if (request := _read(path)) is not None]
        return sorted(found, key=lambda request: (request.queued_at, request.id))

    def remove(self, request: CommandRequest) -> None:
        """The command is in the database. A file that cannot be removed is found there again, and does no
        harm."""
        with contextlib.suppress(OSError):
            self._path(request).unlink()

    def _path(self, request: CommandRequest) -> Path:
        return self._folder / f"{request.id}.json"


def _read(path: Path) -> CommandRequest | None:
    try:
        request = msgspec.json.decode(read_file(path, _MAX_FILE_BYTES), type=CommandRequest)
        if request.id != path.stem:
            raise ValueError(f"its name is not that of command {request.id}")
    except FileNotFoundError:  # the daemon has taken it
        return None
    except (OSError, ValueError) as error:
        say(log, "unreadable", level=logging.ERROR, path=str(path), why=str(error))
        with contextlib.suppress(OSError):
            if not isinstance(error, NotAFile):
                path.rename(free_name(path))
        return None
    return request
