"""What a disk, a radiation belt and a careless hand do to one file: eight kinds of damage, by a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = ("bit", "cut", "zeros", "gone", "other", "older", "folder", "link")
WEIGHTS = (6, 6, 6, 6, 6, 6, 1, 1)  # the last two are what a hand does, and not a disk
_PAGES = (512, 4096)
CANARY = b"what a link leads to, and nobody may write to\n" * 8


@dataclass(frozen=True)
class Harm:
    """What was done to one file. before, after: its content, None where there is none (any more)."""

    kind: str
    before: bytes
    after: bytes | None

    @property
    def is_any(self) -> bool:
        """Whether the file is not what it was."""
        return self.after != self.before


def damaged(
    path: Path, others: Sequence[bytes], older: bytes | None, canary: Path, rnd: random.Random,
    kind: str | None = None,
) -> Harm:  # fmt: skip
    """Does one thing to the file at `path`; others: what other files hold; older: what this one held before,
    if there was such; canary: a file to which a link may lead, made here; kind: of damage, if it can be."""
    before, wanted = path.read_bytes(), kind
    while True:
        (drawn,) = rnd.choices(KINDS, WEIGHTS)
        kind, wanted = wanted or drawn, None
        if (after := _content(kind, before, others, older, rnd)) is not None:
            path.write_bytes(after)
            return Harm(kind, before, after)
        if kind in ("gone", "folder", "link"):
            break
    path.unlink()
    if kind == "folder":
        path.mkdir()
        (path / "inside").write_bytes(b"x")
    elif kind == "link":
        canary.write_bytes(CANARY)
        path.symlink_to(canary)
    return Harm(kind, before, CANARY if kind == "link" else None)


def _content(
    kind: str, before: bytes, others: Sequence[bytes], older: bytes | None, rnd: random.Random
) -> bytes | None:
    """What the file holds after that; None where it is not this kind's to say, or this file's to suffer."""
    if kind == "older":
        return None if older == before else older
    if kind == "other":
        left = [content for content in others if content != before]
        return rnd.choice(left) if left else None
    if not before:
        return None
    if kind == "bit":
        at = rnd.randrange(8 * len(before))
        flipped = bytearray(before)
        flipped[at // 8] ^= 1 << at % 8
        return bytes(flipped)
    if kind == "cut":
        return before[: rnd.randrange(len(before))]
    if kind == "zeros":
        page = rnd.choice((*_PAGES, len(before)))
        at = rnd.randrange(0, len(before), page)
        return before[:at] + bytes(min(page, len(before) - at)) + before[at + page :]
    return None
