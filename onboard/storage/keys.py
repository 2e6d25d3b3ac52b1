"""Reads and writes key files: one line of 64 hexadecimal digits, or several. Anything else is refused in one
line that names the file.

This is not part of `wire`, which touches no file. A key belongs to one node, and both ends of its link have
it.
"""

from __future__ import annotations

import codecs
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from onboard.wire.security.seal import KEY_BYTES, KEY_IDS

_PUBLISHED = (bytes(KEY_BYTES), bytes(range(KEY_BYTES)))  # zeros, and that of the examples in docs/wire.md


class BadKey(ValueError):  # noqa: N818 - "bad" says error already
    """A key file cannot be used; the message is one line and never contains the key."""


def new_key() -> bytes:
    """A new key: 32 B from the operating system's generator."""
    return secrets.token_bytes(KEY_BYTES)


def load_keys(path: str | Path) -> dict[int, bytes]:
    """The keys in the file at `path` by their ids, 32 B each, the oldest first.

    Each line holds one key: 64 hexadecimal digits and, in a file of several keys, the id (0 to 3) and a space
    before. Raises BadKey.
    """
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
    """Writes a new key file that only its owner can read, durably.

    Raises FileExistsError rather than replace a key: the other end still holds the old one.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} B, this one {len(key)}")
    _write(path, key.hex() + "\n")


def roll(keys: Mapping[int, bytes], key: bytes) -> dict[int, bytes]:
    """The keys with a new one appended. Raises ValueError if every id is taken."""
    if len(keys) >= KEY_IDS:
        raise ValueError(f"{len(keys)} keys are held, and there are no more ids: drop the old ones first")
    return {**keys, (list(keys)[-1] + 1) % KEY_IDS: key}


def newest(keys: Mapping[int, bytes]) -> dict[int, bytes]:
    """The newest key alone, under its id."""
    number = list(keys)[-1]
    return {number: keys[number]}


def replace_keys(path: str | Path, keys: Mapping[int, bytes]) -> None:
    """Replaces the keys in the file, durably: after a power cut it holds either the old keys or the new
    ones."""
    written = Path(path).with_name(f"{Path(path).name}.new")
    written.unlink(missing_ok=True)
    _write(written, "".join(f"{number} {key.hex()}\n" for number, key in keys.items()))
    written.replace(path)
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(path: str | Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
    except OSError:  # half a key is none, and would be in the way of the next try
        Path(path).unlink()
        raise
