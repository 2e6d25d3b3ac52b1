"""The states of a command, their transitions, and the database's table of commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from groundstation.store.database import errors
from groundstation.store.store import Store
from onboard.mission.commands import Command, Name, Value

KEPT = 1000  # finished commands; older ones are deleted


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
        return [row for each in new if (row := self.find(each.id)) is not None]

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

    def all(self) -> list[CommandRow]:
        """Returns all kept commands, oldest first; none from a database that has no such table yet."""
        with errors(self._store.path):
            found = self._store.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'command'").fetchone()
        return self._rows("ORDER BY queued_at, id") if found else []

    def _rows(self, where: str, *values: Any) -> list[CommandRow]:
        rows = self._store.db.all("command", where, *values)
        with errors(self._store.path):
            return [_row(row) for row in rows]


def _json(values: Mapping[str, Value]) -> str:
    return msgspec.json.encode(values).decode()


def _row(row: dict[str, Any]) -> CommandRow:
    return CommandRow(
        **row | {
            "arguments": msgspec.json.decode(row["arguments"], type=dict[str, Value]),
            "state": CommandState(row["state"]),
            "why": row["why"] or "",
            "result": msgspec.json.decode(row["result"] or "{}", type=dict[str, Value]),
        }
    )  # fmt: skip
