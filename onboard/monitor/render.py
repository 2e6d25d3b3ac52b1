"""Shows a running program's state at a terminal: a board's links as text, redrawn every second.

The ground's tables use the same words, so that both ends describe the same thing in the same way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from onboard.console.errors import fail
from onboard.console.lines import is_terminal
from onboard.mission.objects import KINDS
from onboard.monitor.status_socket import NobodyThere, look

DROPPED = (
    "bad_tags", "plain_dropped", "encrypted_dropped", "replays", "malformed", "misaddressed", "orphans",
    "duplicates", "corrupt", "refused", "expired",
)  # fmt: skip
BAR = 20  # characters
EVERY_S = 1.0  # a screen is drawn
_HOME, _CLEAR, _CLEAR_LINE, _CLEAR_BELOW = "\033[H", "\033[2J", "\033[K", "\033[J"  # ECMA-48

View = Mapping[str, Any]
Picture = Callable[[View, "View | None", float], str]
"""Makes the text for a view, the view before it (if there is one), and the seconds between the two."""


def follow(folder: Path, picture: Picture, *, as_json: bool, once: bool) -> None:
    """Shows the program that runs on `folder`, as text or as a JSON object a line, once or every second until
    Ctrl-C. Raises NobodyThere if nothing answers at first; a program that ends later is waited for."""
    in_place = is_terminal(sys.stdout) and not as_json and not once
    before: View | None = None
    text, seen_s = "", 0.0
    if in_place:
        click.echo(_CLEAR, nl=False)
    try:
        while True:
            try:
                view = look(folder)
                now_s = time.monotonic()
                text = "" if as_json else picture(view, before, now_s - seen_s)
                shown = msgspec.json.encode(view).decode() if as_json else text
                before, seen_s = view, now_s
            except NobodyThere as error:
                if before is None:
                    fail(str(error), code=1)
                unseen_s = time.monotonic() - seen_s
                note = f"no answer for {unseen_s:.0f} s: the program has ended, or is busy"
                shown = "" if as_json else f"{text}\n\n{click.style(note, fg='red')}"
            if in_place:
                shown = _HOME + shown.replace("\n", f"{_CLEAR_LINE}\n") + _CLEAR_LINE + _CLEAR_BELOW
            if shown:
                click.echo(shown)
            if once:
                return
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return


def board_picture(view: View, before: View | None, gap_s: float) -> str:
    """Renders the view of `onboard link`, 76 columns wide; `before` is that of `gap_s` seconds ago."""
    link = view["link"]
    title = f"{click.style(view['node'], bold=True)}  {view['board']}, {view['profile']}: {doing(view)}"
    said = view.get("answers", {})
    lines = [title, *([f"images answered: {answers(said, said['names'])}"] if "images" in said else []), ""]
    lines += [f"port    {port_state(link['port'])}", f"ground  {peer_state(link)}", ""]
    lines += _traffic(link, before["link"] if before else None, gap_s)
    lines += ["", dropped(link), ""]
    lines += list(objects(link))
    return "\n".join(lines)


def gossip_picture(view: View, before: View | None, gap_s: float) -> str:
    """Renders the same for a node that gossips, with a few lines for each neighbour."""
    title = f"{click.style(view['node'], bold=True)}  {view['board']}: {view['phase']}"
    loss = "" if view["loss"] is None else f", loss {view['loss']:.3f}"
    lines = [f"{title}, {view['epochs']:.2f} epochs{loss}, {view['exchanges']:,} exchanges", ""]
    earlier = {link["peer"]: link for link in before["links"]} if before else {}
    for link in view["links"]:
        rates = [
            rate_bps(link, earlier.get(link["peer"]), gap_s, counter)
            for counter in ("bytes_sent", "bytes_received")
        ]
        out, back = ("" if rate is None else f", {bit_rate(rate)}" for rate in rates)
        lines += [
            f"{click.style('node ' + str(link['peer']), bold=True)}  {link['profile']}  {peer_state(link)}",
            f"port    {port_state(link['port'])}",
            f"out {link['bytes_sent']:,} B{out}; in {link['bytes_received']:,} B{back}",
            dropped(link),
            *objects(link),
            "",
        ]
    return "\n".join(lines).rstrip()


def doing(view: View) -> str:
    text = str(view["phase"])
    if view["round"]:
        text += f", round {view['round']}"
    if view.get("progress") is not None:
        text += f", {100 * view['progress']:.0f} % trained"
    return text + (f", loss {view['loss']:.3f}" if view.get("loss") is not None else "")


def answers(said: View, classes: Sequence[str]) -> str:
    """What a board's model has said of images, in one line."""
    shares = [
        f"{classes[label] if label < len(classes) else label} {100 * share:.0f} %"
        for label, share in said["classes"]
    ]
    told = [f"{said['images']:,}", *shares, f"{said['doubtful']:,} to label"]
    told += [f"{name} {said[name]:.2f}" for name in ("confidence", "drift") if said[name] is not None]
    return ", ".join(told)


def port_state(port: View) -> str:
    if port["open"]:
        return f"{port['url']}  {click.style('open', fg='green')}"
    return f"{port['url']}  {click.style(port['why'] or 'closed', fg='red')}"


def peer_state(link: View) -> str:
    if not link["in_contact"]:
        return click.style("out of contact", fg="yellow")
    if link["heard_s_ago"] is None:
        return click.style("not heard yet", fg="yellow")
    heard = f"heard {duration(link['heard_s_ago'])} ago"
    if link["silent"]:
        return click.style(f"silent, {heard}", fg="yellow")
    return click.style(heard, fg="green")


def dropped(link: View) -> str:
    """Lists the counters of dropped frames that are not 0."""
    counts = [(name.removesuffix("_dropped").replace("_", " "), link[name]) for name in DROPPED] + [
        ("noise", link["port"]["broken"])
    ]
    told = [f"{name} {count:,}" for name, count in counts if count]
    return f"dropped   {', '.join(told) if told else 'nothing'}"


def objects(link: View) -> Iterator[str]:
    """Yields a line for every object in transfer, with the time until it will be complete."""
    for one in link["objects"]:
        share = one["held"] / max(1, one["fragments"])
        done = round(share * BAR)
        bar = click.style("━" * done, fg="cyan") + click.style("━" * (BAR - done), fg="bright_black")
        left = eta(one["eta_s"], one["eta_passes"])
        yield (
            f"{'in' if one['incoming'] else 'out':<4}{KINDS.get(one['kind'], one['kind']):<7} "
            f"{one['digest'][:8]}  {one['bytes']:>11,} B  {bar} {100 * share:3.0f} %  {left}"
        )
    if not link["objects"]:
        yield "nothing is on its way"
    for way in ("out", "in"):
        if link[f"eta_{way}_s"] != 0:
            yield f"all {way}: {eta(link[f'eta_{way}_s'], link[f'eta_{way}_passes'])}"


def eta(left_s: float | None, passes: int | None) -> str:
    """Says how long a transfer will take and, if a contact plan says so, over how many passes."""
    if left_s is None:
        return "no end in sight"
    over = "" if passes is None else f", {passes} pass{'es' if passes != 1 else ''}"
    return f"{duration(left_s)} to go{over}"


def duration(value_s: float) -> str:
    """Formats a duration with two digits, enough for a person: 0.4 s, 45 s, 12 min, 3.5 h, 2.1 d."""
    if value_s < 10:
        return f"{value_s:.1f} s"
    for unit, size_s, up_to in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if value_s < up_to * size_s:
            digits = 1 if unit == "h" and value_s < 10 * size_s else 0
            return f"{value_s / size_s:.{digits}f} {unit}"
    return f"{value_s / 86400:.1f} d"


def bit_rate(rate_bps: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if rate_bps >= 0.9995 * size:  # what three digits round up to the next unit
            return f"{rate_bps / size:.3g} {unit}"
    return f"{rate_bps:.0f} bit/s"


def rate_bps(link: View, before: View | None, gap_s: float, counter: str) -> float | None:
    """Returns a counter's bits per second between two views; None if the program restarted between."""
    if before is None or before["epoch"] != link["epoch"] or gap_s <= 0:
        return None
    return float(8 * (link[counter] - before[counter]) / gap_s)


def _traffic(link: View, before: View | None, gap_s: float) -> Iterator[str]:
    now = [rate_bps(link, before, gap_s, counter) for counter in ("bytes_sent", "bytes_received")]
    rows = (
        ("", "out", "in"),
        ("frames", f"{link['frames_sent']:,}", f"{link['frames_received']:,}"),
        ("bytes", f"{link['bytes_sent']:,}", f"{link['bytes_received']:,}"),
        ("fragments", f"{link['fragments_sent']:,}", f"{link['fragments_received']:,}"),
        ("  of them again", f"{link['fragments_resent']:,}", f"{link['duplicates']:,}"),
        ("repairs", f"{link['repairs_sent']:,}", ""),
        ("lost", f"{100 * link['loss_out']:.1f} %", f"{100 * link['loss_in']:.1f} %"),
        ("goodput", bit_rate(link["goodput_out_bps"]), bit_rate(link["goodput_in_bps"])),
        ("on the wire now", *("" if rate is None else bit_rate(rate) for rate in now)),
        ("airtime", duration(link["airtime_s"]), ""),
        ("epoch", f"{link['epoch']}", f"{link['peer_epoch'] or ''}"),
    )
    for name, out, back in rows:
        line = f"{name:<16}{out:>14}{back:>14}".rstrip()
        yield click.style(line, bold=True) if not name else line
