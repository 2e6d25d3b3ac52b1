"""The display of `groundstation links`: a row for every board's link, and every object in transfer."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console, Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onboard.console.lines import is_terminal
from onboard.mission.objects import KINDS
from onboard.monitor.render import BAR, DROPPED, bit_rate, duration, eta, peer_state, rate_bps

View = Mapping[str, Any]


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
    return Group(top, Text(), now, Text(), totals, Text(), _objects(view["links"]))


def _table(*left: str, right: Sequence[str] = ()) -> Table:
    table = Table(*left, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _now(link: View, before: View | None, gap_s: float) -> list[Text | str]:
    rates = [rate_bps(link, before, gap_s, counter) for counter in ("bytes_sent", "bytes_received")]
    known = [rate for rate in rates if rate is not None]
    done_s, passes = max(
        (math.inf if link[f"eta_{way}_s"] is None else link[f"eta_{way}_s"], link[f"eta_{way}_passes"] or 0)
        for way in ("out", "in")
    )
    return [
        f"[bold]{escape(link['node'])}[/]", _contact(link), bit_rate(sum(known)) if known else "",
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


def _contact(link: View) -> Text:
    is_open, why = link["port"]["open"], link["port"]["why"] or "port closed"
    return Text.from_ansi(peer_state(link) if is_open else click.style(why, fg="red"))


def _objects(links: list[View]) -> Table | str:
    table = _table("node", "way", "object", right=("bytes", "", "held", ""))
    for link in links:
        for one in link["objects"]:
            table.add_row(
                escape(link["node"]), "in" if one["incoming"] else "out",
                f"{KINDS.get(one['kind'], one['kind'])} {one['digest'][:8]}", f"{one['bytes']:,}",
                ProgressBar(one["fragments"] or 1, one["held"], width=BAR),
                f"{100 * one['held'] / max(1, one['fragments']):.0f} %", eta(one["eta_s"], one["eta_passes"]),
            )  # fmt: skip
    return table if table.rows else "nothing is on its way"
