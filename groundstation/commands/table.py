"""A command's life as the ground knows it: which states there are, which may follow which, and the database's
table of what was queued and what became of it."""

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

KEPT = 1000  # commands that are over: older ones go


class CommandState(Enum):
    """Where a command is; the value is what the store and the user see."""

    QUEUED = "queued"  # durable here, and no byte of it has left
    SENT = "sent"  # it may have left, and the board has not said that it holds it
    ACKNOWLEDGED = "acknowledged"  # durable on the board
    DONE = "done"  # the board ran it, and its result is here
    REFUSED = "refused"  # the board did not run it, and said why
    EXPIRED = "expired"  # its time passed first; where it was sent, it may have been run all the same

    @property
    def is_final(self) -> bool:
        """Whether nobody works on it any more."""
        return self in (CommandState.DONE, CommandState.REFUSED, CommandState.EXPIRED)


_TOLD = frozenset({CommandState.DONE, CommandState.REFUSED})  # by the board's result, which is the truth
TRANSITIONS: Mapping[CommandState, frozenset[CommandState]] = {
    # A result comes before the command is sent where the database is an older copy,
    CommandState.QUEUED: _TOLD | {CommandState.SENT, CommandState.EXPIRED},
    # before the acknowledgement where that is lost,
    CommandState.SENT: _TOLD | {CommandState.ACKNOWLEDGED, CommandState.EXPIRED},
    CommandState.ACKNOWLEDGED: _TOLD | {CommandState.EXPIRED},
    CommandState.DONE: frozenset(),
    CommandState.REFUSED: frozenset(),
    # and late where the board had the command before it was withdrawn.
    CommandState.EXPIRED: _TOLD,
}

_AT = {CommandState.SENT: "sent_at", CommandState.ACKNOWLEDGED: "acknowledged_at"}
_FINAL = ", ".join(f"'{state.value}'" for state in CommandState if state.is_final)


@dataclass(frozen=True)
class CommandRow:
    """One command as stored. Times are Unix seconds; those of what has not happened are None."""

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
        """What travels."""
        return Command(id=self.id, name=self.name, arguments=dict(self.arguments))


class CommandRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command for a board, as it was queued. `id`: 16 hexadecimal digits. Times are Unix seconds."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    node: Annotated[int, Meta(ge=0, le=254)]
    name: Name
    arguments: dict[Name, Value] = {}
    queued_at: float
    expires_at: float

    @property
    def row(self) -> CommandRow:
        """The command as it is stored."""
        return CommandRow(
            id=bytes.fromhex(self.id), node=self.node, name=self.name, arguments=self.arguments,
            state=CommandState.QUEUED, queued_at=self.queued_at, expires_at=self.expires_at,
        )  # fmt: skip


class CommandTable:
    """The table `command` of a mission's database. Raises StoreError from every method when SQLite fails."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def queue(self, requests: Iterable[CommandRequest]) -> list[CommandRow]:
        """Enters commands, all or none; returns those that were not there yet."""
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
        """Notes another state of a command, which TRANSITIONS allows."""
        assert state in TRANSITIONS[row.state], f"{row.state.value} command becomes {state.value}"
        told = None if result is None else _json(result)
        with self._store.transaction():
            self._store.db.execute(
                f"UPDATE command SET state = ?, {_AT.get(state, 'ended_at')} = ?, why = ?, result = ? "
                "WHERE id = ?",
                (state.value, now, why, told, row.id),
            )

    def find(self, command_id: bytes) -> CommandRow | None:
        """One command, if it was ever queued."""
        return next(iter(self._rows("WHERE id = ?", command_id)), None)

    def unfinished(self) -> list[CommandRow]:
        """Those that are not over, in the order in which they were queued."""
        return self._rows(f"WHERE state NOT IN ({_FINAL}) ORDER BY queued_at, id")

    def all(self) -> list[CommandRow]:
        """All that are kept, in the order of the queue; none in an earlier form of the database."""
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
