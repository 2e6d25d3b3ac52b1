"""A key file is read back as it was written, and a bad one is refused in one line that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onboard.storage.keys import BadKey, load_keys, new_key, newest, replace_keys, roll, save_key


def test_a_new_key_comes_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path, key = tmp_path / "node.key", new_key()
    save_key(path, key)
    assert load_keys(path) == {0: key}
    assert path.stat().st_mode & 0o777 == 0o600
    assert len({new_key() for _ in range(20)}) == 20


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    path, key = tmp_path / "node.key", new_key()
    save_key(path, key)
    with pytest.raises(FileExistsError):
        save_key(path, new_key())
    assert load_keys(path) == {0: key}


def test_hand_written_keys_may_have_white_space_and_capitals(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.write_text("  " + "AB" * 16 + "cd" * 16 + "\r\n\n")
    assert load_keys(path) == {0: b"\xab" * 16 + b"\xcd" * 16}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ab" * 31,
        b"ab" * 33,
        b"ab" * 5000,
        b"xy" * 32,
        b"\xff\xfe" * 32,
        b"00" * 32,
        b"a" * 63,
        bytes(range(32)).hex().encode(),
    ],
    ids=["empty", "short", "long", "huge", "not-hex", "not-text", "zeros", "odd", "of-the-examples"],
)
def test_a_bad_key_file_is_one_line_that_names_it_and_tells_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    with pytest.raises(BadKey) as caught:
        load_keys(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "abab" not in message


def test_a_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(BadKey, match=r"absent\.key: cannot read this key file: No such file"):
        load_keys(tmp_path / "absent.key")


def test_a_roll_adds_a_key_behind_the_others_and_the_newest_stays_alone(tmp_path: Path) -> None:
    path, first = tmp_path / "node.key", new_key()
    save_key(path, first)
    keys = load_keys(path)
    for nth in range(1, 4):
        keys = roll(keys, new_key())
        replace_keys(path, keys)
        assert list(load_keys(path).items()) == list(keys.items())
        assert list(keys) == list(range(nth + 1))
    assert keys[0] == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["node.key"]
    with pytest.raises(ValueError, match="4 keys"):
        roll(keys, new_key())
    alone = newest(keys)
    assert alone == {3: keys[3]}
    assert list(roll(alone, new_key())) == [3, 0]  # the id comes round, the order says which is newer


@pytest.mark.parametrize(
    "content",
    ["4 " + "ab" * 32, "x " + "ab" * 32, "0 " + "ab" * 32 + "\n0 " + "cd" * 32, "ab" * 32 + "\n" + "cd" * 32,
     "0 " + "ab" * 32 + "\n1 " + "00" * 32, "0 1 " + "ab" * 32],
    ids=["id", "letter", "twice", "without-ids", "zeros", "two-ids"],
)  # fmt: skip
def test_a_file_of_several_keys_that_makes_no_sense(tmp_path: Path, content: str) -> None:
    path = tmp_path / "node.key"
    path.write_text(content)
    with pytest.raises(BadKey) as caught:
        load_keys(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "abab" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "node.key")
    with pytest.raises(BadKey, match="it is a pipe"):
        load_keys(tmp_path / "node.key")
