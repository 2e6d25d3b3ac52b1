"""A mission's status and commands, read from the store alone: it is the same with or without the daemon."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from groundstation.commands import CommandRow
from groundstation.config import Mission
from groundstation.store.store import Store
from onboard.console.errors import one_line
from onboard.mission.health import State, failure_name

_OF_A_ROUND = ("opened_at", "closed_at", "deadline_at", "accuracy", "loss", "bits_down")


def picture(mission: Mission, store: Store) -> dict[str, Any]:
    """Returns mission, rounds and nodes as plain values for JSON; times are Unix seconds."""
    entry = store.mission() or {}
    rounds: list[dict[str, Any]] = [
        {
            "round": row.number,
            "state": "open" if row.closed_at is None else "closed",
            **{name: getattr(row, name) for name in _OF_A_ROUND},
            "answers": store.answers(row.number),
        }
        for row in store.rounds()
    ]
    known = {node.id: node for node in mission.nodes}
    nodes = list[dict[str, Any]]()
    for row in store.nodes():
        if (node := known.get(row["id"])) is None:
            continue
        states = [each["state"] for one in rounds for each in one["answers"] if each["node"] == node.id]
        nodes.append({
            "node": node.name, "board": node.board.name, "link": node.link.name, "port": node.port,
            "heard_at": row["heard_at"], "health": _health(row["health"]),
            "counters": store.counters(node.id), "asked": len(states),
            "answered": states.count("answered") + states.count("merged"),
        })  # fmt: skip
    return {
        "mission": mission.rules.name,
        "id": entry["id"].hex() if entry else None,
        "model": mission.rules.model,
        "rounds_wanted": mission.rules.rounds,
        "finished_at": entry.get("finished_at"),
        "why": entry.get("why"),
        "rounds": rounds,
        "nodes": nodes,
    }


def _health(stored: str | None) -> dict[str, Any] | None:
    """Returns a board's latest health report; None for none or one of another version."""
    try:
        health = json.loads(stored or "null")
        State(health["state"])
    except (ValueError, TypeError, KeyError):
        return None
    return dict(health)


def table(view: Mapping[str, Any], console: Console | None = None) -> None:
    console = console or Console()
    state = f"finished ({view['why']})" if view["finished_at"] else "running or resumable"
    console.print(
        f"[bold]{escape(view['mission'])}[/]  {view['model']}, {view['rounds_wanted']} rounds wanted: {state}"
    )
    rounds = Table("round", "state", "accuracy", "loss", "bits/weight down", "answered", "seconds", box=None)
    for row in view["rounds"]:
        asked = [answer for answer in row["answers"] if answer["state"] != "merged"]
        answered = [answer for answer in asked if answer["state"] == "answered"]
        until = row["closed_at"] or time.time()
        rounds.add_row(
            str(row["round"]), row["state"], _percent(row["accuracy"]), _number(row["loss"], ".3f"),
            _number(row["bits_down"], ".3f"), f"{len(answered)} of {len(asked)}",
            f"{max(0.0, until - row['opened_at']):.0f}",  # the clock may have been set meanwhile
        )  # fmt: skip
    console.print(rounds if view["rounds"] else "no round yet")
    nodes = Table("node", "link", "answered", "heard", "doing", "sent B", "received B", "resent", box=None)
    for row in view["nodes"]:
        health, counters = row["health"], row["counters"]
        nodes.add_row(
            row["node"], row["link"], f"{row['answered']} of {row['asked']}", ago(row["heard_at"]),
            _doing(health) if health else "-",
            f"{counters.get('bytes_sent', 0):,.0f}", f"{counters.get('bytes_received', 0):,.0f}",
            f"{counters.get('fragments_resent', 0):,.0f}",
        )  # fmt: skip
    console.print(nodes if view["nodes"] else "no node heard yet")
    closed = any(row["state"] == "closed" for row in view["rounds"])
    for row in view["nodes"]:
        if closed and row["asked"] and not row["answered"]:
            why = _doing(row["health"]) if row["health"] else "never heard"
            console.print(f"[bold]never answered:[/] {escape(row['node'])}, {why}", soft_wrap=True)


def _doing(health: Mapping[str, Any]) -> str:
    state = State(health["state"])
    if state is not State.FAILED:
        return state.name.lower()
    why = health.get("why") or failure_name(health.get("failure", 0))
    return escape(f"failed: {why}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def ago(at: float | None) -> str:
    """Returns a value's age, which shows better than a time of day whether it is fresh."""
    if at is None:
        return "never"
    seconds = max(0.0, time.time() - at)
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"


def command_values(mission: Mission, row: CommandRow) -> dict[str, Any]:
    """Returns a command as plain values for JSON; times are Unix seconds."""
    names = {node.id: node.name for node in mission.nodes}
    told = {"id": row.id.hex(), "node": names.get(row.node, f"node {row.node}"), "state": row.state.value}
    return vars(row) | told


def command_line(mission: Mission, row: CommandRow) -> str:
    """Returns a command and its outcome in one line."""
    values = command_values(mission, row)
    worded = " ".join([row.name, *_pairs(row.arguments, "=")])
    outcome = ", ".join(_pairs(row.result, " ")) or row.why
    told = f"{values['id']} {row.state.value}: {worded} for {values['node']}, {ago(row.queued_at)}"
    return one_line(f"{told}: {outcome}" if outcome else told)


def _pairs(values: Mapping[str, Any], between: str) -> list[str]:
    texts = {name: f"{value:.10g}" if isinstance(value, float) else value for name, value in values.items()}
    return [f"{name}{between}{text}" for name, text in texts.items()]
