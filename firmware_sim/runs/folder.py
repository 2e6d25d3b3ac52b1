"""The folder of a run: a mark says what it holds, and a lock says who is using it now.

The mark outlives the run, so it cannot say whether the folder is in use; the kernel drops the lock with its
process, so it cannot say what the folder holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from onboard.storage.files import LOCK, replace_durably, sole_user


class RunError(ValueError):
    """A run that cannot start or continue; the message is one line."""


def check_mark(mark: Path, asked: Mapping[str, Any] | None = None, free: Collection[str] = ()) -> None:
    """Raises RunError unless the folder of `mark` is missing, empty, or has that mark. With `asked`, the mark
    must be of a run that was asked for the same, save for the keys in `free`."""
    folder = mark.parent
    if not mark.exists():
        if folder.exists() and (not folder.is_dir() or any(entry.name != LOCK for entry in folder.iterdir())):
            raise RunError(f"{folder}: exists and is no {mark.stem}'s folder; choose another with --out")
    elif asked is not None:
        try:
            before = _flat(json.loads(mark.read_text(encoding="utf-8")))
        except ValueError:
            raise RunError(f"{mark}: damaged; choose another folder with --out") from None
        now = _flat(json.loads(json.dumps(asked)))
        for key in sorted(before.keys() | now.keys()):
            if key not in free and before.get(key) != now.get(key):
                raise RunError(
                    f"{folder}: holds a run with {key} {before.get(key)!r}, not {now.get(key)!r}; "
                    "choose another folder with --out"
                )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def hold(mark: Path, asked: Mapping[str, Any] | None = None, free: Collection[str] = ()) -> ExitStack:
    """Makes the folder of `mark` and keeps other runs out until the stack is closed or the process ends.
    Raises RunError as `check_mark` and where another run is in it, OSError."""
    check_mark(mark, asked, free)
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_user(mark.parent))
        except BlockingIOError:
            raise RunError(f"{mark.parent}: another run is using it now; choose another with --out") from None
        check_mark(mark, asked, free)  # another run may just have started or ended in it
        return stack.pop_all()


def claim(mark: Path, asked: Mapping[str, Any]) -> None:
    """Marks the folder as this run's, with what it was asked for. Raises OSError."""
    replace_durably(mark, json.dumps(dict(asked), indent=2).encode() + b"\n")


def empty(mark: Path) -> None:
    """Removes what an earlier run left in a held folder. The mark stays: a kill half-way must not leave a
    folder that nobody recognizes. Raises OSError."""
    for entry in mark.parent.iterdir():
        if entry.name not in (LOCK, mark.name):
            remove(entry)


def remove(path: Path) -> None:
    """Removes a file or a folder, or nothing. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
