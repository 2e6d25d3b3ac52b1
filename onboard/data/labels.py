"""What a label means: the names of the classes, and how a set's own are brought to a mission's.

A label is a place in a list of names, and every node has its own list: the folders that it happens to hold.
So names are compared, not places, in Unicode's NFC (macOS keeps accents apart in folder names); case counts.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2s
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onboard.data.images import CHUNK, DataError, Images, Labels, Masks
from onboard.learn.objectives import FORMS, Objective

DIGEST_BYTES = 8
MAX_CLASSES = 4096  # an id in place of a label would otherwise take memory for as many names
JUDGED_FROM = 10  # images a class: of a fair sample of so many the chance to miss a class is below 1e-4
SHOWN = 40  # names in one line of complaint

Names = tuple[str, ...]


def checked(where: object, names: Iterable[Any]) -> Names:
    """Returns names of classes in NFC. Raises DataError, led by `where`, for names that cannot be."""
    texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]
    told = tuple(unicodedata.normalize("NFC", text) for text in texts)
    if not 1 <= len(told) <= MAX_CLASSES:
        raise DataError(f"{where}: {len(told)} classes, must be 1 to {MAX_CLASSES}")
    for index, name in enumerate(told):
        if not name or not name.isprintable():
            raise DataError(f"{where}: class {index} is called {name!r}, needs a name that can be printed")
        if name in told[:index]:
            raise DataError(f"{where}: two classes are called {name!r}")
    return told


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts whole numbers by value, then the others by their letters: 2 comes before 10."""
    return sorted(names, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name))


def numbered(count: int) -> Names:
    return tuple(map(str, range(count)))


def digest(names: Sequence[str]) -> bytes:
    """Returns DIGEST_BYTES of BLAKE2s over the names in order, by which two nodes compare their labels."""
    return blake2s("\0".join(names).encode("utf-8"), digest_size=DIGEST_BYTES).digest()


def whole(where: object, name: str, y: NDArray[Any], count: int | None) -> Labels:
    """Converts labels y (N) to int64 in 0..count-1, or below MAX_CLASSES. Raises DataError."""
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{where}: {name} is {y.dtype} {y.shape}, needs whole numbers (N,)")
    end = MAX_CLASSES if count is None else count
    wrong = np.flatnonzero((y < 0) | (y >= end))
    if wrong.size:
        low, high = int(y.min()), int(y.max())
        needed = f"0..{end - 1}" if count is not None else f"0..{end - 1} at most"
        hint = "; labels count from 0, not from 1" if (low, high) == (1, end) else ""
        found = f"{name}[{wrong[0]}] is {y[wrong[0]]}"
        raise DataError(f"{where}: labels run {low}..{high}, need {needed}: {found}{hint}")
    return y.astype(np.int64)


def brought(where: object, name: str, y: NDArray[Any], own: Names | None, mission: Names) -> Labels:
    """Converts labels y (N) to places in the mission's list, int64. Raises DataError with both lists for a
    class that has images and is not the mission's. A set without names is refused, too, if its first or last
    class has no images and it is too large for that to be chance: it has often counted on past a class that
    it lacks, or from 1."""
    y = whole(where, name, y, len(mission if own is None else own))
    if own is not None:
        at = {each: place for place, each in enumerate(mission)}
        for label in np.unique(y).tolist():
            if own[label] not in at:
                raise DataError(
                    f"{where}: class {own[label]!r} is not the mission's{_near(own[label], mission)}; "
                    f"here are {listed(own)}; the mission has {listed(mission)}"
                )
        return np.array([at.get(each, -1) for each in own], np.int64)[y]
    if len(y) >= JUDGED_FROM * len(mission):
        low, high = int(y.min()), int(y.max())
        if (low, high) != (0, len(mission) - 1):
            raise DataError(
                f"{where}: labels run {low}..{high} and have no names, and the mission has {len(mission)} "
                f"classes ({listed(mission)}): whether {name} counts as these do cannot be seen; name what "
                "labels mean by an array `classes`"
            )
    return y


def brought_masks(
    where: object, masks: NDArray[Any], own: Names | None, mission: Names, ignore: int | None
) -> Masks:
    """Converts masks of whole numbers (N, H, W) to places in the mission's list, uint8; `ignore` stays.
    Raises DataError for a label that is neither, with the classes if they have names."""
    told = np.empty(masks.shape, np.uint8)
    for start in range(0, len(masks), CHUNK):
        part = masks[start : start + CHUNK]
        told[start : start + CHUNK] = _places(where, part, own, mission, ignore)[part.astype(np.uint8)]
    return told


def _places(
    where: object, masks: NDArray[Any], own: Names | None, mission: Names, ignore: int | None
) -> Masks:
    """Returns the place in the mission's list of each label that there is in masks, uint8 (256). Raises
    DataError."""
    values = np.unique(masks)
    counted = values if ignore is None else values[values != ignore]
    names = mission if own is None else own
    if (strange := counted[(counted < 0) | (counted >= len(names))]).size:
        or_ignored = "" if ignore is None else f", or {ignore} for what does not count"
        known = "" if names == numbered(len(names)) else f" ({listed(names)})"
        raise DataError(
            f"{where}: a mask has the label {strange[0]}, needs 0..{len(names) - 1}{known}{or_ignored}"
        )
    told = counted.astype(np.int64)
    places = np.arange(256, dtype=np.uint8)
    places[told] = brought(where, "mask", told, own, mission)
    return places


def for_network(images: Images, network: str, objective: Objective) -> Images:
    """Returns images with the labels that a network needs. Raises DataError for those that are not such."""
    kind, outputs = objective.kind, objective.outputs
    if kind == "reconstruct":
        return images.without_labels()
    if images.kind != kind:
        why = f"{FORMS[images.kind]}, and {network}, which is to {kind}, needs {FORMS[kind]}"
        raise DataError(f"data: holds {why}")
    if kind == "regress":
        if outputs not in (None, images.y.shape[1]):
            raise DataError(f"data: y has {images.y.shape[1]} numbers, {network} answers with {outputs}")
    elif kind == "classify":
        whole("data", "y", images.y, outputs)
    elif outputs is not None and len(images.classes) > outputs:
        for start in range(0, len(images), CHUNK):
            _places("data", images.y[start : start + CHUNK], None, numbered(outputs), objective.ignore)
    return images


def renamed(images: Images, names: Names, ignore: int | None) -> Images:
    """Returns images whose labels are places in the mission's list of `names`. Raises DataError."""
    own = images.classes if images.named else None
    if images.kind == "segment":
        y: NDArray[Any] = brought_masks("data", images.y, own, names, ignore)
    else:
        y = brought("data", "y", images.y, own, names)
    return replace(images, y=y, classes=names, named=True, ignore=ignore)


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _near(name: str, mission: Names) -> str:
    alike = [other for other in mission if _loosely(other) == _loosely(name)]
    if not alike and not _is_number(name):
        alike = difflib.get_close_matches(name, mission, n=1, cutoff=0.7)
    return f" (did you mean {alike[0]!r}?)" if alike else ""


def _loosely(name: str) -> str:
    if _is_number(name):
        return str(int(name))
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()
