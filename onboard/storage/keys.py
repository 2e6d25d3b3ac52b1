"""Reads and writes key files, and keeps them and a program's other files private to their user.

A key belongs to one node, and both ends of its link have it. Anything but lines of 64 hexadecimal digits is
refused in one line that names the file. Files that these programs create are private whatever the umask.
Existing files keep their mode, which may be intended: a key or state that others can access is logged and not
refused. A file system without modes (FAT) shows all as open, and a board that did not start would be lost."""

from __future__ import annotations

import codecs
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from onboard.console.toml import ConfigError
from onboard.storage.files import replacing
from onboard.wire.security.seal import KEY_BYTES, KEY_IDS

_MODE = 0o600  # of a key file
_OTHERS = {"key": 0o077, "state": 0o007}  # a state may be shown to a group on purpose, a key to nobody
_PUBLISHED = (bytes(KEY_BYTES), bytes(range(KEY_BYTES)))  # zeros, and that of the examples in docs/wire.md


class BadKey(ConfigError):  # noqa: N818 - "bad" says error already
    """A key file cannot be used; the message is one line and never contains the key."""


def new_key() -> bytes:
    """Draws a new key: 32 B from the operating system's generator."""
    return secrets.token_bytes(KEY_BYTES)


def load_keys(path: str | Path) -> dict[int, bytes]:
    """Reads the keys at `path` by id, 32 B each, the oldest first. A line holds 64 hexadecimal digits and, in
    a file of several keys, the id (0 to 3) and a space before. Raises BadKey."""
    try:
        if Path(path).is_fifo():  # nobody may ever write into it, and who opens it waits for that
            raise BadKey(f"{path}: cannot read this key file: it is a pipe")
        with Path(path).open("rb") as file:
            text = file.read(4096).removeprefix(codecs.BOM_UTF8).strip()
    except OSError as error:
        raise BadKey(f"{path}: cannot read this key file: {error.strerror}") from None
    keys: dict[int, bytes] = {}
    for line in text.splitlines() or [b""]:
        number, _, digits = line.strip().rpartition(b" ")
        key = _key_of(path, digits)
        if number not in (b"", b"0", b"1", b"2", b"3") or int(number or b"0") in keys:
            raise BadKey(f"{path}: before a key stands its id, 0 to {KEY_IDS - 1}, each once, and a space")
        keys[int(number or b"0")] = key
    return keys


def _key_of(path: str | Path, digits: bytes) -> bytes:
    try:
        key = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        raise BadKey(f"{path}: a key is {2 * KEY_BYTES} hexadecimal digits, this is something else") from None
    if len(key) != KEY_BYTES:
        raise BadKey(f"{path}: a key is {2 * KEY_BYTES} hexadecimal digits, here are {2 * len(key)}")
    if key in _PUBLISHED:
        raise BadKey(f"{path}: this key is known to everyone; make one with `groundstation init`")
    return key


def save_key(path: str | Path, key: bytes) -> None:
    """Writes a new key file that only its owner can read, durably. Raises FileExistsError rather than replace
    a key: the other end still holds the old one."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} B, this one {len(key)}")
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(key.hex() + "\n")
            file.flush()
            os.fsync(handle)
    except OSError:  # half a key is none, and would be in the way of the next try
        Path(path).unlink()
        raise


def roll(keys: Mapping[int, bytes], key: bytes) -> dict[int, bytes]:
    """Returns the keys with a new one appended. Raises ValueError if every id is taken."""
    if len(keys) >= KEY_IDS:
        raise ValueError(f"{len(keys)} keys are held, and there are no more ids: drop the old ones first")
    return {**keys, (list(keys)[-1] + 1) % KEY_IDS: key}


def newest(keys: Mapping[int, bytes]) -> dict[int, bytes]:
    number = list(keys)[-1]
    return {number: keys[number]}


def replace_keys(path: str | Path, keys: Mapping[int, bytes]) -> None:
    """Replaces the keys in the file: after a power cut it holds the old keys or the new ones."""
    with replacing(Path(path), _MODE) as file:
        file.write("".join(f"{number} {key.hex()}\n" for number, key in keys.items()).encode("ascii"))


def keep_private() -> None:
    """Makes this process create files and folders that only its user can access."""
    os.umask(os.umask(0o077) | 0o077)


def exposure(path: Path, what: Literal["key", "state"]) -> str | None:
    """Says how other users can access `path`, and what to do about it; None if they cannot, or without it."""
    try:
        mode, folder = path.stat().st_mode, path.absolute().parent.stat().st_mode
    except OSError:
        return None
    if mode & _OTHERS[what]:
        may = "replace" if mode & 0o022 else "read"
        wanted = 0o700 if stat.S_ISDIR(mode) else 0o600
        return f"its mode is {stat.S_IMODE(mode):04o}: others may {may} it; chmod {wanted:o} {path}"
    if what == "key" and folder & 0o002 and not folder & stat.S_ISVTX:
        return f"others may put another in its place; chmod o-w {path.absolute().parent}"
    return None
