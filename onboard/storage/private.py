"""What a node and its ground keep is their user's alone: keys, state, models, what is half received.

A file made by these programs is readable by nobody else, whatever the umask of the shell that started them.
What lies there already keeps its mode, as it may be meant; a key or a state that others may touch is told.
Told and not refused: a card that knows no modes (FAT) shows everything as open, and a board that will not
start for that is lost.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Literal

from onboard.console.log import say

log = logging.getLogger(__name__)

_OTHERS = {"key": 0o077, "state": 0o007}  # a state may be shown to a group on purpose, a key to nobody


def keep_private() -> None:
    """From now on this process makes files and folders that only its user may read or enter."""
    os.umask(os.umask(0o077) | 0o077)


def exposure(path: Path, what: Literal["key", "state"]) -> str | None:
    """How others of this computer may get at `path`, and what to do, or None if they may not (or it is not
    there: who opens it says so)."""
    try:
        mode, folder = path.stat().st_mode, path.absolute().parent.stat().st_mode
    except OSError:
        return None
    if mode & _OTHERS[what]:
        may = "replace" if mode & 0o022 else "read"
        wanted = 0o700 if stat.S_ISDIR(mode) else 0o600
        return f"its mode is {stat.S_IMODE(mode):04o}: others may {may} it; chmod {wanted:o} {path}"
    if what == "key" and folder & 0o002 and not folder & stat.S_ISVTX:
        return f"others may put another in its place; chmod o-w {path.absolute().parent}"
    return None


def tell_exposure(path: Path, what: Literal["key", "state"]) -> None:
    """Logs `exposed` if others of this computer may get at `path`."""
    if why := exposure(path, what):
        say(log, "exposed", level=logging.WARNING, what=what, path=str(path), why=why)
