"""What tests of real network namespaces need, or why they are skipped."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips a test where no network namespace with a TUN device can be made."""
    make = "from benchmarks.harness import air, netns; netns.new(); air.open_tun('10.0.0.1', 576)"
    done = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network namespace with a TUN device: {done.stderr.strip().splitlines()[-1]}")
