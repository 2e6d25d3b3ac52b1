"""Disks of virtual computers: folders in memory, because an fsync takes real and not virtual time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from onboard.storage.files import sole_user

MEMORY = Path("/dev/shm")  # what Linux has as a file system in memory
PREFIX = "spacedml-disks-"


@contextmanager
def scratch() -> Iterator[Path]:
    """Yields a temporary folder, in memory where possible, and removes those of killed processes."""
    base = MEMORY if MEMORY.is_dir() else Path(gettempdir())
    for left in base.glob(f"{PREFIX}*"):
        with suppress(OSError), sole_user(left):  # unless its process runs, or it is another user's
            shutil.rmtree(left)
    new = Path(mkdtemp(dir=base))
    with sole_user(new):
        folder = new.rename(base / f"{PREFIX}{new.name}")  # nobody finds it before it is locked
        try:
            (folder / "disks").mkdir()
            yield folder / "disks"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
