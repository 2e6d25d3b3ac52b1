"""The readings of /proc are those of the process asked for, and a process that is gone has none."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from benchmarks.harness import process

MIB = 2**20
# Fills and frees 64 MiB, burns 0.2 s of CPU, and then waits to be ended.
CHILD = """
import time
block = bytearray(b"x" * (64 << 20)); del block
while time.process_time() < 0.2: pass
print("done", flush=True); input()
"""


def test_a_child_that_held_64_mib_and_burnt_cpu_is_seen_doing_so() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        memory, cpu_s = process.memory(child.pid), process.cpu_s(child.pid)
        child.communicate(b"\n")
    assert memory.peak_bytes > 64 * MIB > memory.resident_bytes > MIB
    assert 0.18 <= cpu_s < 2.0  # user and system are both rounded down to 10 ms
    with pytest.raises(ProcessLookupError, match=f"{child.pid} has ended"):
        process.memory(child.pid)
    with pytest.raises(ProcessLookupError, match=f"{child.pid} has ended"):
        process.cpu_s(child.pid)


def test_the_peak_is_what_the_kernel_tells_this_process_itself() -> None:
    told = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert process.memory(os.getpid()).peak_bytes == pytest.approx(told, rel=0.05)


def test_a_zombie_has_no_memory() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.read() == b""  # its end of the pipe is closed: it is ending
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            process.memory(child.pid)
    finally:
        child.communicate()
