"""The queue of commands: files that the daemon moves into the database, of which it is the only writer.

Whoever queues a command leaves a durable file in `commands/` of the mission's folder, named by the command's
id. If a kill leaves both the file and the row, the id shows that they are one command."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from groundstation.commands.table import CommandRequest, CommandRow, CommandTable
from groundstation.config import Mission
from groundstation.store.store import Store
from onboard.console.errors import one_line
from onboard.console.log import say
from onboard.mission.commands import COMMANDS, MAX_BYTES, Command, encode_body
from onboard.storage.files import (
    NotAFile,
    clear_the_way,
    free_name,
    read_file,
    replace_durably,
    sync_folder,
)

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
_MAX_FILE_BYTES = 16 * MAX_BYTES  # JSON escapes take six times a byte at most


class CommandInbox:
    """The files of queued commands."""

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
        """Returns those that wait, oldest first. An invalid file is put aside where possible."""
        try:
            paths = [*self._folder.glob("*.json")]
        except OSError:
            return []
        found = [request for path in paths if (request := _read(path)) is not None]
        return sorted(found, key=lambda request: (request.queued_at, request.id))

    def remove(self, request: CommandRequest) -> None:
        """Removes a request that is in the database. If the file stays, that does no harm."""
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


class BadCommand(ValueError):  # noqa: N818 - "bad" says error already
    """A command that is not queued; the text says why."""


def command_of(name: str, words: Sequence[str], command_id: str | None = None) -> Command:
    """Builds a command from its name and KEY=VALUE words, with the given id of 16 hex digits or a new one.
    Raises BadCommand for words that do not fit."""
    if name not in COMMANDS:
        raise BadCommand(f"unknown command {name!r}; boards know {', '.join(COMMANDS)}")
    try:
        name_of_it = bytes.fromhex(command_id) if command_id is not None else secrets.token_bytes(8)
        given = dict(word.partition("=")[::2] for word in words)
        if len(given) < len(words) or not all("=" in word for word in words):
            raise ValueError("arguments are KEY=VALUE, each key once")
        arguments = msgspec.convert(given, COMMANDS[name].arguments, strict=False)
        command = Command(id=name_of_it, name=name, arguments=dict(msgspec.to_builtins(arguments)))
        encode_body(command)
    except ValueError as error:
        raise BadCommand(one_line(f"command {name}: {error}")) from None
    return command


def enqueue(mission: Mission, board: str, command: Command, expires_s: float) -> CommandRow:
    """Queues a command for a board, durably on return, unless its id is queued already. Raises BadCommand,
    ConfigError, StoreError, OSError."""
    node = mission.find_node(board)
    known = find(mission, command.id)
    if known is not None and (known.node, known.command) != (node.id, command):
        raise BadCommand(f"id {command.id.hex()} is that of another command")
    if known is not None:
        return known
    now = time.time()
    request = CommandRequest(
        id=command.id.hex(), node=node.id, name=command.name, arguments=command.arguments, queued_at=now,
        expires_at=now + expires_s,
    )  # fmt: skip
    CommandInbox(mission.folder).put(request)
    return request.row


def all_commands(mission: Mission) -> list[CommandRow]:
    """Returns all kept commands, in the database or not yet, oldest first. Raises StoreError."""
    waiting = CommandInbox(mission.folder).requests()  # before the store: a command that moves is in both
    stored = list[CommandRow]()
    if mission.database.exists():
        with closing(Store(mission.database, read_only=True)) as store:
            stored = CommandTable(store).all()
    known = {row.id for row in stored}
    return stored + [row for row in (request.row for request in waiting) if row.id not in known]


def find(mission: Mission, command_id: bytes) -> CommandRow | None:
    return next((row for row in all_commands(mission) if row.id == command_id), None)


def wait_for(mission: Mission, row: CommandRow, wait_s: float) -> CommandRow:
    """Waits up to `wait_s` seconds for the command to end; returns its latest row. Raises StoreError."""
    until_s = time.monotonic() + wait_s
    while not row.state.is_final and (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(LOOK_EVERY_S, left_s))
        row = find(mission, row.id) or row
    return row
