"""The board's program as its user starts it: a process of its own, which holds nothing else.

What a board may fill with data counts its agent, too: in a test's process that would be all that the tests
before have loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from onboard import doctor
from onboard.config import load_node

ENDS_WITHIN_S = 30.0


class Ended(NamedTuple):
    """How a program ended, and what it said, named as click's results are."""

    exit_code: int
    stdout: str
    stderr: str
    output: str  # both


def onboard(*arguments: str) -> Ended:
    """Runs `onboard` with these arguments to its end. Raises TimeoutExpired where it has none."""
    done = subprocess.run(
        [sys.executable, "-m", "onboard", *arguments], capture_output=True, text=True, timeout=ENDS_WITHIN_S
    )
    return Ended(done.returncode, done.stdout, done.stderr, done.stdout + done.stderr)


def examined(path: Path) -> tuple[bool, str]:
    """Whether doctor finds a board's data right, and what it says of them: in this process, which holds more
    than a board may, so that the budget is lifted."""
    config = msgspec.structs.replace(load_node(path), memory_bytes=64 << 30)
    (data,) = (found for found in doctor.examine(config) if found.what == "data")
    return data.ok, data.says


def run_out_of_memory_by_signal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that are started from now on raise MemoryError where they are when SIGUSR1 comes."""
    (folder / "sitecustomize.py").write_text(
        "import signal\n"
        "def full(number, frame):\n    raise MemoryError\n"
        "signal.signal(signal.SIGUSR1, full)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
