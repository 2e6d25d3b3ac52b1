"""Keeps a node's and the ground's files private to their user: keys, state, models, half-received objects.

Nobody else can read a file that these programs create, whatever the umask of the shell that started them.
Existing files keep their mode, which may be intended; a key or a state that other users can access is logged.
It is not refused: a file system without modes (FAT) shows everything as open, and a board that did not start
for that reason would be lost.
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
    """Makes this process create files and folders that only its user can read or enter."""
    os.umask(os.umask(0o077) | 0o077)


def exposure(path: Path, what: Literal["key", "state"]) -> str | None:
    """How other users of this computer can access `path`, and what to do about it; None if they cannot, or if
    it does not exist, which whoever opens it will report."""
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
    """Logs `exposed` if other users of this computer can access `path`."""
    if why := exposure(path, what):
        say(log, "exposed", level=logging.WARNING, what=what, path=str(path), why=why)
