"""Commands as a user words and sees them: checked before they are queued, and listed wherever they are."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import closing

import msgspec

from groundstation.commands.inbox import CommandInbox, CommandRequest
from groundstation.commands.states import CommandState
from groundstation.config import Mission, Node
from groundstation.store.command_table import CommandRow
from groundstation.store.store import Store
from onboard.console.errors import one_line
from onboard.mission.commands import COMMANDS, Command, Value, encode_command

LOOK_EVERY_S = 0.2


class BadCommand(ValueError):  # noqa: N818 - "bad" says error already
    """A command that is not queued; the text says why."""


def command_of(name: str, words: Sequence[str], command_id: str | None = None) -> Command:
    """The command that a user worded, with arguments as KEY=VALUE, under an id of 16 hexadecimal digits or a
    new one. Raises BadCommand."""
    if name not in COMMANDS:
        raise BadCommand(f"unknown command {name!r}; boards know {', '.join(COMMANDS)}")
    try:
        name_of_it = bytes.fromhex(command_id) if command_id is not None else secrets.token_bytes(8)
        command = Command(id=name_of_it, name=name, arguments=_arguments(name, words))
        encode_command(command)
    except ValueError as error:
        raise BadCommand(one_line(f"command {name}: {error}")) from None
    return command


def _arguments(name: str, words: Sequence[str]) -> dict[str, Value]:
    """Raises ValueError."""
    given = dict(word.partition("=")[::2] for word in words)
    if len(given) < len(words) or not all("=" in word for word in words):
        raise ValueError("arguments are KEY=VALUE, each key once")
    arguments = msgspec.convert(given, COMMANDS[name].arguments, strict=False)
    return dict(msgspec.to_builtins(arguments))


def find_node(mission: Mission, name: str) -> Node:
    """The board of that name. Raises BadCommand."""
    for node in mission.nodes:
        if node.name == name:
            return node
    raise BadCommand(
        f"{mission.path}: no node {name!r}; there are {', '.join(n.name for n in mission.nodes)}"
    )


def enqueue(mission: Mission, board: str, command: Command, expires_s: float) -> CommandRow:
    """Queues a command for a board, durably on return, unless its id is queued already. Raises BadCommand,
    StoreError, OSError."""
    node = find_node(mission, board)
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
    return _row(request)


def all_commands(mission: Mission) -> list[CommandRow]:
    """All that are kept, oldest first, whether the daemon has taken them in or not. Raises StoreError."""
    waiting = CommandInbox(mission.folder).requests()  # before the store: a command that moves is in both
    stored = list[CommandRow]()
    if mission.database.exists():
        with closing(Store(mission.database, read_only=True)) as store:
            stored = store.commands.all()
    known = {row.id for row in stored}
    return stored + [_row(request) for request in waiting if request.command.id not in known]


def find(mission: Mission, command_id: bytes) -> CommandRow | None:
    """The command with this id. Raises StoreError."""
    return next((row for row in all_commands(mission) if row.id == command_id), None)


def wait_for(mission: Mission, row: CommandRow, wait_s: float) -> CommandRow:
    """The command once it is over, or as it is after `wait_s` seconds. Raises StoreError."""
    until_s = time.monotonic() + wait_s
    while not row.state.is_final and (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(LOOK_EVERY_S, left_s))
        row = find(mission, row.id) or row
    return row


def _row(request: CommandRequest) -> CommandRow:
    return CommandRow(
        id=request.command.id, node=request.node, name=request.name, arguments=request.arguments,
        state=CommandState.QUEUED, queued_at=request.queued_at, expires_at=request.expires_at,
    )  # fmt: skip
