"""Disks of virtual computers: folders in memory, as an fsync is real time and not the virtual clock's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

MEMORY = Path("/dev/shm")  # what Linux has as a file system in memory


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the time being, in memory where the system has such."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)
