"""What lies in the place of a program's file: no link is followed, no pipe waited for, nothing lost."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onboard.storage.files import (
    LOCK,
    NotAFile,
    clear_the_way,
    read_file,
    remove_file,
    replace_durably,
    sole_user,
    write_durably,
)
from tests.missions.rot import DAMAGES, PRECIOUS
from tests.onboard.storage.test_journal import HOLD

STRANGE = ("folder", "pipe", "link", "dangling", "circle")


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Whoever waits for a pipe waits for ever."""
    signal.alarm(20)
    yield
    signal.alarm(0)


def strange(path: Path, kind: str) -> None:
    path.touch()
    DAMAGES[kind](path, random.Random(1))


def unharmed(path: Path) -> bool:
    other = path.parent / "somebody-s"
    return not other.exists() or other.read_bytes() == PRECIOUS


@pytest.mark.parametrize("kind", STRANGE)
def test_a_lock_that_is_no_file_is_put_aside_and_holds(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strange(tmp_path / LOCK, kind)
    with sole_user(tmp_path), pytest.raises(BlockingIOError), sole_user(tmp_path):
        pass
    assert unharmed(tmp_path / LOCK)
    assert os.path.lexists(tmp_path / "lock.bad1")
    (said,) = [record for record in caplog.records if record.getMessage() == "put-aside"]
    assert said.fields["path"] == str(tmp_path / LOCK)  # type: ignore[attr-defined]


def test_of_programs_that_start_on_a_strange_lock_at_once_one_has_the_folder(tmp_path: Path) -> None:
    strange(tmp_path / LOCK, "link")
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(words, text=True, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    try:
        held = [child for child in started if child.stdout.readline() == "held\n"]
        assert len(held) == 1
    finally:
        for child in started:
            child.communicate("\n", timeout=20)
    assert unharmed(tmp_path / LOCK)


def test_what_a_lock_holds_stays(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(b"whose is this?")
    with sole_user(tmp_path):
        pass
    assert (tmp_path / LOCK).read_bytes() == b"whose is this?"


@pytest.mark.parametrize("name", ["model.bin", "model.bin.new"])
@pytest.mark.parametrize("kind", STRANGE)
def test_a_file_is_replaced_whatever_is_in_its_place(name: str, kind: str, tmp_path: Path) -> None:
    strange(tmp_path / name, kind)
    replace_durably(tmp_path / "model.bin", b"new")
    assert (tmp_path / "model.bin").read_bytes() == b"new"
    assert not (tmp_path / "model.bin").is_symlink()
    assert unharmed(tmp_path / name)


@pytest.mark.parametrize("kind", STRANGE)
def test_a_file_written_in_place_is_a_file_of_its_own(kind: str, tmp_path: Path) -> None:
    strange(tmp_path / "journal.0", kind)
    write_durably(tmp_path / "journal.0", b"new")
    assert (tmp_path / "journal.0").read_bytes() == b"new"
    assert unharmed(tmp_path / "journal.0")


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_is_not_read_and_removed_without_harm(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "update.bin"
    strange(path, kind)
    with pytest.raises(NotAFile, match=r"update\.bin\.bad1 now"):
        read_file(path)
    assert not os.path.lexists(path)
    strange(path, kind)
    remove_file(path)
    assert not os.path.lexists(path)
    assert os.path.lexists(tmp_path / "update.bin.bad2")
    assert unharmed(path)


def test_a_device_is_not_opened(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root makes devices")
    os.mknod(tmp_path / "model.bin", 0o20600, os.makedev(1, 5))  # as /dev/zero: it never ends
    with pytest.raises(NotAFile, match="a device"):
        read_file(tmp_path / "model.bin")


def test_a_file_longer_than_any_that_was_written_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    os.truncate(tmp_path / "model.bin", 2**40)  # of holes: it takes no disk
    with pytest.raises(OSError, match="at most 100 B"):
        read_file(tmp_path / "model.bin", 100)


def test_a_file_in_the_place_of_a_folder_is_put_aside_and_a_link_to_one_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool").symlink_to("elsewhere")
    clear_the_way(tmp_path / "spool", "folder")
    assert (tmp_path / "spool").is_dir()
    assert not caplog.records
    (tmp_path / "spool").unlink()
    (tmp_path / "spool").write_bytes(b"a file")
    clear_the_way(tmp_path / "spool", "folder")
    assert (tmp_path / "spool.bad1").read_bytes() == b"a file"
