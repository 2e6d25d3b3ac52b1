"""Commands to boards: their states, the queue, and the dispatcher that sends them and stores their results.

Whoever queues a command leaves a durable file in `commands/` of the mission's folder, named by the command's
id; the daemon moves it into the database, of which it is the only writer. If a kill leaves both, the id shows
that they are one command. A state is durable before anything follows from it, so a daemon that is killed
continues where it was. A command keeps its id, and the board runs it once however often it is sent."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from groundstation.config import Mission
from groundstation.station import Station
from groundstation.store.database import errors
from groundstation.store.store import Store
from onboard.console.errors import one_line
from onboard.console.log import say
from onboard.console.toml import ConfigError
from onboard.mission.commands import (
    COMMANDS,
    MAX_BYTES,
    PRIORITY,
    Command,
    CommandResult,
    Name,
    Value,
    decode_body,
    encode_body,
)
from onboard.mission.objects import COMMAND, RESULT
from onboard.storage import files
from onboard.wire.events import Arrived, Cancelled, Delivered, Event, Rekeyed
from onboard.wire.messages import BadMessage, Reason, digest

log = logging.getLogger(__name__)

KEPT = 1000  # finished commands; older ones are deleted
LOOK_EVERY_S = 0.5  # at the queue, expiries and contacts
_ASK_EVERY_S = 0.2  # whether a command has ended
_MAX_FILE_BYTES = 16 * MAX_BYTES  # JSON escapes take six times a byte at most


class CommandState(Enum):
    """The state of a command; the value is what the store and the user see."""

    QUEUED = "queued"  # durable here; no byte of it has left
    SENT = "sent"  # it may have left, but is not acknowledged
    ACKNOWLEDGED = "acknowledged"  # durable on the board
    DONE = "done"  # the board ran it, and its result is here
    REFUSED = "refused"  # the board did not run it, and said why
    EXPIRED = "expired"  # its time has passed; if it was sent, it may still have been run

    @property
    def is_final(self) -> bool:
        return self in (CommandState.DONE, CommandState.REFUSED, CommandState.EXPIRED)


_TOLD = frozenset({CommandState.DONE, CommandState.REFUSED})  # by the board's result, which always counts
TRANSITIONS: Mapping[CommandState, frozenset[CommandState]] = {
    # A result comes before SENT if the database is an older copy,
    CommandState.QUEUED: _TOLD | {CommandState.SENT, CommandState.EXPIRED},
    # before ACKNOWLEDGED if that frame was lost,
    CommandState.SENT: _TOLD | {CommandState.ACKNOWLEDGED, CommandState.EXPIRED},
    CommandState.ACKNOWLEDGED: _TOLD | {CommandState.EXPIRED},
    CommandState.DONE: frozenset(),
    CommandState.REFUSED: frozenset(),
    # and late if the board had the command before it was withdrawn.
    CommandState.EXPIRED: _TOLD,
}

_AT = {CommandState.SENT: "sent_at", CommandState.ACKNOWLEDGED: "acknowledged_at"}
_FINAL = ", ".join(f"'{state.value}'" for state in CommandState if state.is_final)


@dataclass(frozen=True)
class CommandRow:
    """One command as stored. Times are Unix seconds, None for what has not happened."""

    id: bytes
    node: int
    name: str
    arguments: Mapping[str, Value]
    state: CommandState
    queued_at: float
    expires_at: float
    sent_at: float | None = None
    acknowledged_at: float | None = None
    ended_at: float | None = None
    why: str = ""
    result: Mapping[str, Value] = field(default_factory=dict)

    @property
    def command(self) -> Command:
        return Command(id=self.id, name=self.name, arguments=dict(self.arguments))


class CommandRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command as queued for a board. `id`: 16 hexadecimal digits. Times are Unix seconds."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    node: Annotated[int, Meta(ge=0, le=254)]
    name: Name
    arguments: dict[Name, Value] = {}
    queued_at: float
    expires_at: float

    @property
    def row(self) -> CommandRow:
        return CommandRow(
            id=bytes.fromhex(self.id), node=self.node, name=self.name, arguments=self.arguments,
            state=CommandState.QUEUED, queued_at=self.queued_at, expires_at=self.expires_at,
        )  # fmt: skip


class CommandTable:
    """The table `command` of a mission's database. Every method raises StoreError when SQLite fails."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def queue(self, requests: Iterable[CommandRequest]) -> list[CommandRow]:
        """Inserts commands, all or none; returns those that are new."""
        new = [row for row in (request.row for request in requests) if self.find(row.id) is None]
        if not new:
            return []
        with self._store.transaction():
            self._store.db.executemany(
                "INSERT INTO command (id, node, name, arguments, state, queued_at, expires_at) "
                "VALUES (?, ?, ?, ?, 'queued', ?, ?)",
                [
                    (row.id, row.node, row.name, _json(row.arguments), row.queued_at, row.expires_at)
                    for row in new
                ],
            )
            self._store.db.execute(
                f"DELETE FROM command WHERE state IN ({_FINAL}) AND id NOT IN "
                "(SELECT id FROM command ORDER BY queued_at DESC, id DESC LIMIT ?)",
                (KEPT,),
            )
        return new

    def move(
        self, row: CommandRow, state: CommandState, now: float, *, why: str = "",
        result: Mapping[str, Value] | None = None,
    ) -> None:  # fmt: skip
        """Stores a command's next state, which TRANSITIONS must allow."""
        assert state in TRANSITIONS[row.state], f"{row.state.value} command becomes {state.value}"
        told = None if result is None else _json(result)
        with self._store.transaction():
            self._store.db.execute(
                f"UPDATE command SET state = ?, {_AT.get(state, 'ended_at')} = ?, why = ?, result = ? "
                "WHERE id = ?",
                (state.value, now, why, told, row.id),
            )

    def find(self, command_id: bytes) -> CommandRow | None:
        return next(iter(self._rows("WHERE id = ?", command_id)), None)

    def unfinished(self) -> list[CommandRow]:
        """Returns the commands that have not ended, oldest first."""
        return self._rows(f"WHERE state NOT IN ({_FINAL}) ORDER BY queued_at, id")

    def installs(self, node: int) -> list[CommandRow]:
        """Returns the installs of one board, oldest first."""
        return self._rows("WHERE node = ? AND name = 'install' ORDER BY queued_at, id", node)

    def all(self) -> list[CommandRow]:
        """Returns all kept commands, oldest first; none from a database that has no such table yet."""
        with errors(self._store.path):
            found = self._store.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'command'").fetchone()
        return self._rows("ORDER BY queued_at, id") if found else []

    def _rows(self, where: str, *values: Any) -> list[CommandRow]:
        rows = self._store.db.all("command", where, *values)
        with errors(self._store.path):
            return [
                CommandRow(
                    **row | {
                        "arguments": msgspec.json.decode(row["arguments"], type=dict[str, Value]),
                        "state": CommandState(row["state"]),
                        "why": row["why"] or "",
                        "result": msgspec.json.decode(row["result"] or "{}", type=dict[str, Value]),
                    }
                )
                for row in rows
            ]  # fmt: skip


def _json(values: Mapping[str, Value]) -> str:
    return msgspec.json.encode(values).decode()


class CommandInbox:
    """The files of queued commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "commands"

    def put(self, request: CommandRequest) -> None:
        """Queues a command, durably on return. Raises OSError."""
        files.clear_the_way(self._folder, "folder")
        if not self._folder.exists():
            self._folder.mkdir(exist_ok=True)
            files.sync_folder(self._folder.parent)
        files.replace_durably(self._path(request), msgspec.json.encode(request))

    def requests(self) -> list[CommandRequest]:
        """Returns those that wait, oldest first. An invalid file is put aside where possible."""
        found = list[CommandRequest]()
        try:
            paths = [*self._folder.glob("*.json")]
        except OSError:
            return found
        for path in paths:
            try:
                request = msgspec.json.decode(files.read_file(path, _MAX_FILE_BYTES), type=CommandRequest)
                if request.id != path.stem:
                    raise ValueError(f"its name is not that of command {request.id}")
                found.append(request)
            except FileNotFoundError:  # the daemon has taken it
                continue
            except (OSError, ValueError) as error:
                say(log, "unreadable", level=logging.ERROR, path=str(path), why=str(error))
                with contextlib.suppress(OSError):
                    if not isinstance(error, files.NotAFile):
                        path.rename(files.free_name(path))
        return sorted(found, key=lambda request: (request.queued_at, request.id))

    def remove(self, request: CommandRequest) -> None:
        """Removes a request that is in the database. If the file stays, that does no harm."""
        with contextlib.suppress(OSError):
            self._path(request).unlink()

    def _path(self, request: CommandRequest) -> Path:
        return self._folder / f"{request.id}.json"


def command_of(name: str, words: Sequence[str], command_id: str | None = None) -> Command:
    """Builds a command from its name and KEY=VALUE words, with the given id of 16 hex digits or a new one.
    Raises ConfigError for words that do not fit."""
    given = dict(word.partition("=")[::2] for word in words)
    if len(given) < len(words) or not all("=" in word for word in words):
        raise ConfigError(f"command {name}: arguments are KEY=VALUE, each key once")
    return command_with(name, given, command_id)


def command_with(name: str, given: Mapping[str, Any], command_id: str | None = None) -> Command:
    """Builds a command from its name and arguments. Raises ConfigError for what does not fit."""
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; boards know {', '.join(COMMANDS)}")
    try:
        name_of_it = bytes.fromhex(command_id) if command_id is not None else secrets.token_bytes(8)
        arguments = msgspec.convert(dict(given), COMMANDS[name].arguments, strict=False)
        command = Command(id=name_of_it, name=name, arguments=dict(msgspec.to_builtins(arguments)))
        encode_body(command)
    except ValueError as error:
        raise ConfigError(one_line(f"command {name}: {error}")) from None
    return command


def enqueue(mission: Mission, board: str, command: Command, expires_s: float) -> CommandRow:
    """Queues a command for a board, durably on return, unless its id is queued already. Raises ConfigError,
    StoreError, OSError."""
    node = mission.find_node(board)
    if (known := find(mission, command.id)) is not None:
        if (known.node, known.command) != (node.id, command):
            raise ConfigError(f"id {command.id.hex()} is that of another command")
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


def wait_for(
    mission: Mission, row: CommandRow, wait_s: float, see: Callable[[CommandRow], None] = lambda row: None
) -> CommandRow:
    """Waits up to `wait_s` seconds for the command to end, and lets `see` its row at each look; returns the
    latest. Raises StoreError."""
    until_s = time.monotonic() + wait_s
    while not row.state.is_final and (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(_ASK_EVERY_S, left_s))
        row = find(mission, row.id) or row
        see(row)
    return row


WAITS_FOR = {
    CommandState.QUEUED: "it was not sent",
    CommandState.SENT: "the board did not acknowledge it",
    CommandState.ACKNOWLEDGED: "the board has it, and its result did not come",
}


class CommandDispatcher:
    """The commands of the mission in `folder`. `wall` is the ground's clock in Unix seconds."""

    def __init__(
        self, folder: Path, store: Store, stations: Mapping[int, Station], wall: Callable[[], float]
    ) -> None:
        self._inbox, self._table = CommandInbox(folder), CommandTable(store)
        self._stations, self._wall = stations, wall
        self._offered: dict[bytes, bytes] = {}  # digest of an object in transfer: its command's id
        self._due_s = 0.0

    def step(self, now: float) -> None:
        """Queues requests, expires commands, and sends what may be sent. Raises StoreError, and then resumes
        from the store at the next call."""
        if now < self._due_s:
            return
        self._due_s = now + LOOK_EVERY_S
        requests = self._inbox.requests()
        for row in self._table.queue(requests):
            say(log, "command-queued", **self._told(row))
        for request in requests:
            self._inbox.remove(request)
        nodes = set[int]()
        for row in self._table.unfinished():
            station = self._stations.get(row.node)
            if self._wall() >= row.expires_at:
                why = WAITS_FOR[row.state]
                self._table.move(row, CommandState.EXPIRED, self._wall(), why=why)
                if station is not None:
                    station.session.cancel(digest(COMMAND, encode_body(row.command)), now)
                say(log, "command-expired", level=logging.WARNING, **self._told(row), why=why)
            elif station is not None and row.node not in nodes and row.state is not CommandState.ACKNOWLEDGED:
                nodes.add(row.node)
                self._send(row, station, now)

    def tell_pending(self) -> None:
        """Tells which commands have not ended, as the daemon ends and will not wait. Raises StoreError."""
        rows = {request.row.id: request.row for request in self._inbox.requests()}
        rows |= {row.id: row for row in self._table.unfinished()}  # one that a kill left in both is one
        for row in sorted(rows.values(), key=lambda row: (row.queued_at, row.id)):
            state, left_s = row.state.value, round(row.expires_at - self._wall())
            told = {**self._told(row), "state": state, "expires_in_s": left_s}
            say(log, "command-pending", level=logging.WARNING, **told)

    def _send(self, row: CommandRow, station: Station, now: float) -> None:
        if row.state is CommandState.QUEUED:
            presence = station.session.presence
            if not station.session.contacts.is_up(now) or presence.alone or presence.in_doubt:
                return  # no frame would leave now for a board that is known to be there
            self._table.move(row, CommandState.SENT, self._wall())
            say(log, "command-sent", **self._told(row))
        name = station.session.offer(COMMAND, encode_body(row.command), now, priority=PRIORITY)
        self._offered[name] = row.id

    def handle(self, station: Station, event: Event, now: float) -> bool:
        """Takes an event about a command; returns whether it was one. Raises StoreError."""
        if isinstance(event, Arrived) and event.kind == RESULT:
            self._take_result(station, event, now)
            return True
        if isinstance(event, Rekeyed):
            self._remind(station, now)
        if not isinstance(event, Delivered | Cancelled) or event.digest not in self._offered:
            return False
        row = self._table.find(self._offered[event.digest])
        if row is None or row.state is not CommandState.SENT:
            pass  # it has expired, or its result arrived first
        elif isinstance(event, Delivered):
            self._table.move(row, CommandState.ACKNOWLEDGED, self._wall())
            say(log, "command-acknowledged", **self._told(row))
        else:
            known = [reason.name.lower() for reason in Reason if reason == event.reason]
            self._refuse(row, f"the board did not take it: {', '.join(known) or event.reason}")
        del self._offered[event.digest]
        self._due_s = now  # for the next one
        return True

    def _remind(self, station: Station, now: float) -> None:
        """Offers once more what a board has acknowledged and not answered: after a start it may have lost its
        disk. A board runs each command once."""
        for row in self._table.unfinished():
            if row.node == station.node.id and row.state is CommandState.ACKNOWLEDGED:
                station.session.offer(COMMAND, encode_body(row.command), now, priority=PRIORITY)

    def _refuse(self, row: CommandRow, why: str) -> None:
        self._table.move(row, CommandState.REFUSED, self._wall(), why=why)
        say(log, "command-refused", level=logging.WARNING, **self._told(row), why=why)

    def _take_result(self, station: Station, arrived: Arrived, now: float) -> None:
        """Checks a result, makes it durable, and then acknowledges it."""
        try:
            result = decode_body(arrived.payload, CommandResult)
        except BadMessage as error:
            say(log, "bad-message", level=logging.WARNING, node=station.node.name, why=str(error))
            station.session.refuse(arrived.digest, Reason.REFUSED, now)
            return
        row = self._table.find(result.command)
        if row is None or row.node != station.node.id:
            say(log, "result-discarded", node=station.node.name, id=result.command.hex())
        elif row.state not in (CommandState.DONE, CommandState.REFUSED):
            if result.outcome == "done":
                self._table.move(row, CommandState.DONE, self._wall(), why=result.why, result=result.values)
                say(log, "command-done", **self._told(row), result=result.values)
            else:
                self._refuse(row, result.why)
        station.session.accept(arrived.digest, now)
        self._due_s = now

    def _told(self, row: CommandRow) -> dict[str, Any]:
        station = self._stations.get(row.node)
        name = station.node.name if station is not None else f"node {row.node}"
        return {"node": name, "id": row.id.hex(), "name": row.name}
