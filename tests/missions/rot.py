"""What a disk, a radiation belt or a hand that slips makes of a file: each by its name."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path, random.Random], None]


def _bit(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(max(1, path.stat().st_size)))


def _zeros(path: Path, chance: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _empty(path: Path, chance: random.Random) -> None:
    os.truncate(path, 0)


def _gone(path: Path, chance: random.Random) -> None:
    path.unlink()


def _other(path: Path, chance: random.Random) -> None:
    """Another file's content."""
    others = sorted(file for file in path.parent.iterdir() if file.is_file() and file != path)
    path.write_bytes(chance.choice(others).read_bytes() if others else b"another file's")


def _noise(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(chance.randrange(1, 5000)))


def _folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "in it").write_bytes(b"somebody's")


def _pipe(path: Path, chance: random.Random) -> None:
    """Who opens it to read waits for a writer, for ever."""
    path.unlink()
    os.mkfifo(path)


def _link(path: Path, chance: random.Random) -> None:
    """To somebody else's file, which nobody may write to."""
    path.unlink()
    path.symlink_to(bystander(path))


def _dangling(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def _circle(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGES: dict[str, Damage] = {
    "bit": _bit,
    "cut": _cut,
    "zeros": _zeros,
    "empty": _empty,
    "gone": _gone,
    "other": _other,
    "noise": _noise,
    "folder": _folder,
    "pipe": _pipe,
    "link": _link,
    "dangling": _dangling,
    "circle": _circle,
}

PRECIOUS = b"somebody else's file\n"


def bystander(path: Path) -> Path:
    """A file of somebody else's, to which links lead."""
    other = path.parent / "somebody-s"
    other.write_bytes(PRECIOUS)
    return other


def litter(state: Path, chance: random.Random) -> None:
    """What lies in a folder that nobody wrote, or that a cut left: none of it is of the program."""
    for folder in (state, state / "spool"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (b"\xff\xfe.map", b"\xff.part", b"\xfe.new", b"lost+found", b".X", b"a\nb", b"1-x.sent"):
            (folder / os.fsdecode(name)).write_bytes(chance.randbytes(40))
        for number in range(300):
            (folder / f"core.{number}").touch()
        for name in ("y.new", "model.bin.new", f"{'0' * 32}.map", f"{'1' * 32}.part", "z.map.new"):
            (folder / name).mkdir(exist_ok=True)
        for name in ("update.bin.new", f"{'2' * 32}.map"):
            os.mkfifo(folder / name)
        for name in ("finished.new", "training.npz.new", f"{'3' * 32}.part"):
            (folder / name).symlink_to(bystander(folder / name))


def copy(state: Path) -> Path:
    """An older version of the whole folder, beside it."""
    older = state.with_name("older")
    shutil.rmtree(older, ignore_errors=True)
    shutil.copytree(state, older, symlinks=True)
    return older
