"""A key file is 64 hexadecimal digits; anything else is refused with one line that names the file.

Here and not in `wire`, which touches no file. A key belongs to one node and lies at both ends of its link.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from onboard.wire.seal import KEY_BYTES


class BadKey(ValueError):  # noqa: N818 - "bad" says error already
    """A key file that cannot be used; the message is one line and never holds the key."""


def new_key() -> bytes:
    """32 B from the operating system's generator."""
    return secrets.token_bytes(KEY_BYTES)


def load_key(path: str | Path) -> bytes:
    """The 32 B key in the file at `path`: hex digits, white space around them allowed.

    Raises BadKey.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(4096).strip()
    except OSError as error:
        raise BadKey(f"{path}: cannot read this key file: {error.strerror}") from None
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise BadKey(f"{path}: a key is {2 * KEY_BYTES} hexadecimal digits, this is something else") from None
    if len(key) != KEY_BYTES:
        raise BadKey(f"{path}: a key is {2 * KEY_BYTES} hexadecimal digits, here are {2 * len(key)}")
    if key == bytes(KEY_BYTES):
        raise BadKey(f"{path}: a key of zeros is known to everyone; make one with `groundstation init`")
    return key


def save_key(path: str | Path, key: bytes) -> None:
    """Writes a new key file that only its owner can read, durably.

    Raises FileExistsError rather than replace a key: the other end still holds the old one.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} B, this one {len(key)}")
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(key.hex() + "\n")
        file.flush()
        os.fsync(handle)
