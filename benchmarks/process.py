"""What a process costs by the kernel's own count: memory from /proc/PID/status, CPU from /proc/PID/stat."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Resident memory: code and data in RAM, pages shared with other programs included."""

    resident_bytes: int  # VmRSS
    peak_bytes: int  # VmHWM, since the process began


def memory(pid: int) -> Memory:
    """Raises ProcessLookupError for a process that is gone or a zombie, which has no memory any more."""
    fields = dict(line.split(":", 1) for line in _read(pid, "status").splitlines())
    if "VmRSS" not in fields:
        raise ProcessLookupError(f"process {pid} has ended")
    resident, peak = (int(fields[key].split()[0]) for key in ("VmRSS", "VmHWM"))
    return Memory(1024 * resident, 1024 * peak)  # the kernel's "kB" are 1024 B (proc(5))


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads since exec and before, user and system; steps of 1/CLK_TCK (10 ms).

    Raises ProcessLookupError for a process that is gone.
    """
    # Fields 14 and 15 (proc(5)), counted from behind field 2: a name that may hold spaces and brackets.
    after_name = _read(pid, "stat").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} has ended") from None
