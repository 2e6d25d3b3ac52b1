"""The commands of a mission in its database: what was queued, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from groundstation.commands.inbox import CommandRequest
from groundstation.commands.states import TRANSITIONS, CommandState
from groundstation.store.database import Database
from onboard.mission.commands import Command, Value

KEPT = 1000  # commands that are over: older ones go

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


class CommandTable:
    """The table `command`. Raises StoreError from every method when SQLite fails."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def queue(self, requests: Iterable[CommandRequest]) -> list[CommandRow]:
        """Enters commands, all or none; returns those that were not there yet."""
        new = [request for request in requests if self.find(request.command.id) is None]
        if not new:
            return []
        with self._db.transaction():
            for request in new:
                arguments = msgspec.json.encode(request.arguments).decode()
                self._db.execute(
                    "INSERT INTO command (id, node, name, arguments, state, queued_at, expires_at) "
                    "VALUES (?, ?, ?, ?, 'queued', ?, ?)",
                    (
                        request.command.id, request.node, request.name, arguments, request.queued_at,
                        request.expires_at,
                    ),
                )  # fmt: skip
            self._db.execute(
                f"DELETE FROM command WHERE state IN ({_FINAL}) AND id NOT IN "
                "(SELECT id FROM command ORDER BY queued_at DESC, id DESC LIMIT ?)",
                (KEPT,),
            )
        return [row for request in new if (row := self.find(request.command.id)) is not None]

    def move(
        self, row: CommandRow, state: CommandState, now: float, *, why: str = "",
        result: Mapping[str, Value] | None = None,
    ) -> None:  # fmt: skip
        """Notes another state of a command, which TRANSITIONS allows."""
        assert state in TRANSITIONS[row.state], f"{row.state.value} command becomes {state.value}"
        told = None if result is None else msgspec.json.encode(result).decode()
        column = _AT.get(state, "ended_at")
        with self._db.transaction():
            self._db.execute(
                f"UPDATE command SET state = ?, {column} = ?, why = ?, result = ? WHERE id = ?",
                (state.value, now, why, told, row.id),
            )

    def find(self, command_id: bytes) -> CommandRow | None:
        """One command, if it was ever queued."""
        found = self._rows("WHERE id = ?", command_id)
        return found[0] if found else None

    def unfinished(self) -> list[CommandRow]:
        """Those that are not over, in the order in which they were queued."""
        return self._rows(f"WHERE state NOT IN ({_FINAL}) ORDER BY queued_at, id")

    def all(self) -> list[CommandRow]:
        """All that are kept, in the order in which they were queued. An earlier form of the database, which
        no daemon has migrated yet, has none."""
        if not self._db.has("command"):
            return []
        return self._rows("ORDER BY queued_at, id")

    def _rows(self, where: str, *values: Any) -> list[CommandRow]:
        rows = self._db.all("command", where, *values)
        with self._db.errors():
            return [_row(row) for row in rows]


def _row(row: dict[str, Any]) -> CommandRow:
    """Raises msgspec.MsgspecError."""
    return CommandRow(
        **row | {
            "arguments": msgspec.json.decode(row["arguments"], type=dict[str, Value]),
            "state": CommandState(row["state"]),
            "why": row["why"] or "",
            "result": msgspec.json.decode(row["result"] or "{}", type=dict[str, Value]),
        }
    )  # fmt: skip
