"""Text files that a person has written: read whole, so neither endless nor waited for."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

MOST_CHARACTERS = 16 * 2**20  # a contact plan of 100,000 contacts takes 10 MB


def text_of(path: Path) -> str:
    """The text of a UTF-8 file, without the mark that Windows' editors begin with.

    Raises UnicodeDecodeError, and OSError, also for what is no file: a pipe would be waited for, and a device
    such as /dev/zero read until the memory is full.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise OSError(errno.EFBIG, f"it is longer than {MOST_CHARACTERS >> 20} MiB", str(path))
    return text
