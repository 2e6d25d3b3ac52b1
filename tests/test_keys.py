"""A key file is read back as it was written, and a bad one is refused in one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from onboard.keys import BadKey, load_key, new_key, save_key


def test_a_new_key_comes_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path, key = tmp_path / "node.key", new_key()
    save_key(path, key)
    assert load_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert len({new_key() for _ in range(20)}) == 20


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    path, key = tmp_path / "node.key", new_key()
    save_key(path, key)
    with pytest.raises(FileExistsError):
        save_key(path, new_key())
    assert load_key(path) == key


def test_hand_written_keys_may_have_white_space_and_capitals(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.write_text("  " + "AB" * 16 + "cd" * 16 + "\r\n\n")
    assert load_key(path) == b"\xab" * 16 + b"\xcd" * 16


@pytest.mark.parametrize(
    "content",
    [b"", b"ab" * 31, b"ab" * 33, b"ab" * 5000, b"xy" * 32, b"\xff\xfe" * 32, b"00" * 32, b"a" * 63],
    ids=["empty", "short", "long", "huge", "not-hex", "not-text", "zeros", "odd"],
)
def test_a_bad_key_file_is_one_line_that_names_it_and_tells_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    with pytest.raises(BadKey) as caught:
        load_key(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "abab" not in message


def test_a_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(BadKey, match=r"absent\.key: cannot read this key file: No such file"):
        load_key(tmp_path / "absent.key")
