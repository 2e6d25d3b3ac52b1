"""What was synced is there after a power cut; what was not is there or not, in parts, and both happen."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.disk import Disk, PowerCut, watched
from firmware_sim.world.disk import scratch
from onboard.link.spool import Spool
from onboard.storage.files import replace_durably
from onboard.storage.journal import Journal
from onboard.wire.transfer.incoming import Incoming
from tests.onboard.link.objects import incoming, payload, receive

SEEDS = range(40)
OLD, NEW = b"o" * 2000, b"n" * 3000


def after_cuts(folder: Path, name: str, change: Callable[[Path], None]) -> list[bytes | None]:
    """What is found under `name` after a `change` and a power cut, in many runs from the same beginning."""
    found = []
    for seed in SEEDS:
        home = folder / str(seed)
        home.mkdir()
        disk = Disk(home)
        with watched([disk]):
            replace_durably(home / "file", OLD)
            change(home)
            disk.cut(random.Random(seed))
        path = home / name
        found.append(path.read_bytes() if path.exists() else None)
    return found


def test_what_was_synced_is_there(tmp_path: Path) -> None:
    found = after_cuts(tmp_path, "file", lambda home: replace_durably(home / "file", NEW))
    assert set(found) == {NEW}


def test_what_was_not_synced_is_there_in_parts(tmp_path: Path) -> None:
    found = after_cuts(tmp_path, "file", lambda home: (home / "file").write_bytes(NEW) and None)
    assert {len(content or b"") for content in found} == {len(OLD), len(NEW)}
    assert len(set(found)) > 10
    assert set(b"".join(content or b"" for content in found)) == set(b"on\0")


def test_a_name_that_was_not_synced_is_the_old_or_the_new(tmp_path: Path) -> None:
    def rename(home: Path) -> None:
        with (home / "other").open("wb") as file:
            file.write(NEW)
            file.flush()
            os.fsync(file.fileno())
        (home / "other").replace(home / "file")

    assert set(after_cuts(tmp_path, "file", rename)) == {OLD, NEW}


def test_a_file_that_was_removed_may_come_back(tmp_path: Path) -> None:
    assert set(after_cuts(tmp_path, "file", lambda home: (home / "file").unlink())) == {OLD, None}


def test_the_power_goes_at_the_sync_it_is_told(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with watched([disk]):
        disk.syncs_left = 1  # the file is synced, its folder is not
        with pytest.raises(PowerCut) as cut:
            replace_durably(tmp_path / "file", NEW)
        assert cut.value.disk is disk
        disk.cut(random.Random(1))
        replace_durably(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


def test_files_elsewhere_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    disk = Disk(tmp_path / "a")
    with watched([disk]):
        disk.syncs_left = 0
        replace_durably(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW
    assert disk.syncs_left == 0


class DiskState(msgspec.Struct):
    """What a journal keeps here."""

    number: int = 0
    ballast: bytes = b""


@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 30), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_journal_and_a_spool_keep_their_promise_on_it(seed: int, cuts: list[int]) -> None:
    """Whatever is lost, a start finds the state and the fragments last saved, or those being saved then."""
    source, whole = random.Random(seed), payload(20_000)
    with scratch() as home:
        Journal(home, DiskState)
        Spool(home / "spool", 1 << 20)
        disk = Disk(home)
        with watched([disk]):
            saved = held = 0
            for cut in cuts:
                journal, spool = Journal(home, DiskState), Spool(home / "spool", 1 << 20)
                state = journal.load() or DiskState()
                assert state.number in (saved, saved + 1)
                half = incoming(whole, 100)
                for partial in spool.load():
                    half = Incoming.of(partial)
                    for index in range(200):
                        if half.held >> index & 1:
                            assert half.fragment(index) == whole[100 * index : 100 * index + 100]
                assert half.held & held == held
                saved, held = state.number, half.held
                disk.syncs_left = cut
                try:
                    while True:
                        journal.save(DiskState(saved + 1, source.randbytes(source.randrange(2000))))
                        saved += 1
                        receive(half, whole, [source.randrange(200)])
                        spool.save(half)
                        held = half.held
                except PowerCut:
                    disk.cut(source)
