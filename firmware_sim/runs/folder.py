"""A run owns its folder: a mark in it says what it is for, and a lock says who is using it now.

Neither does alone. A mark outlives its run, so it cannot say whether the folder may be replaced; the kernel
drops a lock with its process, so it cannot say what the folder holds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from onboard.storage.files import LOCK, replace_durably, sole_user


class FolderError(ValueError):
    """The folder is in use, or holds anything but an earlier part of the same run; one line."""


def hold(folder: Path) -> ExitStack:
    """Makes the folder and keeps every other run out of it, until the stack is closed or the process ends.

    Raises FolderError where another run is in it, OSError.
    """
    stack = ExitStack()
    try:
        stack.enter_context(sole_user(folder))
    except BlockingIOError:
        raise FolderError(f"{folder}: another run is using it now; choose another with --out") from None
    return stack


def empty(path: Path) -> None:
    """Removes what an earlier run left beside its mark at `path`, in a folder that is held. The mark stays:
    a kill half way must not leave a folder that is nobody's. Raises OSError."""
    for entry in path.parent.iterdir():
        if entry.name in (LOCK, path.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def check_mark(path: Path) -> None:
    """That the folder is not there yet, empty, or marked by the file at `path`. Raises FolderError."""
    folder = path.parent
    if path.exists() or not folder.exists():
        return
    if not folder.is_dir() or any(entry.name != LOCK for entry in folder.iterdir()):
        raise FolderError(f"{folder}: exists and is no {path.stem}'s folder; choose another with --out")


def check(path: Path, asked: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """`path`: of the file in the folder; `asked`: as JSON has it; `free`: keys that may differ.

    Raises FolderError.
    """
    folder = path.parent
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        check_mark(path)
        return
    except ValueError:
        raise FolderError(f"{path}: damaged; choose another folder with --out") from None
    before, now = _flat(kept), _flat(json.loads(json.dumps(asked)))
    for key in sorted(before.keys() | now.keys()):
        if key not in free and before.get(key) != now.get(key):
            raise FolderError(
                f"{folder}: holds a run with {key} {before.get(key)!r}, not {now.get(key)!r}; "
                "choose another folder with --out"
            )


def claim(path: Path, asked: Mapping[str, Any]) -> None:
    """From now on the folder is this run's. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(path, json.dumps(dict(asked), indent=2).encode() + b"\n")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
