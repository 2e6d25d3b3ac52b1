"""Writes a network's folder: its graphs, its first weights, and the `model.toml` that describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from onboard.learn.networks import DESCRIPTION, NetworkFile, PartName, part_digest
from onboard.storage.files import write_durably

HEAD = "# A network for boards: docs/models.md. Its digest names it, so a change here makes another network."


def write_network(folder: Path, about: NetworkFile, parts: Mapping[PartName, bytes]) -> None:
    """Writes the parts, and then the description with their digests. Raises OSError.

    A network that was there is replaced; until all is written the folder holds none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    for name, raw in parts.items():
        write_durably(folder / name, raw)
    digests = {name: part_digest(raw) for name, raw in parts.items()}
    write_durably(folder / DESCRIPTION, described(msgspec.structs.replace(about, files=digests)))


def described(about: NetworkFile) -> bytes:
    """Returns model.toml, without what is empty."""
    fields = {
        name: value for name, value in msgspec.to_builtins(about).items() if value not in (None, [], {})
    }
    lines = [
        HEAD,
        *(f"{name} = {_text(value)}" for name, value in fields.items() if not isinstance(value, dict)),
    ]
    for name, table in fields.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{_text(key)} = {_text(value)}" for key, value in table.items())]
    return ("\n".join(lines) + "\n").encode()


def _text(value: object) -> str:
    """JSON's literals and escapes are a subset of TOML's, but for a control that TOML forbids."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
