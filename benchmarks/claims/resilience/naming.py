"""Whether a line of a log names a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATABASE = "mission.sqlite"  # with what SQLite has beside it


def names(path: Path, fields: Mapping[str, Any]) -> bool:
    """Whether one of the fields' values has the file's name in it: of half-received objects, their digest."""
    is_object = path.suffix in (".part", ".map")
    name = path.stem if is_object else path.name
    if name.startswith(DATABASE):
        name = DATABASE
    text = " ".join(str(value) for value in fields.values())
    before = r"(?<![\w.-])" if "." in name or is_object else "/"  # "peer" and "lock" are words, too
    return re.search(rf"{before}{re.escape(name)}(?!\w)", text) is not None
