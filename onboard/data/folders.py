"""Finds the image files of a folder, one subfolder a class, and keeps account of what it passes over.

What systems and tools leave behind (`.git`, `__MACOSX`, `@eaDir`, `._x.png`, `Thumbs.db`) is no class and no
image. Whatever else lies there and is not taken is counted under its reason, so that nothing goes missing in
silence.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onboard.data import labels
from onboard.data.decode import IMAGE_SUFFIXES
from onboard.data.images import DataError, MissingDataError

NO_IMAGES = "no images: needs one subfolder a class, with files such as CLASS/1.png in it"
JUNK = frozenset(
    {
        "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "lost+found",
        "$recycle.bin", "recycler", "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db",
        "ehthumbs_vista.db", "desktop.ini", "icon\r",
    }
)  # fmt: skip
PARTS = ("train", "test")
HIDDEN = "hidden or a system's"


@dataclass(frozen=True)
class Found:
    """The files of one part with their labels, the classes of all parts by name, and how many entries were
    passed over, by reason."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    passed: Mapping[str, int]
    parted: bool  # whether there are the folders train and test


def is_junk(name: str) -> bool:
    """Whether a system or a tool made it for itself."""
    return name.startswith(".") or name.casefold() in JUNK


def find(path: Path, part: str) -> Found:
    """The images of `part`, train or test, or all where the folder has no such parts. Raises DataError."""
    passed: Counter[str] = Counter()
    tops = _parts(path)
    inside = path / part if tops else path
    if tops and inside not in tops:
        raise DataError(f"{path}: no {part} part: there is {tops[0].name}, and no folder {part} beside it")
    held = {top: _classes(top, passed if top == inside else Counter()) for top in tops or [path]}
    if tops:
        for entry in _entries(path):
            if path / entry.name not in tops:
                passed[HIDDEN if is_junk(entry.name) else "beside train and test"] += 1
    files = {
        top: {name: _images(folder, passed if top == inside else Counter()) for name, folder in found.items()}
        for top, found in held.items()
    }
    used = {name for found in files.values() for name, images in found.items() if images}
    classes = labels.in_order(used)
    for name in sorted(files[inside].keys() - used):
        if not any(reason.endswith(f"inside {name!r}") for reason in passed):  # told already
            passed[f"folder {name!r} without images"] += 1
    if not any(files[inside].values()):
        raise DataError(f"{inside}: {NO_IMAGES}{_deeper(held[inside])}{told(passed)}")
    chosen = [(file, label) for label, name in enumerate(classes) for file in files[inside].get(name, ())]
    return Found(
        tuple(file for file, _ in chosen),
        tuple(label for _, label in chosen),
        tuple(classes),
        passed,
        bool(tops),
    )


def _deeper(classes: Mapping[str, Path]) -> str:
    """Where the folders of classes may be, if all of them are one folder further down."""
    if len(classes) != 1:
        return ""
    (only,) = classes.values()
    return f"; did you mean folder:{only}?" if any(_classes(only, Counter())) else ""


def told(passed: Mapping[str, int]) -> str:
    """What was passed over, for the end of a line; nothing if nothing was."""
    if not passed:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(passed.items()))
    return f"; {sum(passed.values())} passed over ({reasons})"


def _parts(path: Path) -> list[Path]:
    """The folders train and test: both, or one that holds folders itself; none where these are classes."""
    here = [path / name for name in PARTS if (path / name).is_dir()]
    if len(here) == 1 and not any(each.is_dir() and not is_junk(each.name) for each in here[0].iterdir()):
        return []
    return here


def _classes(top: Path, passed: Counter[str]) -> dict[str, Path]:
    """The class folders by name, in Unicode's NFC."""
    found: dict[str, Path] = {}
    for entry in _entries(top):
        if is_junk(entry.name):
            passed[HIDDEN] += 1
        elif not _is_folder(entry):
            passed["beside the classes' folders" if _is_image(entry.name) else _no_image(entry.name)] += 1
        else:
            (name,) = labels.checked(top, [entry.name])
            if name in found:
                raise DataError(f"{top}: two folders are called {name!r}, in two of Unicode's forms")
            found[name] = Path(entry.path)
    return found


def _images(folder: Path, passed: Counter[str]) -> list[Path]:
    """Image files of one class by name; not what lies in folders below, of which nobody knows the class."""
    found = []
    for entry in _entries(folder):
        if is_junk(entry.name):
            passed[HIDDEN] += 1
        elif _is_folder(entry):
            inside = sum(1 for _, _, names in os.walk(entry.path) for name in names if not is_junk(name))
            passed[f"in folders inside {folder.name!r}"] += inside
        elif not _is_image(entry.name):
            passed[_no_image(entry.name)] += 1
        elif reason := _unusable(entry):
            passed[reason] += 1
        else:
            found.append(Path(entry.path))
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that lead in a circle
        return False


def _unusable(entry: os.DirEntry[str]) -> str:
    """Why a file that is called an image is none; empty if it may be one."""
    try:
        state = entry.stat()
    except OSError:  # it is gone, or links lead in a circle
        return "links that lead nowhere"
    if not stat.S_ISREG(state.st_mode):  # nobody may ever write into a pipe
        return "no regular files"
    return "" if state.st_size else "empty files"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        raise MissingDataError(f"{folder}: no such folder; {NO_IMAGES}") from None
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _no_image(name: str) -> str:
    return f"no image by its name ({Path(name).suffix.lower() or 'no suffix'})"
