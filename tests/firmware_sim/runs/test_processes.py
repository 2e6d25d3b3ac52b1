"""Child processes end with their parent, whenever that is killed; their ports are given to nobody else."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from firmware_sim.runs.processes import _die_with, free_ports


def test_a_child_whose_parent_was_killed_before_it_could_ask_ends_at_once() -> None:
    child = subprocess.Popen(  # as one whose parent was another process
        [sys.executable, "-c", "import time; time.sleep(60)"],
        preexec_fn=partial(_die_with, 1),
    )
    assert child.wait(timeout=30) == -signal.SIGKILL


def test_no_port_is_one_that_the_kernel_gives_to_whoever_asks_for_none() -> None:
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    free = free_ports(20)
    assert len({*free}) == 20
    assert max(free) < given
