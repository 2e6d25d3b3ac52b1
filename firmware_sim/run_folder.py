"""A run that can go on says in its folder what it was asked for, and no other run touches that folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onboard.journal import replace_durably


class FolderError(ValueError):
    """The folder holds anything but an earlier part of the same run; one line."""


def check(path: Path, asked: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """`path`: of the file in the folder; `asked`: as JSON has it; `free`: keys that may differ.

    Raises FolderError.
    """
    folder = path.parent
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FolderError(
                f"{folder}: exists and is no {path.stem}'s folder; choose another with --out"
            ) from None
        return
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
