"""Shows a running program's state on a terminal, redrawn in place every second until Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from onboard.console.lines import is_terminal
from onboard.monitor.status_socket import NobodyThere, look

EVERY_S = 1.0
_HOME, _CLEAR, _CLEAR_LINE, _CLEAR_BELOW = "\033[H", "\033[2J", "\033[K", "\033[J"  # ECMA-48

Picture = Callable[[Mapping[str, Any], "Mapping[str, Any] | None", float], str]
"""Makes the text for a view, the view before it (if there is one), and the seconds between the two."""


def follow(folder: Path, picture: Picture, *, as_json: bool, once: bool) -> None:
    """Shows the program that runs on `folder`, as text or, `as_json`, as one object a line; `once` or every
    second.

    Raises NobodyThere if nothing answers at first; a program that ends later is waited for.
    """
    in_place = is_terminal(sys.stdout) and not as_json and not once
    before: dict[str, Any] | None = None
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
            except NobodyThere:
                if before is None:
                    raise
                unseen_s = time.monotonic() - seen_s
                shown = "" if as_json else f"{text}\n\n{_note(unseen_s)}"
            if in_place:
                shown = _HOME + shown.replace("\n", f"{_CLEAR_LINE}\n") + _CLEAR_LINE + _CLEAR_BELOW
            if shown:
                click.echo(shown)
            if once:
                return
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return


def _note(unseen_s: float) -> str:
    return click.style(f"no answer for {unseen_s:.0f} s: the program has ended, or is busy", fg="red")
