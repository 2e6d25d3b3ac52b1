"""A disk that loses what was not synced when the power goes: whole files, parts of them, and their names.

`Disk` watches fsync, which is all that POSIX promises: content is safe once its file was synced, a name once
its folder was. At a power cut every sector and name that changed since then is the old one or the new one,
each by a throw of the dice. Needs the /proc of Linux.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECTOR_BYTES = 512


class PowerCut(Exception):  # noqa: N818 - no error of the program
    """The power of `disk`'s computer goes now, before what it asked for is safe."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(str(disk.folder))
        self.disk = disk


class Disk:
    """What is safe of the files in `folder` and the folders in it; what is there already is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.syncs_left: int | None = None  # until the power goes, at the next one if 0; None: it stays
        self._content: dict[int, bytes] = {}  # by inode
        self._names: dict[Path, dict[str, int]] = {}  # by folder: the inodes of its files
        self._held: dict[int, int] = {}  # a descriptor of each inode above, so that its number stays its own
        self._take_stock()

    def sync(self, handle: int) -> None:
        """What fsync does. Raises PowerCut when it is time."""
        if self.syncs_left is not None:
            if self.syncs_left == 0:
                raise PowerCut(self)
            self.syncs_left -= 1
        status = os.fstat(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if stat.S_ISDIR(status.st_mode):
            self._names[path] = _files(path)
            self._forget()
        else:
            self._content[status.st_ino] = path.read_bytes()
            if status.st_ino not in self._held:
                self._held[status.st_ino] = os.dup(handle)

    def cut(self, source: random.Random) -> None:
        """The power is gone: `folder` is as the next start finds it. No file in it may be open."""
        self.syncs_left = None
        for folder in self._folders():
            now, before = _files(folder), self._names.get(folder, {})
            left: dict[str, bytes] = {}
            for name in sorted(now.keys() | before.keys()):
                inode = source.choice((before.get(name), now.get(name)))
                if inode is not None:
                    safe = self._content.get(inode, b"")
                    written = (folder / name).read_bytes() if now.get(name) == inode else safe
                    left[name] = _torn(safe, written, source)
            for name in now:
                (folder / name).unlink()
            for name, content in left.items():
                (folder / name).write_bytes(content)
        self._take_stock()

    def close(self) -> None:
        """Lets go of the files."""
        for handle in self._held.values():
            os.close(handle)
        self._held.clear()

    def _take_stock(self) -> None:
        """All that is there is safe."""
        self.close()
        self._content.clear()
        for folder in self._folders():
            self._names[folder] = _files(folder)
            for name, inode in self._names[folder].items():
                self._content[inode] = (folder / name).read_bytes()
                self._held[inode] = os.open(folder / name, os.O_RDONLY)

    def _folders(self) -> list[Path]:
        return [self.folder, *(path for path in sorted(self.folder.rglob("*")) if path.is_dir())]

    def _forget(self) -> None:
        """Inodes that are gone for good: in no safe folder, and under no name."""
        alive = {inode for names in self._names.values() for inode in names.values()}
        for folder in self._folders():
            alive |= set(_files(folder).values())
        for inode in self._content.keys() - alive:
            del self._content[inode]
            os.close(self._held.pop(inode))


@contextmanager
def watched(disks: Iterable[Disk]) -> Iterator[None]:
    """While this lasts, what this process syncs is told to the disk that it is on."""
    disks = tuple(disks)
    real: Callable[[int], None] = os.fsync

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        for disk in disks:
            if path.is_relative_to(disk.folder):
                disk.sync(handle)
        real(handle)

    os.fsync = fsync  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = real  # type: ignore[assignment]
        for disk in disks:
            disk.close()


def _files(folder: Path) -> dict[str, int]:
    """Inodes by name."""
    return {entry.name: entry.inode() for entry in os.scandir(folder) if entry.is_file()}


def _torn(safe: bytes, written: bytes, source: random.Random) -> bytes:
    """Of each sector, and of the length, the old or the new."""
    if safe == written:
        return safe
    length = source.choice((len(safe), len(written)))
    sectors = []
    for start in range(0, length, SECTOR_BYTES):
        sector = source.choice((safe, written))[start : start + SECTOR_BYTES]
        sectors.append(sector.ljust(SECTOR_BYTES, b"\0"))
    return b"".join(sectors)[:length]
