"""Child processes end with their parent, whenever that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

from firmware_sim.runs.processes import _die_with


def test_a_child_whose_parent_was_killed_before_it_could_ask_ends_at_once() -> None:
    child = subprocess.Popen(  # as one whose parent was another process
        [sys.executable, "-c", "import time; time.sleep(60)"],
        preexec_fn=partial(_die_with, 1),
    )
    assert child.wait(timeout=30) == -signal.SIGKILL
