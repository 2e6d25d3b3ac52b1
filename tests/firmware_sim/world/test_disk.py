"""Disks in memory are gone with their process, however it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from firmware_sim.world import disk

HELD = """
import sys, time
from pathlib import Path
from firmware_sim.world import disk
disk.MEMORY = Path(sys.argv[1])
with disk.scratch() as folder:
    (folder / "state").write_bytes(b"1")
    print("there", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_at_the_next_start_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "MEMORY", tmp_path)
    (tmp_path / "mine").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HELD, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        with disk.scratch() as own:
            assert len(list(tmp_path.iterdir())) == 3  # one that runs keeps its own
            process.kill()
            process.wait()
            with disk.scratch():
                assert own.is_dir()
                assert len(list(tmp_path.iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
