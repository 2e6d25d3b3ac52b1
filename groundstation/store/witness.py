"""How far a database has come, in a file beside it: one that comes back older than that is noticed.

A write-ahead log that was deleted, cut or damaged takes its transactions with it, and what is left is whole.
The count is written after each transaction and never waited for: after a power cut it may be behind, which
says nothing, and it is never ahead.
"""

from __future__ import annotations

import contextlib
import os
import struct
from hashlib import blake2s
from pathlib import Path

_FORM = struct.Struct(">4sQ16s")  # magic, generation, digest of both
_MAGIC = b"SDW1"


class ProgressWitness:
    """Of the database at `path`; nothing is opened before it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.witness")
        self._handle = -1

    def read(self) -> int | None:
        """The generation that the database had; None where nobody says. Raises ValueError for a damaged
        witness."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_FORM.size + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror}") from None
        if len(content) != _FORM.size or content != _packed(_FORM.unpack(content)[1]):
            raise ValueError(f"{self.path}: is damaged")
        return int(_FORM.unpack(content)[1])

    def write(self, generation: int) -> None:
        """A machine that refuses is no reason to stop: the database is written."""
        with contextlib.suppress(OSError):
            if self._handle < 0:
                self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                os.ftruncate(self._handle, _FORM.size)
            os.pwrite(self._handle, _packed(generation), 0)

    def close(self) -> None:
        """Lets go of the file."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def _packed(generation: int) -> bytes:
    head = _MAGIC + generation.to_bytes(8, "big")
    return _FORM.pack(_MAGIC, generation, blake2s(head, digest_size=16).digest())
