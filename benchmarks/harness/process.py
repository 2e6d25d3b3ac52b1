"""What a process costs by the kernel's own count: memory from /proc/PID/status and smaps_rollup, CPU from
/proc/PID/stat."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Resident memory: code and data in RAM, pages shared with other programs included."""

    resident_bytes: int  # VmRSS
    peak_bytes: int  # VmHWM, since the process began
    data_bytes: int  # RssAnon: what is resident but pages of files


def memory(pid: int) -> Memory:
    """Raises ProcessLookupError for a process that is gone or a zombie, which has no memory any more."""
    fields = dict(line.split(":", 1) for line in _read(pid, "status").splitlines())
    if "VmRSS" not in fields:
        raise ProcessLookupError(f"process {pid} has ended")
    resident, peak, anonymous = (int(fields[key].split()[0]) for key in ("VmRSS", "VmHWM", "RssAnon"))
    return Memory(1024 * resident, 1024 * peak, 1024 * anonymous)  # the kernel's "kB" are 1024 B (proc(5))


def share_bytes(pid: int) -> int:
    """Its proportional set size: resident memory, where a page that N processes have counts 1/N for each.

    Raises ProcessLookupError for a process that is gone or a zombie."""
    fields = dict(line.split(":", 1) for line in _read(pid, "smaps_rollup").splitlines()[1:])
    return 1024 * int(fields["Pss"].split()[0])


def in_namespace(path: str) -> list[int]:
    """All processes in the network namespace at `path`."""
    namespace, found = Path(path).stat().st_ino, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if (process / "ns/net").stat().st_ino == namespace:
                found.append(int(process.name))
    return found


def children(pid: int) -> list[int]:
    """The processes that it has started and that are not waited for yet. Raises ProcessLookupError."""
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads since exec and before, user and system, and of children that have ended and
    were waited for; steps of 1/CLK_TCK (10 ms).

    Raises ProcessLookupError for a process that is gone.
    """
    # Fields 14 to 17 (proc(5)), counted from behind field 2: a name that may hold spaces and brackets.
    after_name = _read(pid, "stat").rpartition(")")[2].split()
    return sum(map(int, after_name[11:15])) / os.sysconf("SC_CLK_TCK")


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # the latter from a read that had begun
        raise ProcessLookupError(f"process {pid} has ended") from None
