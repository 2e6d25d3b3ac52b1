"""Reads TOML files that a person edits; an error is one line that names the file, the key and the value."""

from __future__ import annotations

import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hw_profiles import toml_of

T = TypeVar("T", bound=msgspec.Struct)


class ConfigError(ValueError):
    """What a person has written cannot be used. The one line of text is all that a command shows."""


def read(path: Path, kind: type[T]) -> T:
    """Reads a TOML file into a Struct. Raises ConfigError, as `checked` and for no or bad TOML."""
    try:
        raw = toml_of(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return checked(path, raw, kind)


def checked(source: object, raw: dict[str, Any], kind: type[T]) -> T:
    """Converts `raw` to a Struct; `source`, a file or a command, leads an error's line. Raises ConfigError,
    also for infinity and NaN, which pass every range with only one end."""
    try:
        made = msgspec.convert(raw, kind)
    except OverflowError:
        raise ConfigError(f"{source}: a whole number is too large") from None
    except msgspec.ValidationError as error:
        line = _explain(str(error), raw).replace("\n", "\\n")  # a quoted key may hold one
        raise ConfigError(f"{source}: {line}") from None
    if (found := _not_finite(raw)) is not None:
        raise ConfigError(f"{source}: {found[0]} = {found[1]}: not a finite number")
    return made


def _not_finite(raw: Any, where: str = "") -> tuple[str, float] | None:
    if isinstance(raw, dict):
        inner = [(f"{where}.{key}" if where else str(key), value) for key, value in raw.items()]
    elif isinstance(raw, list | tuple):
        inner = [(f"{where}[{index}]", value) for index, value in enumerate(raw)]
    else:
        return (where, raw) if isinstance(raw, float) and not math.isfinite(raw) else None
    return next((found for key, value in inner if (found := _not_finite(value, key))), None)


def _explain(message: str, raw: Any) -> str:
    """Turns msgspec's "Expected `int`, got `str` - at `$.node.id`" into "node.id = 'x': expected int, got
    str", and moves the key of a `__post_init__`'s "KEY: what is wrong" to the same place."""
    found = re.fullmatch(r"(.*) - at `\$(.*)`", message, re.DOTALL)
    text, where = found.groups() if found else (message, "")
    if not found or isinstance(_at(raw, where), dict):
        if named := re.fullmatch(r"(\w+(?:\[\d+\])?(?:\.\w+)*): (.*)", text, re.DOTALL):
            where, text = f"{where}.{named[1]}", named[2]
        elif unknown := re.fullmatch(r"Object contains unknown field `(.+)`", text, re.DOTALL):
            where, text = f"{where}.{unknown[1]}", "unknown key"
        elif missing := re.fullmatch(r"Object missing required field `(.+)`", text):
            where, text = f"{where}.{missing[1]}", "missing, and it is required"
    value = _at(raw, where)
    written = value.isoformat() if isinstance(value, datetime) else repr(value)
    shown = "" if value is None or isinstance(value, dict | list) else f" = {written}"
    if text[1:2].islower():  # a sentence's capital, and not that of COM3
        text = text[:1].lower() + text[1:]
    return f"{where.lstrip('.')}{shown}: {text.replace('`', '')}"


def _at(raw: Any, where: str) -> Any:
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", where):
        try:
            raw = raw[name] if name else raw[int(index)]
        except (KeyError, IndexError, TypeError):
            return None
    return raw
