"""Disks that are nearly full: real file systems of a few kilobytes."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(at: Path, size: str) -> Iterator[Path]:
    """A file system of that size, mounted at `at`; skips the test where only others may mount one."""
    at.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def remount(disk: Path, option: str) -> None:
    """Mounts it once more, with another `size=` or `ro`."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def fill(ballast: Path) -> None:
    """Writes to that file until its disk takes no more."""
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
