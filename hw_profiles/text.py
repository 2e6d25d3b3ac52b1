"""Text and TOML files that a person has written: read whole, so neither endless nor waited for."""

from __future__ import annotations

import errno
import importlib
import stat
import sys
from pathlib import Path
from typing import Any

# Chosen by name because the one that the running Python lacks is not installed either.
_toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

MOST_CHARACTERS = 16 * 2**20  # a contact plan of 100,000 contacts takes 10 MB


def text_of(path: Path) -> str:
    """The text of a UTF-8 file, without the mark that Windows' editors begin with. Raises UnicodeDecodeError,
    and OSError, also for what is no file: a pipe would be waited for, and a device such as /dev/zero read
    until the memory is full."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise OSError(errno.EFBIG, f"it is longer than {MOST_CHARACTERS >> 20} MiB", str(path))
    return text


def toml_of(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises OSError as `text_of`, and ValueError, which says what it is not."""
    try:
        tables: dict[str, Any] = _toml.loads(text_of(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except ValueError as error:  # TOMLDecodeError, and what int() says of a number of 4,300 digits
        raise ValueError(f"not valid TOML: {error}") from None
    except RecursionError:
        raise ValueError("not valid TOML: nested too deeply") from None
    return tables
