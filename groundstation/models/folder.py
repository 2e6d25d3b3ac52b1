"""Writes a network's folder: its graphs, its first weights, and the `model.toml` that describes them."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from onboard.learn.networks import DESCRIPTION, INFER, PARAMETERS, TRAIN, NetworkFile, PartName, part_digest
from onboard.storage.files import write_durably

FILES = (DESCRIPTION, TRAIN, INFER, PARAMETERS)
HEAD = "# A network for boards: docs/models.md. Its digest names it, so a change here makes another network."


def write_network(folder: Path, about: NetworkFile, parts: Mapping[PartName, bytes]) -> None:
    """Writes a network beside `folder`, and then puts it in its place. Raises OSError, also where something
    other than a network is there, which then stays as it was.

    A kill between the two renames leaves the network that was there under its name with `.old`."""
    folder = folder.resolve()
    check_place(folder)
    digests = {name: part_digest(raw) for name, raw in parts.items()}
    files: list[tuple[str, bytes]] = [
        *parts.items(),
        (DESCRIPTION, described(msgspec.structs.replace(about, files=digests))),
    ]
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        for name, raw in files:
            write_durably(new / name, raw)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Raises OSError where something other than a network is in the folder's place."""
    if folder.exists() and (odd := [each for each in folder.iterdir() if each.name not in FILES]):
        raise FileExistsError(errno.EEXIST, f"is no network's folder, as it holds {odd[0].name}", str(folder))


def described(about: NetworkFile) -> bytes:
    """Returns model.toml, without what is empty."""
    fields = {
        name: value for name, value in msgspec.to_builtins(about).items() if value not in (None, (), {})
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
