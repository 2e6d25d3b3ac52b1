"""What became of the commands to boards, for a person and as plain values."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from groundstation.config import Mission
from groundstation.store.command_table import CommandRow
from groundstation.views.status import ago
from onboard.console.errors import one_line


def plain(mission: Mission, row: CommandRow) -> dict[str, Any]:
    """A command as plain values for JSON; times are Unix seconds."""
    told = {"id": row.id.hex(), "node": board_of(mission, row), "state": row.state.value}
    return vars(row) | told


def board_of(mission: Mission, row: CommandRow) -> str:
    """The name of the board that a command is for."""
    names = {node.id: node.name for node in mission.nodes}
    return names.get(row.node, f"node {row.node}")


def sentence(mission: Mission, row: CommandRow) -> str:
    """What became of one command, in one line."""
    outcome = outcome_of(row)
    told = f"{row.state.value}: {row.name} for {board_of(mission, row)}, id {row.id.hex()}"
    return f"{told}: {outcome}" if outcome else told


def outcome_of(row: CommandRow) -> str:
    """The values of a result, or why there are none."""
    return _pairs(row.result, " ") if row.result else one_line(row.why)


def commands_table(mission: Mission, rows: list[CommandRow]) -> None:
    """Prints commands, a row each."""
    table = Table(title="Commands")
    for heading in ("board", "command", "state", "queued", "outcome", "id"):
        table.add_column(heading)
    for row in rows:
        worded = f"{row.name} {_pairs(row.arguments, '=')}".strip()
        cells = (board_of(mission, row), worded, row.state.value, ago(row.queued_at), outcome_of(row))
        table.add_row(*map(escape, cells), row.id.hex())
    Console().print(table if rows else "no commands")


def _pairs(values: Any, between: str) -> str:
    return one_line(", ".join(f"{name}{between}{_value(value)}" for name, value in values.items()))


def _value(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
