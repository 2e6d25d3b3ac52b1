"""What became of the commands to boards, for a person and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from groundstation.commands.table import CommandRow
from groundstation.config import Mission
from groundstation.views.status import ago
from onboard.console.errors import one_line


def command_values(mission: Mission, row: CommandRow) -> dict[str, Any]:
    """A command as plain values for JSON; times are Unix seconds."""
    names = {node.id: node.name for node in mission.nodes}
    told = {"id": row.id.hex(), "node": names.get(row.node, f"node {row.node}"), "state": row.state.value}
    return vars(row) | told


def command_line(mission: Mission, row: CommandRow) -> str:
    """A command and what became of it, in one line."""
    values = command_values(mission, row)
    worded = " ".join([row.name, *_pairs(row.arguments, "=")])
    outcome = ", ".join(_pairs(row.result, " ")) or row.why
    told = f"{values['id']} {row.state.value}: {worded} for {values['node']}, {ago(row.queued_at)}"
    return one_line(f"{told}: {outcome}" if outcome else told)


def _pairs(values: Mapping[str, Any], between: str) -> list[str]:
    texts = {name: f"{value:.10g}" if isinstance(value, float) else value for name, value in values.items()}
    return [f"{name}{between}{text}" for name, text in texts.items()]
