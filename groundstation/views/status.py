"""What a terminal shows of a mission: its status and commands, and its links as the daemon tells of them.

Status and commands are read from the store alone, so they are the same with or without the daemon."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console, Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from groundstation.commands import CommandRow
from groundstation.config import Mission
from groundstation.store.store import Store
from onboard.console.errors import one_line
from onboard.console.lines import is_terminal
from onboard.learn.networks import Network, NetworkError
from onboard.learn.objectives import METRICS, Metric, metric_of
from onboard.mission.health import State, failure_name
from onboard.mission.objects import KINDS, mean_validation
from onboard.monitor.render import BAR, DROPPED, answers, bit_rate, duration, eta, peer_state, rate_bps

View = Mapping[str, Any]
_OF_A_ROUND = ("opened_at", "closed_at", "deadline_at", "loss", "bits_down")


def picture(mission: Mission, store: Store) -> dict[str, Any]:
    """Returns mission, rounds and nodes as plain values for JSON; times are Unix seconds."""
    entry, metric = store.mission() or {}, _metric(mission)
    rounds: list[dict[str, Any]] = [
        {"round": row.number, "state": "open" if row.closed_at is None else "closed"}
        | {name: getattr(row, name) for name in _OF_A_ROUND}
        | {metric.key: row.accuracy}
        | {"answers": store.answers(row.number)}
        for row in store.rounds()
    ]
    for each in rounds:
        each["validation"] = mean_validation(
            (answer["validation"], answer["samples"]) for answer in each["answers"]
        )
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
        "mission": mission.rules.name, "id": entry["id"].hex() if entry else None,
        "model": mission.rules.model, "metric": metric.key, "rounds_wanted": mission.rules.rounds,
        "classes": json.loads(entry.get("classes") or "[]"),
        "finished_at": entry.get("finished_at"), "why": entry.get("why"), "rounds": rounds, "nodes": nodes,
    }  # fmt: skip


def _health(stored: str | None) -> dict[str, Any] | None:
    """Returns a board's latest health report; None for none or one of another version."""
    try:
        health = json.loads(stored or "null")
        State(health["state"])
    except (ValueError, TypeError, KeyError):
        return None
    return dict(health)


def _metric(mission: Mission) -> Metric:
    """Returns what the mission's model is judged by; as `classify` is, where the model cannot be read."""
    try:
        return Network.load(mission.model).objective.metric
    except NetworkError:
        return METRICS["classify"]


def table(view: Mapping[str, Any], console: Console | None = None) -> None:
    console = console or Console()
    metric = metric_of(view["metric"])
    state = f"finished ({view['why']})" if view["finished_at"] else "running or resumable"
    console.print(
        f"[bold]{escape(view['mission'])}[/]  {view['model']}, {view['rounds_wanted']} rounds wanted: {state}"
    )
    has_validation = any(row["validation"] is not None for row in view["rounds"])
    held_out = ("on boards",) if has_validation else ()
    headings = "round", "state", metric.title, *held_out, "loss", "bits/weight down", "answered", "seconds"
    rounds = Table(*headings, box=None)
    for row in view["rounds"]:
        asked = [answer for answer in row["answers"] if answer["state"] != "merged"]
        answered = [answer for answer in asked if answer["state"] == "answered"]
        until = row["closed_at"] or time.time()
        rounds.add_row(
            str(row["round"]), row["state"], metric.told(row[metric.key]),
            *(metric.told(row["validation"]) for _ in held_out), _number(row["loss"], ".3f"),
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
    for row in view["nodes"]:
        if row["health"] and row["health"].get("answers"):
            told = answers(row["health"]["answers"], view["classes"])
            console.print(f"[bold]images answered:[/] {escape(row['node'])}, {escape(told)}", soft_wrap=True)
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


_LONGEST = 24  # letters of a command's argument that is shown


def command_line(mission: Mission, row: CommandRow) -> str:
    """Returns a command and its outcome in one line."""
    values = command_values(mission, row)
    short = {key: value for key, value in row.arguments.items() if len(str(value)) <= _LONGEST}  # no digests
    worded = " ".join([row.name, *_pairs(short, "=")])
    outcome = ", ".join(_pairs(row.result, " ")) or row.why
    told = f"{values['id']} {row.state.value}: {worded} for {values['node']}, {ago(row.queued_at)}"
    return one_line(f"{told}: {outcome}" if outcome else told)


def _pairs(values: Mapping[str, Any], between: str) -> list[str]:
    texts = {name: f"{value:.10g}" if isinstance(value, float) else value for name, value in values.items()}
    return [f"{name}{between}{text}" for name, text in texts.items()]


def links_picture(view: View, before: View | None, gap_s: float) -> str:
    """Renders the view as text; `before` is the view of `gap_s` seconds ago, if any."""
    console = Console(force_terminal=is_terminal(sys.stdout))
    with console.capture() as captured:
        console.print(group(view, before, gap_s))
    return captured.get().rstrip()


def group(view: View, before: View | None, gap_s: float) -> Group:
    waiting = f"waiting for {', '.join(view['waiting'])}" if view["waiting"] else "waiting for nobody"
    earlier = {link["node"]: link for link in before["links"]} if before else {}
    now = _table(
        "node", "contact", right=("on the wire", "goodput out", "in", "lost out, in", "done in", "passes")
    )
    totals = _table("node", right=("sent B", "got B", "airtime", "again", "repairs", "bad tags",
                                           "replays", "else"))  # fmt: skip
    for link in view["links"]:
        now.add_row(*_now(link, earlier.get(link["node"]), gap_s))
        totals.add_row(*_totals(link))
    top = Text(f"round {view['round']}, {waiting}")
    return Group(top, Text(), now, Text(), totals, Text(), _objects(view))


def _table(*left: str, right: Sequence[str] = ()) -> Table:
    table = Table(*left, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _now(link: View, before: View | None, gap_s: float) -> list[Text | str]:
    rates = [rate_bps(link, before, gap_s, counter) for counter in ("bytes_sent", "bytes_received")]
    known, port = [rate for rate in rates if rate is not None], link["port"]
    contact = peer_state(link) if port["open"] else click.style(port["why"] or "port closed", fg="red")
    done_s, passes = max(
        (math.inf if link[f"eta_{way}_s"] is None else link[f"eta_{way}_s"], link[f"eta_{way}_passes"] or 0)
        for way in ("out", "in")
    )
    return [
        f"[bold]{escape(link['node'])}[/]", Text.from_ansi(contact), bit_rate(sum(known)) if known else "",
        bit_rate(link["goodput_out_bps"]), bit_rate(link["goodput_in_bps"]),
        f"{100 * link['loss_out']:.1f}, {100 * link['loss_in']:.1f} %",
        "?" if math.isinf(done_s) else duration(done_s) if done_s else "", f"{passes or ''}",
    ]  # fmt: skip


def _totals(link: View) -> list[str]:
    other = sum(link[name] for name in DROPPED) - link["bad_tags"] - link["replays"]
    return [
        escape(link["node"]),
        f"{link['bytes_sent']:,}", f"{link['bytes_received']:,}", duration(link["airtime_s"]),
        f"{link['fragments_resent']:,}", f"{link['repairs_sent']:,}", f"{link['bad_tags']:,}",
        f"{link['replays']:,}", f"{other + link['port']['broken']:,}",
    ]  # fmt: skip


def file_line(one: View, name: str) -> str:
    """Returns how far a file of that name is."""
    share = 100 * one["held_bytes"] / one["bytes"]
    return f"{name}: {one['held_bytes']:,} of {one['bytes']:,} B, {share:.0f} %"


def _objects(view: View) -> Table | str:
    table = _table("node", "way", "object", right=("bytes", "", "held", ""))
    for one in view.get("files", ()):  # a daemon of before tells none
        table.add_row(
            escape(one["node"]), "out", f"whole file {one['file'][:8]}", f"{one['bytes']:,}",
            ProgressBar(one["bytes"], one["held_bytes"], width=BAR),
            f"{100 * one['held_bytes'] / one['bytes']:.0f} %",
        )  # fmt: skip
    for link in view["links"]:
        for one in link["objects"]:
            table.add_row(
                escape(link["node"]), "in" if one["incoming"] else "out",
                f"{KINDS.get(one['kind'], one['kind'])} {one['digest'][:8]}", f"{one['bytes']:,}",
                ProgressBar(one["fragments"] or 1, one["held"], width=BAR),
                f"{100 * one['held'] / max(1, one['fragments']):.0f} %", eta(one["eta_s"], one["eta_passes"]),
            )  # fmt: skip
    return table if table.rows else "nothing is on its way"
