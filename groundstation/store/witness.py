"""A file beside the database counts its transactions: a database that comes back older is noticed.

If the write-ahead log is deleted, truncated or damaged, its transactions are lost, and what is left looks
intact. The count is written after each transaction without waiting for the disk. After a power cut it may be
too low, which proves nothing; it is never too high.
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
    """The count of the database at `path`; its file is opened with the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.witness")
        self._handle = -1

    def read(self) -> int | None:
        """The generation that the database had reached, or None without a witness. Raises ValueError for a
        damaged one."""
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
        """Writes the count. A failure is ignored, since the database itself is written."""
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
